"""Chunks that agree with actions decided before: exact where the answer is known."""

import pytest
import torch

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
