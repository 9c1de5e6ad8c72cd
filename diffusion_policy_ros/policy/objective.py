"""The training objective: noise the actions, ask the denoiser, compare.

Ho et al. 2020 algorithm 1; predicting the sample instead of the noise follows Ramesh et al. 2022.
"""

from __future__ import annotations

from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.samplers import PREDICTION_TYPES, Denoise
from diffusion_policy_ros.policy.schedules import NoiseSchedule, add_noise


def target(prediction_type: str, clean: Tensor, noise: Tensor) -> Tensor:
    """What the denoiser is to predict, (B, H, A)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
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
    """
    noisy = add_noise(schedule, clean, noise, timesteps)
    error = (denoise(noisy, timesteps) - target(prediction_type, clean, noise)).square()
    return masked_mean(error, is_pad)


def masked_mean(error: Tensor, is_pad: Tensor | None) -> Tensor:
    """Mean of error (B, H, A) over the actions that are not padding; 0 where all are."""
    if is_pad is None:
        return error.mean()
    counts = (~is_pad).to(error).unsqueeze(-1)
    return (error * counts).sum() / (counts.sum() * error.shape[-1]).clamp(min=1)
