"""Processes beside the one that was started end with it."""

import os
import signal
import subprocess
import sys
import time

CODE = """
import os, time
from diffusion_policy_ros.data.workers import pool
if __name__ == "__main__":
    with pool(2) as workers:
        print(*sorted({workers.submit(os.getpid).result() for _ in range(2)}), flush=True)
        workers.submit(time.sleep, 1000).result()
"""


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_they_end_with_who_started_them(tmp_path):
    """Killed, it can tell nobody; at work or waiting for it, none is left behind."""
    script = tmp_path / "starts.py"
    script.write_text(CODE)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as started:
        workers = [int(word) for word in started.stdout.readline().split()]
        assert workers and all(map(_runs, workers))
        os.kill(started.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while any(map(_runs, workers)):
        assert time.monotonic() < until, "they outlive it"
        time.sleep(0.05)
