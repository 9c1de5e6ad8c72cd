"""Noise schedules against diffusers and closed forms."""

import dataclasses
import math

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.schedules import (
    SCHEDULES,
    NoiseSchedule,
    add_noise,
    make_schedule,
)


@pytest.mark.parametrize("steps", [1, 2, 50, 100, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_equal_diffusers(name, steps):
    """Betas and their products are diffusers' own, to the float32 of its cumulative product."""
    ours = make_schedule(name, steps)
    theirs = DDPMScheduler(steps, beta_schedule=name)
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    product = ours.alphas_cumprod.float()
    torch.testing.assert_close(product, theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_agree_with_each_other(name):
    """Signal and noise always have unit variance together, and signal only falls."""
    schedule = make_schedule(name, 100)
    total = schedule.sqrt_alphas_cumprod**2 + schedule.sqrt_one_minus_alphas_cumprod**2
    torch.testing.assert_close(total, torch.ones(100).double())
    assert (schedule.alphas_cumprod.diff() < 0).all()
    torch.testing.assert_close(schedule.alphas_cumprod_prev[1:], schedule.alphas_cumprod[:-1])
    torch.testing.assert_close(schedule.sqrt_recip_alphas**-2, schedule.alphas)
    assert schedule.posterior_variance[0] == 0
    assert (schedule.posterior_variance <= schedule.betas).all()


def test_two_steps_by_hand():
    """Betas 0.1, 0.5: products 0.9, 0.45 and posterior variance 0.5 * 0.1 / 0.55."""
    schedule = NoiseSchedule.from_betas(torch.tensor([0.1, 0.5], dtype=torch.float64))
    torch.testing.assert_close(schedule.alphas_cumprod, torch.tensor([0.9, 0.45]).double())
    torch.testing.assert_close(
        schedule.posterior_variance, torch.tensor([0.0, 0.05 / 0.55]).double()
    )
    assert math.isclose(schedule.sqrt_one_minus_alphas_cumprod[1], math.sqrt(0.55), rel_tol=1e-6)
    assert schedule.num_train_timesteps == 2


def test_every_table_is_float64_and_frozen():
    """What the rest of the code indexes has one dtype, and nobody can rebind it."""
    schedule = make_schedule()
    assert all(table.dtype == torch.float64 for table in vars(schedule).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.betas = torch.zeros(1)


def test_add_noise_equals_diffusers():
    """The forward process mixes as diffusers' add_noise does, a step of its own for each entry."""
    schedule, theirs = make_schedule(), DDPMScheduler(100, beta_schedule="squaredcos_cap_v2")
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 6, 8, 3, generator=generator)
    steps = torch.tensor([0, 1, 17, 50, 98, 99])
    expected = theirs.add_noise(clean, noise, steps)
    torch.testing.assert_close(
        add_noise(schedule, clean, noise, steps), expected, rtol=0, atol=1e-5
    )


def test_mistakes_name_the_cure():
    """An unknown schedule suggests the near one; a length below one is refused."""
    with pytest.raises(UserError, match="did you mean 'squaredcos_cap_v2'"):
        make_schedule("squaredcos_cap")
    with pytest.raises(UserError, match="use 1 or more"):
        make_schedule("linear", 0)


def test_linear_betas_have_the_papers_ends():
    """0.0001 to 0.02, and every constant of the table has its closed form."""
    schedule = make_schedule("linear", 1000)
    assert (float(schedule.betas[0]), float(schedule.betas[-1])) == (1e-4, 0.02)
    steps = torch.arange(1000, dtype=torch.float64)
    betas = 1e-4 + (0.02 - 1e-4) * steps / 999
    product = torch.exp(torch.cumsum(torch.log1p(-betas), 0))
    torch.testing.assert_close(schedule.alphas_cumprod, product)
    torch.testing.assert_close(schedule.sqrt_alphas_cumprod, product.sqrt())
    torch.testing.assert_close(schedule.sqrt_one_minus_alphas_cumprod, (1 - product).sqrt())
    torch.testing.assert_close(schedule.sqrt_recip_alphas, 1 / (1 - betas).sqrt())
    before = product / (1 - betas)
    expected = betas * (1 - before) / (1 - product)
    torch.testing.assert_close(schedule.posterior_variance, expected, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("steps", [50, 100, 1000])
def test_cosine_betas_are_capped(steps):
    """Nichol and Dhariwal's closed form, below 0.999 even where the signal ends."""
    schedule = make_schedule("squaredcos_cap_v2", steps)
    assert float(schedule.betas.max()) == 0.999
    ends = torch.arange(1, steps, dtype=torch.float64) / steps
    signal = torch.cos((ends + 0.008) / 1.008 * math.pi / 2) ** 2
    expected = signal / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod[:-1], expected)
