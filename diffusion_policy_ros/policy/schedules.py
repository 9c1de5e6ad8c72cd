"""Noise schedules: every constant of the diffusion process in one frozen object.

Words follow Ho et al. 2020 (https://arxiv.org/abs/2006.11239): betas are the variances added at
each of the T training steps, alphas = 1 - betas, and alphas_cumprod their running product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean

MAX_BETA = 0.999  # the cosine schedule's own cap: a beta of 1 would divide by zero


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of one schedule, each a float64 tensor of shape (T,), cast where they are used.

    In float32, 1 - alphas_cumprod would keep three digits at the first steps.

    Attributes:
        betas: variance added at each step.
        alphas: 1 - betas.
        alphas_cumprod: running product of alphas; the share of signal left, as a variance.
        alphas_cumprod_prev: the same one step earlier, 1 before the first.
        sqrt_alphas_cumprod: factor of the clean sample in a noisy one.
        sqrt_one_minus_alphas_cumprod: factor of the noise in a noisy one.
        sqrt_recip_alphas: 1 / sqrt(alphas).
        posterior_variance: variance of q(x_{t-1} | x_t, x_0), Ho et al. eq. 7.
    """

    betas: Tensor
    alphas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas: Tensor
    posterior_variance: Tensor

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of steps that the denoiser is trained on."""
        return self.betas.shape[0]

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """All tables from betas (T,), which are used as float64."""
        betas = betas.double()
        alphas = 1.0 - betas
        cumprod = torch.cumprod(alphas, dim=0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), cumprod[:-1]])
        tables = {
            "betas": betas,
            "alphas": alphas,
            "alphas_cumprod": cumprod,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1.0 - cumprod).sqrt(),
            "sqrt_recip_alphas": alphas.rsqrt(),
            "posterior_variance": betas * (1.0 - previous) / (1.0 - cumprod),
        }
        return cls(**tables)


def _linear(steps: int, beta_start: float, beta_end: float) -> Tensor:
    return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)


def _squared_cosine(steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Nichol and Dhariwal 2021 (https://arxiv.org/abs/2102.09672) eq. 17; takes no betas."""

    def signal(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [1 - signal((i + 1) / steps) / signal(i / steps) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=MAX_BETA)


SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "squaredcos_cap_v2": _squared_cosine,
    "linear": _linear,
}


def make_schedule(
    name: str = "squaredcos_cap_v2",
    num_train_timesteps: int = 100,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
) -> NoiseSchedule:
    """The schedule `name` over `num_train_timesteps` steps.

    Args:
        name: a key of SCHEDULES.
        num_train_timesteps: T, at least 1.
        beta_start: first beta of the linear schedule.
        beta_end: last beta of the linear schedule.

    Raises:
        UserError: for an unknown name or T < 1.
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown schedule '{name}'", "schedule", did_you_mean(name, SCHEDULES))
    if num_train_timesteps < 1:
        raise UserError(f"{num_train_timesteps} steps", "num_train_timesteps", "use 1 or more")
    return NoiseSchedule.from_betas(SCHEDULES[name](num_train_timesteps, beta_start, beta_end))


def add_noise(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Forward process q(x_t | x_0), Ho et al. eq. 4.

    Args:
        schedule: the tables.
        clean: x_0, (B, H, A).
        noise: standard normal, (B, H, A).
        timesteps: (B,) integers in [0, T), on the tables' device.

    Returns:
        x_t, (B, H, A).
    """
    signal, spread = mixing_factors(schedule, timesteps, clean)
    return signal * clean + spread * noise


def mixing_factors(
    schedule: NoiseSchedule, timesteps: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors of signal and noise at `timesteps` (B,), shaped to multiply `like` (B, ...)."""
    shape = (-1,) + (1,) * (like.ndim - 1)
    # The tables go to a GPU, not the steps back from it: nothing waits.
    signal = schedule.sqrt_alphas_cumprod.to(like, non_blocking=True)[timesteps]
    spread = schedule.sqrt_one_minus_alphas_cumprod.to(like, non_blocking=True)[timesteps]
    return signal.view(shape), spread.view(shape)
