"""`scripts/gpu_check.py` without a GPU: every part runs, and nothing ends the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/gpu_check.py"
PATIENT = ["--device", "cpu", "--tiny", "--minutes", "60"]
BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rosbags", "mcap", "mujoco", "rclpy", "openvino", "lz4"}:
            raise ImportError(f"{name} is not on the machine with the card")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def checks():
    """The script's modules."""
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmark")]
    from gpu_checks import pack, run

    yield run, pack
    del sys.path[:2]


@pytest.fixture
def run(checks, tmp_path):
    """A run with nothing in it yet."""
    made = checks[0].Run(tmp_path, "cpu", True)
    (tmp_path / checks[0].ROWS).touch()
    return made


@pytest.mark.compiles
def test_the_whole_runs_from_what_travels_alone(checks, tmp_path):
    """In another folder, without what the machine with the card lacks; each part has its rows."""
    checks[1].copy(ROOT, tmp_path / "folder")
    out = tmp_path / "out"
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "folder" / SCRIPT)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--out", str(out), *PATIENT], cwd=tmp_path, env=env, capture_output=True
    )
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    logs = "\n".join(path.read_text() for path in out.glob("*.log"))
    assert done.returncode in (0, 1), done.stderr.decode()
    assert [row for row in rows if "failed" in row] == [], logs
    names = ["machine", "ceilings", "engines", "mission", "training", "full", "tests"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == names
    assert not rows[0]["measurements"], "a stand-in's figures are none"
    kinds = {row["engine"].split()[0] for row in rows if "step_ms" in row}
    assert kinds == {"eager", "cuda_graph", "compile"}
    assert all(row["rel_error"] < 0.1 for row in rows if "rel_error" in row)
    missed = [row["aim"] for row in rows if row.get("met") is False]
    speed = [aim for aim in missed if " / " in aim or aim.startswith("of resident")]
    assert missed == speed, "what does not depend on the machine is met"
    assert any(row.get("weights_equal") for row in rows)
    if any(row["part"] == "engines" and row.get("met") is False for row in rows):
        assert "aten::" in (out / "profile_engines_cuda_graph.txt").read_text()
    assert "| full | one line, full at load | ≥ 1 | 1 | met |" in (out / "table.md").read_text()


def test_a_part_that_fails_hangs_or_dies_leaves_a_row(checks, run):
    """With what it had found before, and what it had started is gone."""
    bounded = checks[0].bounded

    def hang():
        run.row("hangs", what="before")
        child = subprocess.Popen(["sleep", "600"])
        (run.out / "child").write_text(str(child.pid))
        time.sleep(600)

    def fail():
        raise RuntimeError("one line\nand another")

    assert not bounded(run, "hangs", hang, 2)
    assert not bounded(run, "fails", fail, 60)
    assert not bounded(run, "dies", lambda: os.kill(os.getpid(), signal.SIGKILL), 60)
    assert bounded(run, "goes on", lambda: run.row("goes", what="well"), 60)
    deadline, child = time.monotonic() + 60, int((run.out / "child").read_text())
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found = [(row["part"], row.get("failed", row["what"])) for row in run.rows()]
    assert found == [
        ("hangs", "before"),
        ("hangs", "killed after 2 s"),
        ("fails", "RuntimeError: one line"),
        ("dies", "its process ended with -9"),
        ("goes", "well"),
    ]
    assert "and another" in (run.out / "fails.log").read_text()


def alive(process):
    """Whether it still does something; one that nobody has asked about since it ended does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_rows_that_were_cut_off_are_left_out(run):
    """A process may be killed while it writes."""
    run.row("engines", value=1)
    with (run.out / "rows.jsonl").open("a") as file:
        file.write('{"part": "engines", "val')
    assert run.rows() == [{"part": "engines", "value": 1}]


def test_an_unknown_part_is_refused():
    """With those that there are."""
    command = [sys.executable, SCRIPT, "--out", "nowhere", "--only", "engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no part engine; use some of ceilings,engines" in done.stderr
    assert not (ROOT / "nowhere").exists()
