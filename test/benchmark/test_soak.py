"""`benchmark/soak.py`, for seconds in place of an hour."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

pytestmark = [pytest.mark.ros, pytest.mark.slow]
FILE = Path(__file__).parents[2] / "benchmark" / "soak.py"
NODES = {"policy_node", "sim_robot", "action_player", "episode_recorder"}
DEADLINE_S = 120.0


class Soak:
    """The script, its files in a folder of the test's."""

    def __init__(self, folder, minutes):
        self.folder = folder
        words = [sys.executable, FILE, "--minutes", str(minutes), "--json"]
        self.popen = subprocess.Popen(
            words,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def nodes(self):
        """Name → number of the processes that it has started and that are there now."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_text().split("\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == self.popen.pid and "-m" in words:
                found[words[words.index("-m") + 1].rpartition(".")[2]] = int(entry.name)
        return found

    def until_started(self):
        """Wait for the nodes."""
        deadline = time.monotonic() + DEADLINE_S
        while self.nodes().keys() != NODES:
            assert self.popen.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        return self.nodes()

    def end(self):
        """Its exit code, its figures, and what it said beside."""
        out, said = self.popen.communicate(timeout=DEADLINE_S)
        return self.popen.returncode, json.loads(out), said


@pytest.fixture
def soak(tmp_path):
    """Starts it, and makes sure that nothing is left of it."""
    started = []

    def start(minutes):
        started.append(Soak(tmp_path, minutes))
        return started[0]

    yield start
    for one in started:
        for pid in [
            *one.nodes().values(),
            *([] if one.popen.poll() is not None else [one.popen.pid]),
        ]:
            os.kill(pid, signal.SIGKILL)


def test_a_short_soak_tells_its_figures_and_leaves_nothing_behind(soak):
    """Frames and chunks, memory of each process; then no process and no file is there."""
    one = soak(0.1)
    pids = one.until_started()
    code, found, said = one.end()
    assert code == 0, said
    assert found["frames"] > 0 and found["chunks"] > 0 and found["p50_ms"] > 0
    assert found["rss_mb"].keys() == found["rss_growth_mb"].keys() == NODES
    assert found["deadline_misses"]["total"] >= 0 and found["p99_ms"].keys() == {"first", "last"}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert list(one.folder.iterdir()) == []


def test_a_process_that_dies_ends_the_soak_with_an_error(soak):
    """It says which one, keeps its log, and ends the others."""
    one = soak(60)
    pids = one.until_started()
    os.kill(pids["action_player"], signal.SIGKILL)
    code, found, said = one.end()
    assert code == 1 and "error: action_player ended with -9" in said
    assert "minutes" in found
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert list(one.folder.glob("soak_*/action_player.log"))
