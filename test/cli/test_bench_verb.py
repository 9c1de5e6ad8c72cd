"""`diffusion-policy bench` on a tiny untrained policy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from diffusion_policy_ros.bench import speed
from diffusion_policy_ros.cli.main import EXIT_INTERRUPTED, main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe

TINY = "policy: {denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A policy that has learned nothing, for the arm without cameras."""
    policy = DiffusionPolicy(Recipe.from_text(TINY), Contract.load("mini_lift_state"))
    return str(save_checkpoint(tmp_path_factory.mktemp("policies") / "tiny", policy))


def _without_openvino(monkeypatch):
    """As on a machine without the extra."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("openvino", "compiled"):
        monkeypatch.delitem(sys.modules, f"diffusion_policy_ros.engine.{name}", raising=False)


def test_table_and_figures_agree(checkpoint, tmp_path, capsys, monkeypatch):
    """Every setting stands in both with the same figures; what is not installed is named."""
    _without_openvino(monkeypatch)
    file, plot = tmp_path / "new" / "figures.json", tmp_path / "speed.png"
    words = ["--steps", "1,3", "--samplers", "ddim,ddpm", "--chunks", "4", "--threads", "1"]
    words += ["--engines", "openvino,eager", "--rate", "0.5"]
    assert main(["bench", checkpoint, *words, "--json", str(file), "--plot", str(plot)]) == 0
    out, figures = capsys.readouterr().out, json.loads(file.read_text())
    rows = [line.split() for line in out.splitlines() if line.startswith("  eager")][:4]
    settings = figures["settings"]
    assert [(s["sampler"], s["steps"]) for s in settings] == [
        (sampler, steps) for sampler in ("ddim", "ddpm") for steps in (1, 3)
    ]
    for row, setting in zip(rows, settings, strict=True):
        p50, p99 = f"{setting['p50_ms']:.2f}", f"{setting['p99_ms']:.2f}"
        assert row[:8] == ["eager", "f32", setting["sampler"], str(setting["steps"]), p50, "ms",
                           p99, "ms"]  # fmt: skip
        assert setting["chunks"] == 4 and setting["holds"] and setting["p50_ms"] > 0
    assert figures["missing"] == [
        "engine openvino: openvino is not installed; pip install openvino"
    ]
    assert figures["missing"][0] in out and figures["verdict"]["text"] in out
    assert figures["verdict"]["text"].startswith("0.5 Hz with a new chunk every 4 frames: yes")
    assert "runs at 20 Hz, its contract's; for 0.5 Hz change rate_hz there" in out
    assert "\nrun " not in out  # the command would run at 20 Hz
    (engine,) = figures["engines"]
    assert engine["load_s"] > 0 and engine["warm_up_s"] > 0 and engine["memory_mib"] > 0
    assert engine["threads"] == 1 and [p["sampler"] for p in engine["parts"]] == ["ddim", "ddpm"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "0"], "use 1 to 100"),
        (["--steps", "1,101"], "use 1 to 100"),
        (["--steps", "one"], "as in 1,2,8"),
        (["--steps", ""], "names nothing"),
        (["--engines", ","], "names nothing"),
        (["--samplers", "ddim,ddimm"], "did you mean 'ddim'?"),
        (["--engines", "eagre"], "did you mean 'eager'?"),
        (["--replan-steps", "9"], "use 1 to 8"),
        (["--chunks", "0"], "chunks must be 1 or more"),
        (["--threads", "-1"], "threads must be 0 or more"),
        (["--threads", "100000"], "the cores that there are"),
        (["--rate", "0"], "rate must be more than 0"),
        (["--rate", "nan"], "rate must be more than 0"),
        (["--device", "gpu"], "no device 'gpu'"),
        (["--json", "/"], "is a folder"),
        (["--plot", "/dev/null/speed.png"], "cannot be written"),
        (["--plot", "speed.jpg"], "end the name in .png"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(checkpoint, words, expected, capsys):
    """Before anything is measured, with what would be valid."""
    assert main(["bench", checkpoint, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and error.startswith("error: ") and "\n" not in error


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    """The path stands in the message."""
    assert main(["bench", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_no_engine_at_all_is_a_mistake(checkpoint, capsys, monkeypatch):
    """There is no verdict without a figure."""
    _without_openvino(monkeypatch)
    assert main(["bench", checkpoint, "--engines", "openvino"]) == 2
    assert "error: no engine to measure: " in capsys.readouterr().err


def test_one_precision_that_fails_does_not_take_the_others_along(
    checkpoint, tmp_path, capsys, monkeypatch
):
    """It is named once, and the verdict is of the rest."""
    monkeypatch.setattr(speed, "precisions", lambda engine: ["f32", "int8"])
    file = tmp_path / "figures.json"
    words = ["--engines", "eager", "--steps", "1", "--chunks", "2", "--threads", "1"]
    assert main(["bench", checkpoint, *words, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert [setting["dtype"] for setting in figures["settings"]] == ["f32"]
    assert "computes in f32" in figures["missing"][0] and len(figures["missing"]) == 1
    assert figures["missing"][0] in capsys.readouterr().out


def test_ctrl_c_leaves_no_file_and_no_traceback(checkpoint, tmp_path):
    """Interrupted while it measures, it is quiet, at once, and leaves no process behind."""
    words = ["bench", checkpoint, "--engines", "eager", "--chunks", "1000000"]
    words += ["--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "speed.png")]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_policy_ros.cli.main", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    told = iter(process.stderr.readline, "")
    assert any("eager f32: loading" in line for line in told)
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=180)
    assert process.returncode == EXIT_INTERRUPTED
    assert "interrupted" in rest and "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
    assert _ends(process.pid)


def _ends(group: int) -> bool:
    """Whether all processes of a group end, Python's own tracker of semaphores the last."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_the_rule_stands_in_the_help(capsys):
    """A user need not guess what a yes means."""
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "replan_steps / rate" in " ".join(capsys.readouterr().out.split())
