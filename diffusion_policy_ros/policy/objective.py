"""The training objective: noise the actions, ask the denoiser, compare.

Ho et al. 2020 algorithm 1. Instead of the noise, the network may predict the sample (Ramesh et al.
2022) or v (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.samplers import PREDICTION_TYPES, Denoise
from diffusion_policy_ros.policy.schedules import NoiseSchedule, add_noise, mixing_factors

WEIGHTINGS = ("plain", "min_snr")


def target(
    prediction_type: str,
    clean: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule | None = None,
    timesteps: Tensor | None = None,
) -> Tensor:
    """What the denoiser is to predict, (B, H, A); "v" needs the schedule and the steps (B,)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    if prediction_type == "v":
        if schedule is None or timesteps is None:
            raise ValueError("v mixes sample and noise: give schedule and timesteps")
        signal, spread = mixing_factors(schedule, timesteps, clean)
        return signal * noise - spread * clean
    cure = did_you_mean(prediction_type, PREDICTION_TYPES)
    raise UserError(f"unknown target '{prediction_type}'", "prediction_type", cure)


def diffusion_loss(
    denoise: Denoise,
    schedule: NoiseSchedule,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    prediction_type: str,
    is_pad: Tensor | None = None,
    is_given: Tensor | None = None,
    weighting: str = "plain",
    min_snr_gamma: float = 5.0,
) -> Tensor:
    """Mean squared error of the prediction, a scalar.

    Args:
        denoise: the network, (x_t (B, H, A), t (B,)) -> prediction.
        schedule: the noise tables.
        clean: normalised actions, (B, H, A).
        noise: standard normal, (B, H, A).
        timesteps: (B,) integers in [0, T).
        prediction_type: what the network predicts.
        is_pad: (B, H), true for actions that do not count; None where all do.
        is_given: (B, H, A), true for what inpainting tells the network: no error is made there.
        weighting: how much each step counts, see step_weights.
        min_snr_gamma: its bound.
    """
    noisy = add_noise(schedule, clean, noise, timesteps)
    goal = target(prediction_type, clean, noise, schedule, timesteps)
    error = (denoise(noisy, timesteps) - goal).square()
    if is_given is not None:
        error = error.masked_fill(is_given, 0.0)
    if weighting != "plain":
        weights = step_weights(schedule, weighting, prediction_type, min_snr_gamma)
        error = error * weights.to(error)[timesteps].view(-1, *[1] * (error.ndim - 1))
    return masked_mean(error, is_pad)


def training_step(
    denoise: Denoise,
    schedule: NoiseSchedule,
    clean: Tensor,
    generator: torch.Generator,
    *,
    prediction_type: str = "epsilon",
    is_pad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ho et al. 2020 algorithm 1 up to the gradient: draw steps and noise, ask, compare.

    Args:
        denoise: the network, (x_t (B, H, A), t (B,)) -> prediction.
        schedule: the noise tables.
        clean: normalised actions, (B, H, A).
        generator: source of noise and steps, on the CPU.
        prediction_type: what the network predicts.
        is_pad: (B, H), true for actions that do not count.

    Returns:
        The loss, a scalar, and the prediction, (B, H, A): with epsilon the predicted noise.
    """
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    steps = torch.randint(schedule.num_train_timesteps, clean.shape[:1], generator=generator)
    predicted = denoise(add_noise(schedule, clean, noise, steps), steps)
    goal = target(prediction_type, clean, noise, schedule, steps)
    return masked_mean((predicted - goal).square(), is_pad), predicted


def step_weights(
    schedule: NoiseSchedule, weighting: str, prediction_type: str, gamma: float = 5.0
) -> Tensor:
    """How much the squared error counts at each step: float64 (T,), on the CPU.

    "min_snr" is Hang et al. 2023 (https://arxiv.org/abs/2303.09556): of the error of x_0,
    min(SNR, gamma); of what else is predicted, what that comes to. With the sample as target it
    so lowers the weight of noisy steps, with epsilon that of steps with little noise.

    Raises:
        UserError: for an unknown weighting or target.
    """
    snr = schedule.alphas_cumprod / (1.0 - schedule.alphas_cumprod)
    if weighting == "plain":
        return torch.ones_like(snr)
    if weighting != "min_snr":
        cure = did_you_mean(weighting, WEIGHTINGS)
        raise UserError(f"unknown weighting '{weighting}'", "loss_weighting", cure)
    # The squared error of the target in units of that of x_0.
    units = {"epsilon": snr, "sample": torch.ones_like(snr), "v": snr + 1.0}
    if prediction_type not in units:
        cure = did_you_mean(prediction_type, PREDICTION_TYPES)
        raise UserError(f"unknown target '{prediction_type}'", "prediction_type", cure)
    return snr.clamp(max=gamma) / units[prediction_type]


def padding_mask(lengths: Tensor, horizon: int) -> Tensor:
    """For chunks of these lengths (B,): (B, H), true for what lies beyond a chunk's end."""
    return torch.arange(horizon, device=lengths.device) >= lengths.unsqueeze(-1)


def masked_mean(error: Tensor, is_pad: Tensor | None) -> Tensor:
    """Mean of error (B, H, A) over the actions that are not padding; 0 where all are."""
    if is_pad is None:
        return error.mean()
    counts = (~is_pad).to(error).unsqueeze(-1)
    return (error * counts).sum() / (counts.sum() * error.shape[-1]).clamp(min=1)
