"""Recipes: strict, overridable, and written out whole."""

import dataclasses

import pytest

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.policy.denoisers import DENOISERS
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.eyes import IMAGE_ENCODERS
from diffusion_policy_ros.policy.recipe import Recipe, parse_overrides
from diffusion_policy_ros.policy.samplers import PREDICTION_TYPES, SAMPLERS, SPACINGS
from diffusion_policy_ros.policy.schedules import SCHEDULES
from diffusion_policy_ros.shipped import config_names


@pytest.mark.parametrize("name", config_names("recipes"))
def test_shipped_recipes_are_without_mistakes_and_survive_a_round_trip(name):
    """What a checkpoint writes of a recipe reads back equal."""
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert Recipe.from_text(recipe.to_text()) == recipe


@pytest.mark.parametrize("name", config_names("recipes"))
def test_a_chunk_of_a_shipped_recipe_lasts_until_the_next_is_there(name):
    """Begun when the one before is used up, every chunk would come late."""
    policy = Recipe.load(name).policy
    assert policy.frames_between_inferences < policy.n_action_steps


@pytest.mark.parametrize(
    ("recipe", "contract", "millions"),
    [("mini_lift", "mini_lift", 1.18), ("mini_lift_state", "mini_lift_state", 0.77)],
)
def test_the_demo_s_recipes_are_small(recipe, contract, millions):
    """They have the size that two cores train in minutes."""
    policy = DiffusionPolicy(Recipe.load(recipe), Contract.load(contract))
    parameters = sum(weight.numel() for weight in policy.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_recommended_networks_are_the_published_ones():
    """ResNet-18 encoders of 11.2 M parameters, 278 condition values and a U-Net of 18.3 M."""
    policy = DiffusionPolicy(Recipe.load("recommended"), Contract.load("robomimic_can"))
    encoders = [sum(w.numel() for w in c.parameters()) for c in policy.encoder.cameras.values()]
    assert all(count / 1e6 == pytest.approx(11.2, abs=0.05) for count in encoders)
    assert policy.denoiser.global_cond_dim == 278
    unet = sum(weight.numel() for weight in policy.denoiser.parameters())
    assert unet / 1e6 == pytest.approx(18.3, abs=0.05)


def test_choices_are_the_tables():
    """Every name that a table has can be written in a recipe."""
    for key, table in {
        "policy.schedule": SCHEDULES,
        "policy.sampler": SAMPLERS,
        "policy.timestep_spacing": SPACINGS,
        "policy.prediction_type": PREDICTION_TYPES,
        "policy.denoiser.name": DENOISERS,
        "policy.image_encoder.name": IMAGE_ENCODERS,
    }.items():
        for name in table:
            Recipe.from_text("name: x", overrides={key: name})


def test_all_mistakes_are_reported_at_once_with_key_line_and_cure():
    """An unknown key suggests the near one; types and choices are checked."""
    text = "policy:\n  horizn: 16\n  prediction_type: eps\ntraining:\n  lr: fast\n  updates: 0\n"
    with pytest.raises(UserErrors) as caught:
        Recipe.from_text(text, "my.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "my.yaml:2: policy.horizn: unknown key; did you mean 'horizon'?"
    assert "my.yaml:3: policy.prediction_type" in lines[1]
    assert "my.yaml:5: training.lr: expected a number" in lines[2]
    assert "my.yaml:6: training.updates: 0 is out of range" in lines[3]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "policy.horizon",
            "15",
            "policy.horizon: 15 steps cannot be halved 2 times; use 12 or 16",
        ),
        ("policy.n_action_steps", "16", "only 15 follow the newest frame"),
        ("policy.replan_steps", "9", "a chunk lasts 8 frames"),
        ("policy.num_inference_steps", "101", "use 1 to 100"),
        ("policy.denoiser.down_dims", "[10]", "multiples of n_groups = 8"),
        ("policy.denoiser.kernel_size", "4", "use 3 or 5"),
        ("policy.denoiser.n_groups", "0", "n_groups: 0 is out of range"),
        ("policy.image_encoder.crop_shape", "[76]", "write [height, width]"),
        ("training.betas", "[0.9]", "give two numbers"),
    ],
)
def test_settings_that_contradict_each_other_name_the_cure(key, value, message):
    """What no type can show is found when the recipe is read, not in the loop."""
    with pytest.raises(UserError) as caught:
        Recipe.from_text("name: x", overrides={key: value})
    assert message in str(caught.value)


def test_overrides_win_over_the_file():
    """Dotted keys of the command line reach every level."""
    words = ["training.updates=500", "policy.horizon=32", "policy.denoiser.down_dims=[64, 128]"]
    recipe = Recipe.load("mini_lift", parse_overrides(words))
    assert recipe.training.updates == 500
    assert recipe.policy.horizon == 32
    assert recipe.policy.denoiser.down_dims == (64, 128)
    changed = dataclasses.replace(recipe.training, updates=3500)
    assert changed.batch_size == Recipe.load("mini_lift").training.batch_size


def test_an_override_changes_one_place_of_an_alias():
    """What else refers to the same lines stays."""
    text = "policy: {image_encoders: {left: &own {crop: 0.5}, right: *own}}"
    recipe = Recipe.from_text(text, overrides={"policy.image_encoders.left.crop": "0.7"})
    eyes = recipe.policy.image_encoders
    assert (eyes["left"].crop, eyes["right"].crop) == (0.7, 0.5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.updates=five", "training.updates: expected a whole number, got 'five'"),
        ("training.updates=[", "training.updates: expected a whole number, got '['"),
        ("training.betas=[a, 1]", "training.betas.0: expected a number, got 'a'"),
        ("trainin.updates=5", "trainin: unknown key; did you mean 'training'?"),
        ("training=5", "training: expected 'key: value' pairs, got '5'"),
        ("policy.temporal_encoder=gru", "got 'gru'; write it as {name: gru}"),
        ("policy.denoiser=transformer", "got 'transformer'; write it as {name: transformer}"),
    ],
)
def test_a_mistake_in_a_setting_is_of_the_command_line(word, message):
    """It is not said to stand in a line of the file."""
    with pytest.raises(UserErrors) as caught:
        Recipe.from_text("training:\n  updates: 7", "my.yaml", parse_overrides([word]))
    assert message in str(caught.value)
    assert "my.yaml" not in str(caught.value) and "command line: " in str(caught.value)


def test_words_that_are_no_settings_are_refused():
    """A forgotten '=' and an unknown recipe say what to write instead."""
    with pytest.raises(UserError, match="write training.updates=500"):
        parse_overrides(["updates"])
    with pytest.raises(UserError, match="no such recipe.*recommended"):
        Recipe.load("recomended")


def test_frames_between_inferences_are_half_a_chunk_unless_given():
    """The other half is executed while the next one is computed."""
    assert Recipe().policy.frames_between_inferences == 4
    single = Recipe.from_text("policy: {n_action_steps: 1}")
    assert single.policy.frames_between_inferences == 1
    recipe = Recipe.from_text("policy: {replan_steps: 3}")
    assert recipe.policy.frames_between_inferences == 3
