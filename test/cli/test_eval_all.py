"""`diffusion-policy eval RUN --all` on untrained policies."""

import json

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe

TINY = "policy: {denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}}"


def test_every_checkpoint_of_a_run_is_a_line(tmp_path, capsys):
    """Oldest first, with a head; the best one's path last; the same as JSON."""
    policy = DiffusionPolicy(Recipe.from_text(TINY), Contract.load("mini_lift_state"))
    for name in ("update_000010", "update_000020"):
        save_checkpoint(tmp_path / "run" / "checkpoints" / name, policy)
    file = tmp_path / "figures.json"
    words = ["--episodes", "1", "--steps", "1", "--engine", "eager", "--json", str(file)]
    assert main(["eval", str(tmp_path / "run"), "--all", *words]) == 0
    head, first, second, best = capsys.readouterr().out.strip().splitlines()
    assert head.split()[:2] == ["checkpoint", "success"]
    assert first.split()[:3] == ["update_000010", "0.0%", "200.0"]
    assert second.startswith("update_000020")
    assert best == f"best: {tmp_path / 'run' / 'checkpoints' / 'update_000010'}"
    rows = json.loads(file.read_text())["checkpoints"]
    assert [row["checkpoint"] for row in rows] == ["update_000010", "update_000020"]
    assert rows[0].keys() >= {"success_rate", "mean_steps", "ms_per_chunk"}


def test_all_needs_a_run(tmp_path, capsys):
    """Refused with the cure."""
    assert main(["eval", str(tmp_path), "--all"]) == 2
    assert "no checkpoints of a run here; give a run" in capsys.readouterr().err
