"""Samplers, step for step against diffusers' schedulers."""

import functools
from unittest import mock

import pytest
import torch

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.samplers import (
    PREDICTION_TYPES,
    SAMPLERS,
    SPACINGS,
    VARIANCES,
    ddim,
    ddpm,
    dpmpp_2m,
    find_sampler,
    inference_timesteps,
    noise_source,
)
from diffusion_policy_ros.policy.schedules import SCHEDULES, make_schedule

T = 100
COUNTS = [1, 2, 3, 5, 7, 8, 10, 16, 20, 33, 50, 64, 99, 100]
SHAPE = (3, 16, 7)


def reference(name, *args, **how):
    """One of diffusers, whose import takes as long as torch's: not for who runs other tests."""
    import diffusers

    return getattr(diffusers, f"{name}Scheduler")(*args, **how)


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
        "prediction_type": "v_prediction" if prediction == "v" else prediction,
        "timestep_spacing": spacing,
        "clip_sample": clip,
    }


@pytest.mark.parametrize("spacing", SPACINGS)
def test_visited_steps_equal_diffusers(spacing):
    """Every count of steps visits what diffusers visits, in each spacing."""
    theirs = reference("DDPM", T, timestep_spacing=spacing)
    for steps in range(1, T + 1):
        theirs.set_timesteps(steps)
        expected = theirs.timesteps.tolist()[:steps]  # trailing may add one -1 by rounding
        assert inference_timesteps(T, steps, spacing) == expected, steps


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", COUNTS)
def test_ddim_equals_diffusers(schedule, prediction, clip, steps):
    """Leading spacing with any count: the reference's sample."""
    theirs = reference("DDIM", **settings(schedule, prediction, "leading", clip))
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
    theirs = reference("DDIM", **settings("squaredcos_cap_v2", "sample", "trailing", True))
    expected = diffusers_sample(theirs, randn(0), steps)
    visited = inference_timesteps(T, steps, "trailing")
    ours = ddim(network, make_schedule(), randn(0), visited, prediction_type="sample")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", COUNTS)
def test_ddpm_equals_diffusers(spacing, prediction, steps):
    """Any count in any spacing, with the same noise: the reference's sample."""
    theirs = reference("DDPM", **settings("squaredcos_cap_v2", prediction, spacing, True))
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


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", COUNTS)
def test_both_variances_of_ddpm_equal_diffusers(variance, schedule, prediction, steps):
    """With the same noise, at any stride that ends at step 0: the reference's sample."""
    how = settings(schedule, prediction, "leading", True)
    expected = diffusers_sample(
        reference("DDPM", **how, variance_type=variance), randn(1), steps, 7
    )
    ours = ddpm(
        network,
        make_schedule(schedule, T),
        randn(1),
        inference_timesteps(T, steps, "leading"),
        prediction_type=prediction,
        draw=doubles(7),
        variance=variance,
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_the_large_variance_adds_no_noise_to_the_result():
    """Trailing steps end above 0, where diffusers still adds noise; without that, its sample."""
    theirs = exactly(
        reference(
            "DDPM",
            **settings("squaredcos_cap_v2", "sample", "trailing", True),
            variance_type="fixed_large",
        )
    )
    theirs.set_timesteps(10)
    generator, sample = torch.Generator().manual_seed(7), randn(1)
    for t in theirs.timesteps:
        if t == theirs.timesteps[-1]:
            theirs.register_to_config(variance_type="fixed_small")
        output = network(sample, torch.full((SHAPE[0],), int(t)))
        sample = theirs.step(output, t, sample, generator=generator).prev_sample
    visited = inference_timesteps(T, 10, "trailing")
    how = {"prediction_type": "sample", "draw": doubles(7), "variance": "fixed_large"}
    ours = ddpm(network, make_schedule(), randn(1), visited, **how)
    torch.testing.assert_close(ours, sample, rtol=0, atol=1e-9)


@functools.cache
def exact_dpm_solver():
    """The reference in float64, with the clipping that it leaves to other schedulers."""
    from diffusers import DPMSolverMultistepScheduler

    class ExactDpmSolver(DPMSolverMultistepScheduler):
        clip = False

        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            left = make_schedule(self.config.beta_schedule, T).alphas_cumprod[self.timesteps]
            self.sigmas = torch.cat([((1 - left) / left).sqrt(), torch.zeros(1, dtype=left.dtype)])

        def convert_model_output(self, *args, **kwargs):
            clean = super().convert_model_output(*args, **kwargs)
            return clean.clamp(-1, 1) if self.clip else clean

    return ExactDpmSolver


def dpm_solver_sample(scheduler, start):
    """The reference's loop over the steps that it was set to."""
    sample = start
    for t in scheduler.timesteps:
        output = network(sample, torch.full((start.shape[0],), int(t)))
        with mock.patch.object(torch, "float32", torch.float64):  # which it casts samples to
            sample = scheduler.step(output, t, sample).prev_sample
    return sample


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", COUNTS)
def test_dpm_solver_equals_diffusers_at_our_steps(spacing, prediction, steps):
    """Any count in any spacing that our policies use: the reference's sample."""
    how = settings("squaredcos_cap_v2", prediction, spacing, None)
    del how["clip_sample"]
    visited, theirs = inference_timesteps(T, steps, spacing), exact_dpm_solver()(**how)
    theirs.clip = True
    theirs.set_timesteps(timesteps=visited)
    ours = dpmpp_2m(network, make_schedule(), randn(0), visited, prediction_type=prediction)
    torch.testing.assert_close(ours, dpm_solver_sample(theirs, randn(0)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [2, 3, 8, 10, 17, 20, 50])
def test_dpm_solver_equals_diffusers_at_its_own_steps(spacing, schedule, prediction, steps):
    """Unclipped, at the steps that diffusers chooses for this solver: the reference's sample."""
    how = settings(schedule, prediction, spacing, None)
    del how["clip_sample"]
    theirs = exact_dpm_solver()(**how)
    theirs.set_timesteps(steps)
    visited = theirs.timesteps.tolist()
    ours = dpmpp_2m(
        network,
        make_schedule(schedule, T),
        randn(0),
        visited,
        prediction_type=prediction,
        clip=None,
    )
    expected = dpm_solver_sample(theirs, randn(0))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sampler", "gain"), [(ddim, 2), (dpmpp_2m, 4)])
def test_the_order_of_a_solver_shows(sampler, gain):
    """Data of known spread, whose best denoiser and result are known: DDIM has first order (twice
    the steps, half the error), DPM-Solver++(2M) second order.
    """
    schedule, spread = make_schedule("squaredcos_cap_v2", 1000), 0.3

    def best(sample, timestep):
        left = schedule.alphas_cumprod[timestep].view(-1, 1, 1)
        return left.sqrt() * spread**2 * sample / (left * spread**2 + 1 - left)

    def error(steps):
        start = torch.ones(1, 1, 1, dtype=torch.float64)
        visited = inference_timesteps(1000, steps, "linspace")
        ours = sampler(best, schedule, start, visited, prediction_type="sample", clip=None)
        return abs(float(ours) - spread)

    assert error(50) / error(100) == pytest.approx(gain, rel=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_target_gives_the_same_sample(name, spacing):
    """One network's knowledge, told as epsilon, sample or v, leads to the same place."""
    schedule, visited = make_schedule(), inference_timesteps(T, 10, spacing)

    def told(prediction):
        def denoise(sample, timestep):
            signal = schedule.sqrt_alphas_cumprod[timestep].view(-1, 1, 1)
            spread = schedule.sqrt_one_minus_alphas_cumprod[timestep].view(-1, 1, 1)
            clean = 0.5 * torch.sin(sample)
            noise = (sample - signal * clean) / spread
            known = {"sample": clean, "epsilon": noise, "v": signal * noise - spread * clean}
            return known[prediction]

        how = {"prediction_type": prediction, "draw": doubles(3)}
        return SAMPLERS[name](denoise, schedule, randn(0), visited, **how)

    for prediction in PREDICTION_TYPES:
        torch.testing.assert_close(told(prediction), told("sample"), rtol=0, atol=1e-8)


@pytest.mark.parametrize("total", [50, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 33, 49, 50])
def test_other_lengths_of_training_equal_diffusers(spacing, total, steps):
    """From 50 to 1000 steps of training: what diffusers visits."""
    theirs = reference("DDPM", total, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    assert inference_timesteps(total, steps, spacing) == theirs.timesteps.tolist()[:steps]


def test_ddim_with_eta_one_has_the_noise_of_diffusers():
    """Eta scales the noise as in the reference."""
    theirs = reference("DDIM", **settings("squaredcos_cap_v2", "sample", "leading", True))
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


def test_settings_of_one_sampler_do_not_reach_the_others():
    """Eta belongs to DDIM, the variance to DDPM, and a misspelt one is refused."""
    visited = inference_timesteps(T, 5)

    def run(name, **own):
        sampler = find_sampler(name, **own)
        return sampler(network, make_schedule(), randn(0), visited, draw=doubles(0))

    assert not torch.equal(run("ddim", eta=1.0), run("ddim"))
    assert not torch.equal(run("ddpm", variance="fixed_large"), run("ddpm"))
    assert torch.equal(run("dpmpp_2m", eta=1.0, variance="fixed_large"), run("dpmpp_2m"))
    with pytest.raises(UserError, match="did you mean 'fixed_small'"):
        run("ddpm", variance="fixed_smal")
    with pytest.raises(UserError, match="did you mean 'ddim'"):
        run("ddimm")
