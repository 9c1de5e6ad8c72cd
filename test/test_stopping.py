"""What asks a process to stop."""

import os
import pty
import subprocess
import sys

import pytest

ON_A_TERMINAL = """
import fcntl, os, pathlib, signal, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if {nohup}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from diffusion_policy_ros.stopping import handle_stop_signals
handle_stop_signals(signal.default_int_handler)
try:
    print("ready", flush=True)
    {body}
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGHUP)  # the shell sends one, and at its end the kernel another
    print("stopping: what is said now goes nowhere", flush=True)
pathlib.Path(sys.argv[1]).write_text("saved")
"""


@pytest.mark.parametrize(
    ("nohup", "body"),
    [(False, "while True: time.sleep(0.01)"), (True, "import select; select.select([0], [], [])")],
)
def test_a_terminal_that_is_gone_costs_nothing_of_what_is_saved(tmp_path, nohup, body):
    """A window that is closed, a connection that is lost; with nohup it goes on."""
    ours, theirs = pty.openpty()
    code = ON_A_TERMINAL.format(nohup=nohup, body=body)
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "file"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        said = b""
        while b"ready\r\n" not in said:
            said += os.read(ours, 100)
        os.close(ours)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert (tmp_path / "file").read_text() == "saved"
