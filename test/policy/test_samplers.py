"""Samplers, step for step against diffusers' schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.samplers import (
    PREDICTION_TYPES,
    SAMPLERS,
    SPACINGS,
    ddim,
    ddpm,
    inference_timesteps,
    noise_source,
)
from diffusion_policy_ros.policy.schedules import SCHEDULES, make_schedule

T = 100
COUNTS = [1, 2, 3, 5, 7, 8, 10, 16, 20, 33, 50, 64, 99, 100]
SHAPE = (3, 16, 7)


def network(sample, timestep):
    """A smooth stand-in for a trained network, different at every step."""
    phase = timestep.to(sample.dtype).view(-1, 1, 1) / T
    return torch.sin(1.7 * sample + phase) * (1.2 - phase)


def randn(seed):
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def doubles(seed):
    """Noise as diffusers draws it for float64 samples."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def exactly(scheduler):
    """The same scheduler computing in float64: its float32 tables hide small mistakes of ours."""
    schedule = make_schedule(scheduler.config.beta_schedule, T)
    torch.testing.assert_close(scheduler.betas, schedule.betas.float(), rtol=1e-5, atol=1e-8)
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def diffusers_sample(scheduler, start, steps, seed=None):
    """The reference's loop, its noise drawn from a generator of this seed."""
    exactly(scheduler).set_timesteps(steps)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    sample = start
    for t in scheduler.timesteps:
        output = network(sample, torch.full((start.shape[0],), int(t)))
        sample = scheduler.step(output, t, sample, generator=generator).prev_sample
    return sample


def settings(schedule, prediction, spacing, clip):
    """Arguments of the reference's constructors."""
    return {
        "num_train_timesteps": T,
        "beta_schedule": schedule,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "clip_sample": clip,
    }


@pytest.mark.parametrize("steps", range(1, T + 1))
@pytest.mark.parametrize("spacing", SPACINGS)
def test_visited_steps_equal_diffusers(spacing, steps):
    """Every count of steps visits what diffusers visits, in each spacing."""
    theirs = DDPMScheduler(T, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    expected = theirs.timesteps.tolist()[:steps]  # its trailing spacing may add one -1 by rounding
    assert inference_timesteps(T, steps, spacing) == expected


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", COUNTS)
def test_ddim_equals_diffusers(schedule, prediction, clip, steps):
    """Leading spacing with any count: the reference's sample."""
    theirs = DDIMScheduler(**settings(schedule, prediction, "leading", clip))
    ours = ddim(
        network,
        make_schedule(schedule, T),
        randn(0),
        inference_timesteps(T, steps, "leading"),
        prediction_type=prediction,
        clip=1.0 if clip else None,
    )
    expected = diffusers_sample(theirs, randn(0), steps)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [k for k in range(1, T + 1) if T % k == 0])
def test_ddim_trailing_equals_diffusers(steps):
    """Trailing spacing: the reference's sample wherever its constant stride is the true one."""
    theirs = DDIMScheduler(**settings("squaredcos_cap_v2", "sample", "trailing", True))
    expected = diffusers_sample(theirs, randn(0), steps)
    visited = inference_timesteps(T, steps, "trailing")
    ours = ddim(network, make_schedule(), randn(0), visited, prediction_type="sample")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", COUNTS)
def test_ddpm_equals_diffusers(spacing, prediction, steps):
    """Any count in any spacing, with the same noise: the reference's sample."""
    theirs = DDPMScheduler(**settings("squaredcos_cap_v2", prediction, spacing, True))
    ours = ddpm(
        network,
        make_schedule(),
        randn(1),
        inference_timesteps(T, steps, spacing),
        prediction_type=prediction,
        draw=doubles(7),
    )
    expected = diffusers_sample(theirs, randn(1), steps, seed=7)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_ddim_with_eta_one_has_the_noise_of_diffusers():
    """Eta scales the noise as in the reference."""
    theirs = DDIMScheduler(**settings("squaredcos_cap_v2", "sample", "leading", True))
    exactly(theirs).set_timesteps(10)
    generator, sample = torch.Generator().manual_seed(3), randn(2)
    for t in theirs.timesteps:
        output = network(sample, torch.full((SHAPE[0],), int(t)))
        sample = theirs.step(output, t, sample, eta=1.0, generator=generator).prev_sample
    visited = inference_timesteps(T, 10, "leading")
    how = {"prediction_type": "sample", "draw": doubles(3), "eta": 1.0}
    ours = ddim(network, make_schedule(), randn(2), visited, **how)
    torch.testing.assert_close(ours, sample, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 8, 37, 100])
def test_a_perfect_denoiser_gives_the_clean_sample(name, spacing, steps):
    """A network that knows x_0 leads every sampler there, in any count of steps."""
    clean = randn(4).clamp(-1, 1)
    ours = SAMPLERS[name](
        lambda sample, t: clean,
        make_schedule(),
        randn(5),
        inference_timesteps(T, steps, spacing),
        prediction_type="sample",
        draw=noise_source(torch.Generator().manual_seed(0)),
    )
    torch.testing.assert_close(ours, clean, rtol=0, atol=1e-9)


def test_float32_stays_near_float64():
    """The precision that policies run in loses nothing that matters."""
    visited, schedule = inference_timesteps(T, 10), make_schedule()
    exact = ddim(network, schedule, randn(0), visited, prediction_type="sample")
    ours = ddim(network, schedule, randn(0).float(), visited, prediction_type="sample")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_global_generator_is_read(name):
    """Same start and source, same sample, whatever the global seed, which does not move."""

    def run():
        draw = noise_source(torch.Generator().manual_seed(0))
        visited = inference_timesteps(T, 5)
        return SAMPLERS[name](network, make_schedule(), randn(0), visited, draw=draw)

    torch.manual_seed(1)
    first = run()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(run(), first)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("steps", [0, -1, T + 1, 10 * T])
def test_more_steps_than_trained_are_refused(steps):
    """A count outside 1..T is the user's mistake, with the range as its cure."""
    with pytest.raises(UserError, match="use 1 to 100"):
        inference_timesteps(T, steps)


def test_unknown_names_are_refused_with_the_near_one():
    """A misspelt spacing or target suggests the right one."""
    with pytest.raises(UserError, match="did you mean 'trailing'"):
        inference_timesteps(T, 5, "trailling")
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        ddim(network, make_schedule(), randn(0), [0], prediction_type="epsilonn")


def test_ancestral_sampling_without_a_source_of_noise_is_a_bug():
    """DDPM says that it needs noise instead of drawing it from somewhere."""
    with pytest.raises(ValueError, match="give draw"):
        ddpm(network, make_schedule(), randn(0), [9, 4])
