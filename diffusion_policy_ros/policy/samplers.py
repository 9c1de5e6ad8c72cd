"""Samplers: pure functions from noise to a clean sample.

Each takes a denoiser, a schedule, a start and the steps to visit; random ones also take a source
of noise. They read no clock, no default device and no global generator. A new one is one function
and one line in SAMPLERS; the tests take it from there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.schedules import NoiseSchedule

Denoise = Callable[
    [Tensor, Tensor], Tensor
]  # (x_t (B, H, A), t (B,)) -> what the network predicts
DrawNoise = Callable[[Tensor], Tensor]  # a standard normal tensor shaped like its argument

PREDICTION_TYPES = ("epsilon", "sample", "v")
VARIANCES = ("fixed_small", "fixed_large")
SPACINGS = ("trailing", "leading", "linspace")


def inference_timesteps(
    num_train_timesteps: int, num_inference_steps: int, spacing: str = "trailing"
) -> list[int]:
    """The training steps to visit, falling: Lin et al. 2023 (arxiv.org/abs/2305.08891) table 2.

    "trailing" begins at T - 1, where the start really is noise, so few steps (even one) work.
    "leading" is what the original Diffusion Policy uses; "linspace" visits both ends.

    Raises:
        UserError: for an unknown spacing, or a number of steps outside 1..T.
    """
    if spacing not in SPACINGS:
        cure = did_you_mean(spacing, SPACINGS)
        raise UserError(f"unknown spacing '{spacing}'", "timestep_spacing", cure)
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise UserError(
            f"{num_inference_steps} inference steps, trained with {num_train_timesteps}",
            "num_inference_steps",
            f"use 1 to {num_train_timesteps}",
        )
    stride = num_train_timesteps / num_inference_steps
    if spacing == "trailing":
        # NumPy's own rounding of the grid, as in diffusers; it can add a step too many at the end.
        grid = np.arange(num_train_timesteps, 0, -stride)[:num_inference_steps].round()
        return [int(step) - 1 for step in grid]
    if spacing == "leading":
        return [i * int(stride) for i in reversed(range(num_inference_steps))]
    grid = np.linspace(0, num_train_timesteps - 1, num_inference_steps).round()
    return [int(step) for step in grid[::-1]]


class _Step:
    """Constants of one step, from t to the next one visited, as Python floats."""

    def __init__(self, now: int, levels: Sequence[tuple[float, float]], is_last: bool) -> None:
        self.now, self.is_last = now, is_last
        (self.signal, self.spread), (self.next_signal, self.next_spread) = levels

    @property
    def alpha(self) -> float:
        """Product of the alphas skipped over by this step."""
        return (self.signal / self.next_signal) ** 2

    @property
    def beta(self) -> float:
        """Variance that the forward process adds between the two, "fixed_large"."""
        return 1.0 - self.alpha

    @property
    def posterior_variance(self) -> float:
        """Variance between the two once x_0 is known, "fixed_small"."""
        return (self.next_spread / self.spread) ** 2 * self.beta

    @property
    def log_snr(self) -> float:
        """Half the logarithm of signal over noise at the step: the lambda of DPM-Solver."""
        return math.log(self.signal / self.spread)


def _walk(schedule: NoiseSchedule, timesteps: Sequence[int]) -> Iterator[_Step]:
    # Whole tables at once: a tensor's single numbers take longer than a step's arithmetic.
    tables = schedule.sqrt_alphas_cumprod.tolist(), schedule.sqrt_one_minus_alphas_cumprod.tolist()
    levels = [(tables[0][t], tables[1][t]) for t in timesteps] + [(1.0, 0.0)]
    for i, now in enumerate(timesteps):
        yield _Step(now, levels[i : i + 2], is_last=i + 1 == len(timesteps))


def clean_and_noise(
    output: Tensor,
    sample: Tensor,
    signal: float | Tensor,
    spread: float | Tensor,
    prediction_type: str,
) -> tuple[Tensor, Tensor]:
    """x_0 and epsilon as the network sees them, whichever of the two it predicts.

    Args:
        output: what it predicts of `sample`, x_t.
        sample: signal * x_0 + spread * epsilon.
        signal: factor of x_0, sqrt(abar).
        spread: factor of epsilon, sqrt(1 - abar).
        prediction_type: of PREDICTION_TYPES.

    Raises:
        UserError: for an unknown prediction type.
    """
    if prediction_type == "epsilon":
        return (sample - spread * output) / signal, output
    if prediction_type == "sample":
        return output, (sample - signal * output) / spread
    if prediction_type == "v":
        return signal * sample - spread * output, signal * output + spread * sample
    cure = did_you_mean(prediction_type, PREDICTION_TYPES)
    raise UserError(f"unknown target '{prediction_type}'", "prediction_type", cure)


def _ask(
    denoise: Denoise, sample: Tensor, step: _Step, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """The network's view of x_0 and epsilon at this step."""
    batch = torch.full((sample.shape[0],), step.now, dtype=torch.long, device=sample.device)
    output = denoise(sample, batch)
    return clean_and_noise(output, sample, step.signal, step.spread, prediction_type)


def _clipped(clean: Tensor, clip: float | None) -> Tensor:
    return clean if clip is None else clean.clamp(-clip, clip)


def ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    start: Tensor,
    timesteps: Sequence[int],
    *,
    prediction_type: str = "epsilon",
    clip: float | None = 1.0,
    draw: DrawNoise | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM, Song et al. 2021 (https://arxiv.org/abs/2010.02502) eq. 12; with eta = 0 no noise.

    Each step leads to the next one *visited*, so any stride is exact (diffusers' DDIMScheduler
    assumes a constant stride of T // K, which is wrong for "trailing" where K does not divide T).

    Args:
        denoise: the network, (x_t (B, H, A), t (B,)) -> prediction.
        schedule: the tables it was trained with.
        start: x_T, (B, H, A), standard normal.
        timesteps: falling steps to visit, see inference_timesteps.
        prediction_type: what the network predicts, of PREDICTION_TYPES.
        clip: bound of the predicted clean sample; None for no bound.
        draw: source of noise, needed with eta > 0.
        eta: 0 is deterministic, 1 has DDPM's variance.

    Returns:
        x_0, (B, H, A).
    """
    sample = start
    for step in _walk(schedule, timesteps):
        clean, noise = _ask(denoise, sample, step, prediction_type)
        variance = eta**2 * step.posterior_variance
        direction = max(step.next_spread**2 - variance, 0.0) ** 0.5
        sample = step.next_signal * _clipped(clean, clip) + direction * noise
        if variance > 0:
            sample = sample + variance**0.5 * _needed(draw)(sample)
    return sample


def ddpm(
    denoise: Denoise,
    schedule: NoiseSchedule,
    start: Tensor,
    timesteps: Sequence[int],
    *,
    prediction_type: str = "epsilon",
    clip: float | None = 1.0,
    draw: DrawNoise | None = None,
    variance: str = "fixed_small",
) -> Tensor:
    """Ancestral sampling, Ho et al. 2020 eq. 7, strided as in Nichol and Dhariwal 2021 section 4.

    The last step adds no noise, whatever step it is (diffusers' DDPMScheduler does with
    "fixed_large" unless it is step 0, and so leaves noise in what "trailing" samples).

    Other arguments, and the result, as in `ddim`; `draw` is needed unless there is one step.
    `variance` of the added noise: "fixed_small" is the posterior's, best where x_0 is a single
    point; "fixed_large" is beta, best where x_0 is standard normal.
    """
    sample = start
    for step in _walk(schedule, timesteps):
        clean = _clipped(_ask(denoise, sample, step, prediction_type)[0], clip)
        sample = _reversed(sample, clean, step, draw, variance)
    return sample


def ddpm_step(
    output: Tensor,
    schedule: NoiseSchedule,
    sample: Tensor,
    timestep: int,
    next_timestep: int | None = None,
    *,
    prediction_type: str = "epsilon",
    clip: float | None = 1.0,
    draw: DrawNoise | None = None,
    variance: str = "fixed_small",
) -> Tensor:
    """A single reverse step, Ho et al. 2020 eq. 7: x_t and what is predicted of it -> x_s.

    Args:
        output: the network's prediction at `timestep`, (B, H, A).
        schedule: the tables it was trained with.
        sample: x_t.
        timestep: t.
        next_timestep: s < t; x_0 where there is none, without noise.
        prediction_type: what the network predicts.
        clip: bound of the predicted clean sample.
        draw: source of noise, needed where there is a next step.
        variance: of the added noise, see `ddpm`.
    """
    visited = [timestep] if next_timestep is None else [timestep, next_timestep]
    step = next(_walk(schedule, visited))
    clean, _ = clean_and_noise(output, sample, step.signal, step.spread, prediction_type)
    return _reversed(sample, _clipped(clean, clip), step, draw, variance)


def _reversed(
    sample: Tensor, clean: Tensor, step: _Step, draw: DrawNoise | None, variance: str
) -> Tensor:
    """x_s of x_t and x_0."""
    if variance not in VARIANCES:
        cure = did_you_mean(variance, VARIANCES)
        raise UserError(f"unknown variance '{variance}'", "variance", cure)
    from_clean = step.next_signal * step.beta / step.spread**2
    from_sample = step.alpha**0.5 * (step.next_spread / step.spread) ** 2
    found: Tensor = from_clean * clean + from_sample * sample
    if not step.is_last:
        added = step.beta if variance == "fixed_large" else step.posterior_variance
        found = found + added**0.5 * _needed(draw)(found)
    return found


def dpmpp_2m(
    denoise: Denoise,
    schedule: NoiseSchedule,
    start: Tensor,
    timesteps: Sequence[int],
    *,
    prediction_type: str = "epsilon",
    clip: float | None = 1.0,
    draw: DrawNoise | None = None,
) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022 (https://arxiv.org/abs/2211.01095) algorithm 2.

    Second order: each step extrapolates the predicted x_0 from the one before. The first step has
    none before it, and the last one leads to the prediction itself. Deterministic, so `draw` is
    not used. Arguments and result as in `ddim`.
    """
    sample, before = start, None  # before: the previous step and its predicted x_0
    for step in _walk(schedule, timesteps):
        clean = _clipped(_ask(denoise, sample, step, prediction_type)[0], clip)
        if step.is_last:
            return clean
        here, goal = step.log_snr, math.log(step.next_signal / step.next_spread)
        ahead = clean
        if before is not None:
            ratio = (goal - here) / (here - before[0].log_snr)
            ahead = clean + 0.5 * ratio * (clean - before[1])
        growth = step.next_signal * -math.expm1(here - goal)
        sample = step.next_spread / step.spread * sample + growth * ahead
        before = (step, clean)
    return sample


def _needed(draw: DrawNoise | None) -> DrawNoise:
    if draw is None:
        raise ValueError("this sampler adds noise: give draw, a source of noise")
    return draw


class Sampler(Protocol):
    """What every entry of SAMPLERS can be called with."""

    def __call__(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        start: Tensor,
        timesteps: Sequence[int],
        *,
        prediction_type: str = "epsilon",
        clip: float | None = 1.0,
        draw: DrawNoise | None = None,
    ) -> Tensor:
        """Noise (B, H, A) -> clean sample (B, H, A)."""
        ...


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "ddpm": ddpm, "dpmpp_2m": dpmpp_2m}


def find_sampler(name: str, *, eta: float = 0.0, variance: str = "fixed_small") -> Sampler:
    """The sampler `name`, with the settings that only it has: `eta` of ddim, `variance` of ddpm.

    Raises:
        UserError: for an unknown name.
    """
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler '{name}'", "sampler", did_you_mean(name, SAMPLERS))
    own: dict[str, dict[str, Any]] = {"ddim": {"eta": eta}, "ddpm": {"variance": variance}}
    return functools.partial(SAMPLERS[name], **own.get(name, {}))


def noise_source(generator: torch.Generator | DrawNoise) -> DrawNoise:
    """Standard normal noise from `generator`, drawn on its device and moved to the sample's.

    What is a source already stays what it is.
    """
    if not isinstance(generator, torch.Generator):
        return generator

    def draw(like: Tensor) -> Tensor:
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
        return noise.to(like)

    return draw
