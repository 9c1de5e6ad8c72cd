"""How policies are told of observations: against the reference's whole policies, and guidance."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.interop.official import (
    FINAL_GROUPS,
    transformer_name,
    unet1d_name,
)
from diffusion_policy_ros.policy.denoisers import Condition
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy, Draws
from diffusion_policy_ros.policy.recipe import Recipe

GOLDEN = Path(__file__).parents[1] / "golden"
POLICIES = sorted(path.stem for path in GOLDEN.glob("official_policy_*.npz"))

CONTRACT = """
name: golden
rate_hz: 10
anchor: obs
observations:
  obs: {topic: /obs, type: sensor_msgs/msg/JointState, shape: [9]}
action:
  fields: [{name: joints, kind: joint_position, size: 7}]
  record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}
"""


def settings_of(config):
    """The recipe that is the reference's configuration."""
    network = dict(config["network"])
    kind, how = network.pop("kind"), "inpainting"
    for theirs, ours in (("global", "global"), ("local", "local"), ("", "tokens")):
        if config.get("_".join(filter(None, ["obs_as", theirs, "cond"]))):
            how = ours
    given = ("input_dim", "output_dim", "cond_dim", "global_cond_dim", "local_cond_dim")
    denoiser = {k: v for k, v in network.items() if k not in (*given, "horizon", "n_obs_steps")}
    if kind == "unet1d":
        denoiser["final_n_groups"] = FINAL_GROUPS
    return {
        "n_obs_steps": config["n_obs_steps"],
        "horizon": config["horizon"],
        "n_action_steps": config["n_action_steps"],
        "prediction_type": config["prediction_type"],
        "timestep_spacing": "leading",
        "num_inference_steps": config["num_inference_steps"],
        "conditioning": how,
        "pred_action_steps_only": config.get("pred_action_steps_only", False),
        "denoiser": {"name": kind, **denoiser},
    }


def golden(name):
    """A policy with the reference's weights and statistics, and its numbers."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    recipe = Recipe.from_text(
        json.dumps({"policy": settings_of(json.loads(str(arrays["config"])))})
    )
    policy = DiffusionPolicy(recipe, Contract.from_text(CONTRACT))
    bounds = {key: arrays[f"fit/{key}"] for key in ("obs", "action")}
    policy.set_statistics({k: {"min": v.min(0), "max": v.max(0)} for k, v in bounds.items()})
    rename = unet1d_name if "unet" in name else transformer_name
    unused = ("local_cond_encoder.1.", "_dummy_variable", "mask", "memory_mask")
    state = {
        rename(key.removeprefix("state/")): torch.from_numpy(arrays[key])
        for key in arrays.files
        if key.startswith("state/") and not key.removeprefix("state/").startswith(unused)
    }
    policy.denoiser.load_state_dict(state, strict=True)
    return policy.eval(), arrays


@pytest.mark.parametrize("name", POLICIES)
def test_samples_equal_the_reference_s(name):
    """The same start gives the same chunk within 1e-4, from the observed frames alone."""
    policy, arrays = golden(name)
    seen = {"obs": arrays["obs"][:, : policy.recipe.policy.n_obs_steps]}
    out = policy.sample(seen, noise=torch.from_numpy(arrays["sample/x_T"]))
    np.testing.assert_allclose(out, arrays["sample/action_pred"], atol=1e-4, rtol=1e-4)
    executed = out[:, policy.recipe.policy.executed]
    np.testing.assert_allclose(executed, arrays["sample/action"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_losses_equal_the_reference_s(name):
    """The same noise and steps give the same loss within 1e-5."""
    policy, arrays = golden(name)
    seen = arrays["obs"][:, : policy.recipe.policy.training_obs_steps]
    noise, steps = (torch.from_numpy(arrays[f"loss/{k}"])[:, None] for k in ("noise", "timesteps"))
    batch = {"obs": seen, "action": arrays["action"]}
    loss = policy.loss(batch, draws=Draws(None, noise, steps)).item()
    assert loss == pytest.approx(float(arrays["loss/value"]), rel=1e-5)


def test_all_golden_policies_are_tested():
    """Both networks, all ways of conditioning, both targets."""
    assert len(POLICIES) == 7


def tiny(**changes):
    """A policy for the golden robot that samples in milliseconds."""
    policy = {
        "horizon": 8,
        "n_action_steps": 4,
        "num_train_timesteps": 20,
        "num_inference_steps": 3,
        "denoiser": {"name": "mlp", "hidden_size": 16, "num_layers": 2},
        **changes,
    }
    torch.manual_seed(0)
    recipe = Recipe.from_text(json.dumps({"policy": policy}))
    return DiffusionPolicy(recipe, Contract.from_text(CONTRACT)).eval()


UNET = {"name": "unet1d", "down_dims": [8, 16], "n_groups": 4, "diffusion_step_embed_dim": 8}
TRANSFORMER = {"name": "transformer", "n_layer": 1, "n_emb": 16, "p_drop_attn": 0.5}
WAYS = [
    {},
    {"pred_action_steps_only": True},
    {"temporal_encoder": {"hidden_size": 6, "num_layers": 2}},
    {"temporal_encoder": {"name": "mlp", "hidden_size": 6, "num_layers": 2}},
    {"conditioning": "inpainting"},
    {"denoiser": UNET, "conditioning": "local"},
    {"denoiser": UNET, "conditioning": "inpainting"},
    {"denoiser": TRANSFORMER},
    {"denoiser": TRANSFORMER, "pred_action_steps_only": True},
    {"denoiser": TRANSFORMER, "conditioning": "global", "temporal_encoder": {}},
    {"denoiser": {**TRANSFORMER, "time_as_cond": False}},
]


def batch_for(policy, size=3):
    """Random windows, as this policy is trained with."""
    random, settings = np.random.default_rng(0), policy.recipe.policy
    return {
        "obs": random.normal(size=(size, settings.training_obs_steps, 9)).astype(np.float32),
        "action": random.uniform(-1, 1, (size, 8, 7)).astype(np.float32),
        "action_is_pad": np.zeros((size, 8), dtype=bool),
    }


@pytest.mark.parametrize("changes", WAYS)
def test_every_way_trains_all_weights_and_samples_chunks(changes):
    """One step down the gradient lowers the loss; the chunk is of the executed or all steps."""
    policy = tiny(**changes).train()
    batch = batch_for(policy)
    draws = policy.draw(3, torch.Generator().manual_seed(0))
    loss = policy.loss(batch, draws=draws)
    loss.backward()
    assert all(weight.grad is not None for weight in policy.parameters())
    with torch.no_grad():
        for weight in policy.parameters():
            weight -= 1e-3 * weight.grad
        assert policy.loss(batch, draws=draws) < loss
    out = policy.eval().sample({"obs": batch["obs"][:, :2]})
    assert out.shape == (3, policy.recipe.policy.predicted_steps, 7)


@pytest.mark.parametrize("changes", WAYS)
def test_a_loss_is_a_function_of_its_draws(changes):
    """Dropout and hidden observations too; and no global generator moves."""
    if changes.get("conditioning") != "inpainting" and "time_as_cond" not in str(changes):
        changes = {**changes, "observation_dropout": 0.5}
    policy = tiny(**changes).train()
    batch, before = batch_for(policy), torch.random.get_rng_state()
    draws = policy.draw(3, torch.Generator().manual_seed(1))
    assert policy.loss(batch, draws=draws) == policy.loss(batch, draws=draws)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_given_stays_and_what_comes_later_is_not_looked_at():
    """Inpainting tells observations up to the newest frame; the rest of the window is learned."""
    policy = tiny(conditioning="inpainting")
    frames = torch.randn(2, 2, 9)
    condition = policy.encode({"obs": frames})
    inside = condition.inpainted(torch.full((2, 8, 16), 7.0))
    assert torch.equal(inside[:, :2, 7:], policy.normalizer["obs"].normalize(frames))
    assert (inside[:, 2:] == 7).all()
    assert (inside[..., :7] == 7).all()


@pytest.mark.parametrize("changes", [{}, {"denoiser": UNET, "conditioning": "local"}])
def test_guidance_moves_away_from_what_it_would_do_blindly(changes):
    """1 is the plain answer, 0 the blind one, 2 as far again beyond."""
    policy = tiny(observation_dropout=0.1, **changes)
    condition = policy.encode({"obs": torch.randn(2, 2, 9)})
    sample, step = torch.randn(2, 8, 7), torch.tensor([3, 3])
    with torch.inference_mode():
        told, untold = (policy.denoiser(sample, step, c) for c in (condition, condition.hidden()))
        for scale in (0.0, 1.0, 2.0):
            out = policy.predict(sample, step, condition, scale)
            torch.testing.assert_close(out, untold + scale * (told - untold))


def test_the_share_of_hidden_observations_is_the_recipe_s():
    """In training only; whose is hidden is told nothing, the others all."""
    policy = tiny(observation_dropout=0.25).train()
    hidden = policy.draw(4000, torch.Generator().manual_seed(0)).hidden
    assert hidden.float().mean() == pytest.approx(0.25, abs=0.03)
    assert policy.eval().draw(10).hidden is None
    condition = policy.encode({"obs": torch.randn(3, 2, 9)})
    part = condition.hidden(torch.tensor([True, False, True])).global_cond
    assert (part[[0, 2]] == 0).all()
    assert torch.equal(part[1], condition.global_cond[1])


def test_a_hidden_observation_is_a_learned_one():
    """The null of condition_dropout: it gets a gradient, stands in the blind answer, is saved."""
    policy = tiny(condition_dropout=0.5).train()
    assert dict(policy.null) and not hasattr(tiny(observation_dropout=0.5).null, "global_cond")
    draws = policy.draw(6, torch.Generator().manual_seed(0))
    policy.loss(batch_for(policy, 6), draws=draws).backward()
    null = policy.null["global_cond"]
    assert null.grad.abs().sum() > 0
    torch.nn.init.normal_(null)
    condition = policy.eval().encode({"obs": torch.randn(2, 2, 9)})
    sample, step = torch.randn(2, 8, 7), torch.tensor([3, 3])
    blind = policy.predict(sample, step, condition, 0.0)
    expected = policy.denoiser(sample, step, Condition(global_cond=null.expand(2, -1)))
    torch.testing.assert_close(blind, expected)
    assert "null.global_cond" in policy.state_dict()


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_that_mean_nothing_are_refused(scale):
    """A policy without dropout takes 1 alone; one with it, what is 0 or more."""
    with pytest.raises(UserError, match="use 0 or more"):
        tiny(observation_dropout=0.1).sample(
            {"obs": np.zeros((1, 2, 9), np.float32)}, guidance=scale
        )
    with pytest.raises(UserError, match="trained without guidance"):
        tiny().sample({"obs": np.zeros((1, 2, 9), np.float32)}, guidance=2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioning": "local"}, "policy.conditioning: mlp has no local.*global or inpainting"),
        (
            {"conditioning": "inpainting", "pred_action_steps_only": True},
            "policy.pred_action_steps_only: inpainting conditioning needs",
        ),
        (
            {"conditioning": "inpainting", "observation_dropout": 0.1},
            "policy.observation_dropout: inpainting has no condition to hide",
        ),
        (
            {"condition_dropout": 0.1, "observation_dropout": 0.1},
            "policy.observation_dropout: condition_dropout is given, too; leave it out",
        ),
        (
            {"denoiser": TRANSFORMER, "temporal_encoder": {}},
            "policy.temporal_encoder: tokens conditioning takes each frame",
        ),
        (
            {"denoiser": UNET, "pred_action_steps_only": True, "n_action_steps": 5},
            "policy.n_action_steps: 5 steps cannot be halved 1 times; use 4 or 6",
        ),
        ({"denoiser": {"name": "unet"}}, "policy.denoiser.name: 'unet' is not.*'unet1d'"),
        ({"denoiser": {"name": "mlp", "n_emb": 4}}, "policy.denoiser.n_emb: unknown key"),
    ],
)
def test_settings_that_contradict_each_other_name_the_cure(changes, message):
    """Found when the recipe is read."""
    with pytest.raises(UserErrors, match=message):
        tiny(**changes)


def test_inpainting_of_images_is_refused(contract):
    """Features that are learned while they are predicted would collapse."""
    recipe = Recipe.from_text("policy: {conditioning: inpainting}")
    with pytest.raises(UserError, match="inpainting is for vectors, 'camera' is an image"):
        DiffusionPolicy(recipe, contract)
