"""The whole way, small: bags, dataset, training, and the policy on the arm over DDS."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from diffusion_policy_ros.demo.demo_monitor import DemoMonitor

pytestmark = pytest.mark.ros

SMALL = ["--demonstrations", "4", "--episodes", "1", "training.updates=5", "training.val_every=0"]
SMALL += ["--engine", "eager"]  # compiling would take longer than all the rest


def demo(out):
    """Run the demo without cameras; what it printed."""
    command = [sys.executable, "-m", "diffusion_policy_ros.cli.main", "demo", "--state"]
    command += ["--out", str(out), "--json", str(out / "figures.json"), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_whole_way_and_the_same_again(tmp_path):
    """Every stage runs, the figures are complete, pictures and report are there; it goes on."""
    said = demo(tmp_path)
    assert re.findall(r"^\[(\d)/5\] .*\((.+)\)$", said, re.M)[0][0] == "1"
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.keys() == {
        "success_rate",
        "episodes",
        "seconds_total",
        "chunk_ms_p50",
        "chunk_ms_p99",
        "published_chunks",
        "deadline_misses",
        "checkpoint",
    }
    assert figures["episodes"] == 1 and figures["published_chunks"] > 10
    for name in ("rollout.gif", "run/loss.png", "report.html", "bags", "dataset"):
        assert (tmp_path / "state" / name).exists(), name
    before = (tmp_path / "state" / "dataset" / "dataset.yaml").read_text()
    assert figures["checkpoint"] in demo(tmp_path)
    assert (tmp_path / "state" / "dataset" / "dataset.yaml").read_text() == before


def test_the_policy_s_own_diagnostics_are_heard(capsys):
    """In a domain that was chosen others say how they are, too; the figures are not theirs."""
    names = ("usb_cam: frequency", "/policy_node: policy", "/action_player: player")
    array = DiagnosticArray(status=[DiagnosticStatus(name=n, message=n) for n in names])
    DemoMonitor._diagnostics(None, array)
    assert json.loads(capsys.readouterr().out) == {"policy": {"message": "/policy_node: policy"}}


ON_AN_ARM = """
import pathlib, sys, time
from diffusion_policy_ros.cli.demo import _domain, _node
out = pathlib.Path(sys.argv[1])
with _domain() as environment, _node("sim_robot", out, environment, {}) as arm:
    print(arm.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv, of util-linux")
def test_no_node_outlives_a_demo_that_is_killed(tmp_path):
    """It would go on commanding the arm."""
    with subprocess.Popen(
        [sys.executable, "-c", ON_AN_ARM, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        *_, pid = (process.stdout.readline(), process.stdout.readline())
        node = Path(f"/proc/{int(pid)}/cmdline")
        # Not setpriv any more, which has asked for its end by then, and not between the two.
        until(lambda: node.read_bytes().startswith(sys.executable.encode()))
        process.kill()
    until(lambda: not node.exists() or not node.read_bytes())


def until(holds):
    """Wait for it; a deadline, no fixed sleep."""
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
