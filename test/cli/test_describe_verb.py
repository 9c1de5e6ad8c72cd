"""`diffusion-policy describe`: what is printed of recipes and checkpoints, and mistakes."""

import re

import pytest

from diffusion_policy_ros.cli.describe import made_for
from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.shipped import config_names


def run(capsys, *words):
    """Exit code, stdout, stderr."""
    code = main(["describe", *map(str, words)])
    found = capsys.readouterr()
    return code, found.out, found.err


# What the denoiser gets, how large it is, and what it gives, with the published settings.
PUBLISHED = {
    "image_unet": ("(16, 7), condition 274", "255.6 M", "112 values"),
    "image_transformer": ("(10, 7), tokens 2x137", "9.0 M", "70 values"),
    "lowdim_unet": ("(16, 7), condition 46", "65.9 M", "112 values"),
    "lowdim_transformer": ("(10, 7), tokens 2x23", "9.0 M", "70 values"),
}


@pytest.mark.parametrize("task", ["can", "square"])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_numbers(capsys, task, kind):
    """Condition, parameters and output of the original's settings, without building weights."""
    code, out, _ = run(capsys, f"{task}_{kind}", "--chunks", 0)
    assert code == 0
    for number in PUBLISHED[kind]:
        assert number in out
    assert f"contract  robomimic_{task}" in out
    assert "100 steps of squaredcos_cap_v2" in out
    assert "100 steps of ddpm" in out
    assert "speed" not in out
    assert ("11.2 M" in out) == kind.startswith("image")


@pytest.mark.parametrize("recipe", config_names("recipes"))
def test_every_shipped_recipe_is_described(capsys, recipe):
    """With the contract that it was made for."""
    code, out, _ = run(capsys, recipe, "--chunks", 0)
    assert code == 0
    assert f"contract  {made_for(recipe)}," in out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("pred_action_steps_only: true", ["(8, 7), condition 38", "56 values (Ta * Da)"]),
        ("conditioning: local", ["(16, 7), local 16x19"]),
        ("conditioning: inpainting", ["(16, 26), a part given", "112 values (H * Da)"]),
        ("temporal_encoder: {hidden_size: 32}", ["(16, 7), condition 32", "temporal"]),
    ],
)
def test_other_conditionings(capsys, tmp_path, settings, words):
    """Shapes follow the settings; 19 values are observed a frame."""
    path = tmp_path / "mini_lift_state.yaml"
    path.write_text(f"name: mini_lift_state\npolicy: {{{settings}}}\n")
    code, out, err = run(capsys, path, "--chunks", 0)
    assert code == 0, err
    for word in words:
        assert word in out


def test_fast_inference_is_smaller_and_takes_fewer_steps():
    """Than what is recommended otherwise."""
    fast, usual = (Recipe.load(name).policy for name in ("fast_inference", "recommended"))
    assert fast.num_inference_steps < usual.num_inference_steps
    assert max(fast.denoiser.down_dims) < max(usual.denoiser.down_dims)
    assert fast.horizon == usual.horizon


def test_a_checkpoint_is_measured(capsys, tmp_path):
    """With its own contract; the shapes and numbers are the recipe's."""
    settings = {"policy.denoiser": "{down_dims: [16, 32], n_groups: 4, kernel_size: 3}"}
    recipe = Recipe.load("mini_lift_state", settings)
    save_checkpoint(tmp_path / "it", DiffusionPolicy(recipe, Contract.load("mini_lift_state")))
    code, out, _ = run(capsys, tmp_path / "it", "--chunks", 2, "--device", "cpu")
    assert code == 0
    assert "contract  mini_lift_state" in out
    assert re.search(r"speed     \d+\.\d ms a chunk, median of \d \(cpu, .* engine \w+\)", out)


def test_mistakes_are_one_line(capsys, tmp_path):
    """Unknown recipes, folders without a checkpoint, and a contract of another robot."""
    for words, match in (
        (["recomended"], "no such recipe"),
        ([tmp_path], "there is no checkpoint here"),
        (["recommended", "--contract", "nobody"], "no such contract"),
        (["recommended", "--chunks", -1], "chunks must be 0 or more"),
    ):
        code, _, err = run(capsys, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert match in err
