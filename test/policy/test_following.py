"""Chunks that agree with actions decided before: exact where the answer is known."""

import dataclasses

import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.following import KINDS, Follow, following
from diffusion_policy_ros.policy.samplers import SAMPLERS, inference_timesteps, noise_source
from diffusion_policy_ros.policy.schedules import make_schedule, mixing_factors

SCHEDULE = make_schedule()
PREDICTS = ("epsilon", "sample", "v")
SHAPE = (2, 8, 3)


def gaussian(predicts, mean=0.3, std=1.0):
    """The exact denoiser of independent normal actions."""

    def denoise(sample, timestep):
        signal, spread = mixing_factors(SCHEDULE, timestep, sample)
        gain = signal * std**2 / (signal**2 * std**2 + spread**2)
        clean = mean + gain * (sample - signal * mean)
        noise = (sample - signal * clean) / spread
        return {"epsilon": noise, "sample": clean, "v": signal * noise - spread * clean}[predicts]

    return denoise


def seeded(seed=0):
    """A source of noise."""
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    """Standard normal numbers."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("kind", KINDS)
def test_standard_normal_actions_with_full_weight_are_the_ones_to_follow(kind, predicts):
    """The derivative is sqrt(abar) there: without bound and clip x_0' is Y, at each step."""
    goal = draw(*SHAPE, seed=1)
    follow = Follow(goal, torch.ones(8), kind)
    told = following(gaussian(predicts), SCHEDULE, predicts, follow, beta=1e9)
    for step in (99, 50, 3, 0):
        clean = told(draw(*SHAPE), torch.full((2,), step))
        torch.testing.assert_close(clean, goal, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_ends_where_it_was_led(kind, predicts, sampler):
    """Whatever the sampler and the target: what is fixed comes out, what is free stays free."""
    weights = torch.tensor([1.0] * 3 + [0.0] * 5)
    follow = Follow(draw(*SHAPE, seed=1), weights, kind)
    start, visited = draw(*SHAPE), inference_timesteps(100, 10)
    told = following(gaussian(predicts), SCHEDULE, predicts, follow, beta=1e9)
    led, free = (
        SAMPLERS[sampler](
            denoise,
            SCHEDULE,
            start,
            visited,
            prediction_type=target,
            clip=None,
            draw=noise_source(seeded()),
        )
        for denoise, target in ((told, "sample"), (gaussian(predicts), predicts))
    )
    torch.testing.assert_close(led[:, :3], follow.actions[:, :3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(led[:, 3:], free[:, 3:], rtol=1e-5, atol=1e-5)


def test_the_guidance_is_the_formula():
    """With soft weights, another spread than 1, bounded: x_0 + min(...) J^T W (Y - x_0)."""
    weights = torch.linspace(1, 0, 8, dtype=torch.float64)
    follow = Follow(draw(*SHAPE, seed=1), weights, "rtc")
    sample, denoise = draw(*SHAPE), gaussian("sample", std=0.5)
    for step in (99, 50, 0):
        at = torch.full((2,), step)
        abar = SCHEDULE.alphas_cumprod[step]
        clean, gain = denoise(sample, at), abar.sqrt() * 0.25 / (abar * 0.25 + 1 - abar)
        scale = min(float(abar**-0.5), 5.0 * float((1 - abar) ** 0.5))
        expected = clean + scale * gain * weights[:, None] * (follow.actions - clean)
        out = following(denoise, SCHEDULE, "sample", follow)(sample, at)
        torch.testing.assert_close(out, expected)


def test_the_derivative_tells_the_free_actions_of_the_fixed():
    """Where actions of a chunk go together, following the first moves the others, too."""

    def together(sample, timestep):
        return sample.mean(dim=1, keepdim=True).expand_as(sample)

    weights, start = torch.tensor([1.0] + [0.0] * 7), torch.zeros(SHAPE, dtype=torch.float64)
    at = torch.full((2,), 50)
    moved = {
        kind: following(together, SCHEDULE, "sample", Follow(torch.ones(SHAPE), weights, kind))(
            start, at
        )[:, 1:]
        for kind in KINDS
    }
    assert (moved["rtc"] > 0.1).all()
    assert (moved["rtc_cheap"] == 0).all() and (moved["inpaint"] == 0).all()


@pytest.fixture
def policy(recipe, contract, statistics):
    """A small untrained policy with a camera."""
    return make_policy(recipe, contract, statistics)


def make_policy(recipe, contract, statistics):
    """Of this recipe, ready to sample."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(recipe, contract)
    policy.set_statistics(statistics)
    return policy.eval()


def inside(policy, batch, steps):
    """A chunk to follow that the policy could give, and weights that fix its first three."""
    earlier = policy.sample(batch, generator=seeded(7))
    return earlier, torch.tensor([1.0] * 3 + [0.5] + [0.0] * (steps - 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_policy_follows_with_every_sampler_and_target(
    recipe, contract, statistics, batch, sampler, predicts, kind
):
    """In physical units. Inpainting is exact; an untrained network's derivative tells nothing."""
    changes = {"prediction_type": predicts, "sampler": sampler}
    recipe = dataclasses.replace(recipe, policy=dataclasses.replace(recipe.policy, **changes))
    policy = make_policy(recipe, contract, statistics)
    actions, weights = inside(policy, batch, 8)
    free = policy.sample(batch, generator=seeded())
    led = policy.sample(batch, generator=seeded(), follow=Follow(actions, weights, kind))
    assert led.shape == free.shape and torch.isfinite(led).all()
    away, near = ((out - actions)[:, :3].abs().mean() for out in (free, led))
    assert near < away or kind == "rtc"
    if kind == "inpaint":
        torch.testing.assert_close(led[:, :3], actions[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"pred_action_steps_only": True},
        {"conditioning": "inpainting"},
        {"conditioning": "local"},
        {"observation_dropout": 0.1},
    ],
)
def test_every_way_of_conditioning_is_followed(contract, recipe, statistics, batch, changes):
    """Executed steps only, actions and observations in one sequence, guidance: derivative too."""
    if changes.get("conditioning") == "inpainting":
        contract = Contract.from_text(
            "\n".join(
                line for line in contract.text.splitlines() if "camera: {" not in line
            ).replace("anchor: camera", "anchor: position")
        )
    recipe = dataclasses.replace(recipe, policy=dataclasses.replace(recipe.policy, **changes))
    policy = make_policy(recipe, contract, statistics)
    steps = recipe.policy.predicted_steps
    actions, weights = inside(policy, batch, steps)
    guidance = 2.0 if "observation_dropout" in changes else 1.0
    out = {
        kind: policy.sample(
            batch, generator=seeded(), guidance=guidance, follow=Follow(actions, weights, kind)
        )
        for kind in KINDS
    }
    assert all(chunk.shape == (5, steps, 8) for chunk in out.values())
    torch.testing.assert_close(out["inpaint"][:, :3], actions[:, :3], rtol=1e-4, atol=1e-5)
    assert not torch.equal(out["rtc"], out["rtc_cheap"])


def test_the_derivative_needs_nothing_of_its_caller(policy, batch):
    """In inference mode, without gradients, on a thread of one's own: the same chunk, no graph."""
    follow = Follow(*inside(policy, batch, 8))
    expected = policy.sample(batch, generator=seeded(), follow=follow)
    with torch.inference_mode():
        noise = noise_source(seeded())(torch.empty(5, 8, 8))
        tensors = {k: torch.from_numpy(v) for k, v in batch.items()}
        made = Follow(follow.actions.clone(), follow.weights.clone())
        out = policy.sample(tensors, noise=noise, follow=made)
    assert torch.equal(out, expected) and not out.requires_grad
    assert all(p.grad is None for p in policy.parameters())


def test_nothing_to_follow_is_the_chunk_itself(recipe, contract, statistics, batch):
    """Without, bit by bit; with weights of zero, where no clip binds, up to rounding."""
    unclipped = dataclasses.replace(recipe.policy, clip_sample=False)
    policy = make_policy(dataclasses.replace(recipe, policy=unclipped), contract, statistics)
    free = policy.sample(batch, generator=seeded())
    assert torch.equal(policy.sample(batch, generator=seeded(), follow=None), free)
    for kind in KINDS:
        follow = Follow(torch.zeros(5, 8, 8), torch.zeros(8), kind)
        led = policy.sample(batch, generator=seeded(), follow=follow)
        torch.testing.assert_close(led, free, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("follow", "message"),
    [
        (Follow(torch.zeros(5, 7, 8), torch.ones(8)), r"give \(5, 8, 8\)"),
        (Follow(torch.zeros(5, 8, 8), torch.ones(7)), r"give \(8,\)"),
        (Follow(torch.zeros(5, 8, 8), torch.ones(8), "rtc_chaep"), "did you mean 'rtc_cheap'"),
    ],
)
def test_what_does_not_fit_is_not_followed(policy, batch, follow, message):
    """Shape and kind are checked, with the cure."""
    with pytest.raises(UserError, match=message):
        policy.sample(batch, follow=follow)
