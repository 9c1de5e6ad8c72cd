"""Processes beside the one that was started end with it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from diffusion_policy_ros.data.workers import pool
from diffusion_policy_ros.errors import UserError, UserErrors

POOL = """
import os, time
from diffusion_policy_ros.data.workers import pool
if __name__ == "__main__":
    with pool(2) as workers:
        print(*sorted({workers.submit(os.getpid).result() for _ in range(2)}), flush=True)
        workers.submit(time.sleep, 1000).result()
"""


CONVERSION = """
import os, time
from pathlib import Path
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data import convert

def slow(batch, *_):
    print(os.getpid(), flush=True)
    time.sleep(1000)
    yield

convert._run_batch = slow
if __name__ == "__main__":
    batches = [convert._Batch(name, Path(name), []) for name in ("a", "b")]
    list(convert._run(batches, Contract.load("mini_lift"), convert.USUAL, 2))
"""


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("code", "lines"), [(POOL, 1), (CONVERSION, 2)])
def test_they_end_with_who_started_them(tmp_path, code, lines):
    """Killed, it can tell nobody; at work or waiting for it, none is left behind."""
    script = tmp_path / "starts.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as started:
        said = [started.stdout.readline() for _ in range(lines)]
        workers = [int(word) for word in " ".join(said).split()]
        assert workers and all(map(_runs, workers))
        os.kill(started.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while any(map(_runs, workers)):
        assert time.monotonic() < until, "they outlive it"
        time.sleep(0.05)


def test_several_mistakes_reach_who_started_them():
    """As what a worker raises does."""
    several = UserErrors([UserError("one", "here", "mend it"), UserError("two")])
    with pool(1) as workers:
        (returned,) = workers.submit(list, [several]).result()
    assert str(returned) == str(several)
