"""`diffusion-policy eval` on a tiny untrained policy."""

import json

import pytest

from diffusion_policy_ros.cli.main import main
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


def test_figures_are_printed_and_written(checkpoint, tmp_path, capsys):
    """The JSON has success, steps and milliseconds, and with what they were measured."""
    file = tmp_path / "new" / "figures.json"
    words = ["eval", checkpoint, "--episodes", "2", "--steps", "1", "--delay", "1"]
    words += ["--engine", "eager", "--device", "cpu", "--json"]
    assert main([*words, str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures.pop("ms_per_chunk") > 0
    assert figures == {
        "success_rate": 0.0, "episodes": 2, "mean_steps": 200.0, "checkpoint": checkpoint,
        "engine": "eager", "dtype": "f32", "device": "cpu", "sampler": "ddim",
        "num_inference_steps": 1, "replan_steps": 4, "chunk_join": "replace",
        "first_seed": 10000, "delay_frames": 1,
    }  # fmt: skip
    told = capsys.readouterr().out
    assert "0 of 2 episodes succeeded" in told and "(eager f32 on cpu, ddim, K=1)" in told
    assert "latency 1 frame," in told


def test_the_precision_is_told(checkpoint, tmp_path, capsys):
    """Rounded weights are another policy."""
    pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[openvino]'")
    assert main(["eval", checkpoint, "--episodes", "1", "--steps", "1", "--engine", "eager"]) == 0
    assert "(eager f32 on cpu," in capsys.readouterr().out
    assert main(["eval", checkpoint, "--engine", "openvino", "--dtype", "foo"]) == 2
    from diffusion_policy_ros.engine.compiled import capabilities

    known = ", ".join(sorted(capabilities()))  # the processor's own
    assert f"unknown precision 'foo'; use one of: {known}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "0"], "use 1 to 100"),
        (["--steps", "101"], "use 1 to 100"),
        (["--sampler", "ddimm"], "did you mean 'ddim'?"),
        (["--replan-steps", "9"], "use 1 to 8"),
        (["--chunk-join", "rct"], "did you mean 'rtc'?"),
        (["--sim", "mini"], "did you mean 'mini_lift'?"),
        (["--episodes", "0"], "episodes must be 1 or more"),
        (["--device", "gpu"], "no device 'gpu'"),
        (["--engine", "eagre"], "did you mean 'eager'?"),
        (["--engine", "int8"], "as in --dtype int8"),
        (["--engine", "eager", "--dtype", "f8"], "computes in f32"),
        (["--seed", "-1"], "seed must be 0 or more"),
        (["--seed", "99999999999999999999"], "2147483647 at most"),
        (["--delay", "-1"], "delay must be 0 or more"),
        (["--delay", "8"], "use 0 to 7"),
        (["--threads", "-1"], "threads must be 0 or more"),
        (["--threads", "100000"], "the cores that there are"),
        (["--json", "/"], "is a folder"),
        (["--json", "/dev/null/figures.json"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(checkpoint, words, expected, capsys):
    """With what would be valid."""
    assert main(["eval", checkpoint, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and error.startswith("error: ") and "\n" not in error


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    """The path stands in the message."""
    assert main(["eval", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
