"""Targets, samplers and weightings as a recipe chooses them."""

import pytest
import torch

from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.policy.checkpoint import load_policy, save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import RANGES
from diffusion_policy_ros.policy.objective import WEIGHTINGS
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.samplers import PREDICTION_TYPES, SAMPLERS, VARIANCES


@pytest.fixture
def make(recipe, contract, statistics):
    """A policy of the small recipe with other settings."""

    def build(**overrides):
        keys = {key.replace("__", "."): str(value) for key, value in overrides.items()}
        policy = DiffusionPolicy(Recipe.from_text(recipe.to_text(), "x", keys), contract)
        policy.set_statistics(statistics)
        return policy.eval()

    return build


def seeded():
    """The same random numbers each time."""
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_every_target_trains_and_samples(make, batch, prediction, weighting):
    """The loss falls, and every sampler stays within the data's range."""
    policy = make(policy__prediction_type=prediction, training__loss_weighting=weighting)
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        loss = policy.loss(batch, seeded())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    for name in SAMPLERS:
        out = policy.sample(batch, sampler=name, generator=seeded())
        normalised = policy.normalizer["action"].normalize(out)
        assert normalised.abs().max() < 1.5


def test_the_weighting_changes_the_loss(make, batch):
    """And gamma does, where it is used."""
    plain = make().loss(batch, seeded())
    weighted = make(training__loss_weighting="min_snr").loss(batch, seeded())
    tighter = make(training__loss_weighting="min_snr", training__min_snr_gamma=1)
    assert plain != weighted
    assert tighter.loss(batch, seeded()) < weighted


@pytest.mark.parametrize(
    ("sampler", "key", "value"), [("ddim", "eta", 1.0), ("ddpm", "variance", "fixed_large")]
)
def test_the_recipes_noise_reaches_the_sampler(make, batch, sampler, key, value):
    """Eta and variance change what their own sampler gives."""
    usual, other = make(), make(**{f"policy__{key}": value})
    other.load_state_dict(usual.state_dict())
    one, two = (p.sample(batch, sampler=sampler, generator=seeded()) for p in (usual, other))
    assert not torch.equal(one, two)


def test_the_range_of_clipping_is_the_recipes(make, batch):
    """Samples end there, whatever the network says."""
    policy = make(policy__clip_range=2)
    with torch.no_grad():
        for weight in policy.denoiser.parameters():
            weight.mul_(100)
    out = policy.normalizer["action"].normalize(policy.sample(batch, generator=seeded()))
    moving = policy.normalizer["action"].spread > 0
    assert float(out[..., moving].abs().max()) == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("policy.prediction_type", "noise", "is not a valid choice"),
        ("policy.sampler", "dpm", "did you mean 'ddpm'"),
        ("policy.variance", "fixed_larg", "did you mean 'fixed_large'"),
        ("policy.eta", "1.5", "use a value from 0.0 to 1.0"),
        ("policy.clip_range", "0", "out of range"),
        ("policy.num_inference_steps", "21", "21, trained with 20; use 1 to 20"),
        ("policy.normalization.vectors", "gausian", "did you mean 'gaussian'"),
        ("policy.normalization.positions", "limits", "unknown key"),
        ("training.loss_weighting", "minsnr", "did you mean 'min_snr'"),
        ("training.min_snr_gamma", "0", "out of range"),
    ],
)
def test_a_setting_that_does_not_exist_is_named(recipe, key, value, expected):
    """Its key and the cure."""
    with pytest.raises(UserErrors, match=key) as caught:
        Recipe.from_text(recipe.to_text(), "x", {key: value})
    assert expected in str(caught.value)


def test_more_steps_than_trained_are_refused_when_sampling(make, batch):
    """Not passed over in silence."""
    with pytest.raises(UserError, match="21 inference steps, trained with 20; use 1 to 20"):
        make().sample(batch, steps=21)


def test_choices_of_recipe_and_code_are_the_same(recipe):
    """Every variance, weighting and normalisation can be written."""
    tables = {
        "policy.variance": VARIANCES,
        "training.loss_weighting": WEIGHTINGS,
        "policy.normalization.vectors": RANGES,
        "policy.normalization.orientations": RANGES,
        "policy.normalization.actions": RANGES,
        "policy.normalization.keys.position": RANGES,
        "policy.normalization.fields.grip": RANGES,
    }
    for key, table in tables.items():
        for name in table:
            made = Recipe.from_text("name: x", overrides={key: name})
            assert Recipe.from_text(made.to_text()) == made


def test_a_checkpoint_keeps_what_it_was_trained_for(make, batch, tmp_path):
    """Target, clipping and normalisation come back with the weights."""
    policy = make(policy__prediction_type="v", policy__normalization__keys__position="identity")
    loaded = load_policy(save_checkpoint(tmp_path / "c", policy))
    assert loaded.recipe == policy.recipe
    one, two = (p.sample(batch, generator=seeded()) for p in (policy, loaded))
    assert torch.equal(one, two)
