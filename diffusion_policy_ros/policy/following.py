"""A new chunk that agrees with actions that were decided before.

While a chunk is being sampled, time goes on and the robot executes what the chunk before it said.
Here the clean sample that the network predicts at every step is drawn towards those actions: Black
et al. 2025, "Real-Time Execution of Action Chunking Flow Policies"
(https://arxiv.org/abs/2506.07339), in the words of diffusion. It wraps the network, so that every
sampler can do it; one that goes on from another clean sample x_0 goes on from the noise that
belongs to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.samplers import Denoise, clean_and_noise
from diffusion_policy_ros.policy.schedules import NoiseSchedule, mixing_factors

BETA = 5.0
"""Bound of the guidance where little noise is left, as in the paper."""


@dataclass(frozen=True)
class Follow:
    """What a chunk is to agree with.

    Attributes:
        actions: (B, H, Da), finite; each beside the one that `sample` gives, in physical units.
        weights: (H,), from 0, free, to 1, fixed.
        kind: a key of KINDS.
    """

    actions: Tensor
    weights: Tensor
    kind: str = "rtc"

    def checked(self, shape: tuple[int, ...]) -> Follow:
        """Itself, if it fits a chunk (B, H, Da).

        Raises:
            UserError: it does not.
        """
        if self.kind not in KINDS:
            raise UserError(f"no '{self.kind}'", "follow.kind", did_you_mean(self.kind, KINDS))
        if tuple(self.actions.shape) != shape:
            raise UserError(f"{tuple(self.actions.shape)}", "follow.actions", f"give {shape}")
        if tuple(self.weights.shape) != shape[1:2]:
            cure = f"give {shape[1:2]}"
            raise UserError(f"{tuple(self.weights.shape)}", "follow.weights", cure)
        return self

    def extended(self) -> Follow:
        """The same, where the free actions at its end repeat the last that is not free."""
        last = int(self.weights.nonzero().max())
        actions = self.actions.clone()
        actions[:, last + 1 :] = actions[:, last : last + 1]
        return dataclasses.replace(self, actions=actions)

    @property
    def differentiates(self) -> bool:
        """Whether the network's derivative is needed."""
        return self.kind == "rtc"

    def error(self, clean: Tensor) -> Tensor:
        """W (Y - x_0), shaped like x_0 (B, H, A): zero beyond the action's Da numbers."""
        size = self.actions.shape[-1]
        weighted = self.weights.to(clean)[:, None] * (self.actions.to(clean) - clean[..., :size])
        return functional.pad(weighted, (0, clean.shape[-1] - size))


Clean = Callable[[Tensor], Tensor]  # x_t (B, H, A) -> the x_0 that the network sees in it
Draw = Callable[[Clean, Tensor, Tensor, Tensor, Follow], Tensor]


def _guided(clean: Clean, sample: Tensor, signal: Tensor, bound: Tensor, follow: Follow) -> Tensor:
    """By the derivative of x_0, which tells what the other actions have to do with the fixed."""
    with torch.enable_grad():
        at = sample.clone().requires_grad_()  # a clone, for the sampler's may be an inference's
        seen = clean(at)
        (pull,) = torch.autograd.grad(seen, at, follow.error(seen.detach()))
    return seen.detach() + torch.minimum(1.0 / signal, bound) * pull


def _cheap(clean: Clean, sample: Tensor, signal: Tensor, bound: Tensor, follow: Follow) -> Tensor:
    """As if x_0 were sqrt(abar) x_t, number by number, as it is for standard normal actions."""
    seen = clean(sample)
    return seen + torch.minimum(1.0 / signal, bound) * signal * follow.error(seen)


def _inpaint(clean: Clean, sample: Tensor, _: Tensor, __: Tensor, follow: Follow) -> Tensor:
    """What is fixed is put in place; the rest is free."""
    fixed = Follow(follow.actions, (follow.weights >= 1.0).float(), follow.kind)
    seen = clean(sample)
    return seen + fixed.error(seen)


KINDS: dict[str, Draw] = {"rtc": _guided, "rtc_cheap": _cheap, "inpaint": _inpaint}


def following(
    denoise: Denoise,
    schedule: NoiseSchedule,
    prediction_type: str,
    follow: Follow,
    clip: float | None = None,
    beta: float = BETA,
) -> Denoise:
    """A network that predicts the *sample*, near the actions that it is to follow.

    With g = J^T W (Y - x_0), J the derivative of x_0 with respect to x_t, it predicts
    x_0 + min(1 / sqrt(abar), beta sqrt(1 - abar)) g, clipped: where there is hardly any signal,
    the derivative of a network that was told to predict the noise is itself mostly noise.

    Args:
        denoise: the network, (x_t (B, H, A), t (B,)) -> prediction; the first Da of A numbers are
            an action's.
        schedule: the tables it was trained with.
        prediction_type: what the network predicts, of PREDICTION_TYPES.
        follow: Y, normalised, and W.
        clip: bound of the clean sample; None for no bound.
        beta: bound of the guidance where little noise is left.
    """

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        signal, spread = mixing_factors(schedule, timestep, sample)

        def clean(at: Tensor) -> Tensor:
            output = denoise(at, timestep)
            return clean_and_noise(output, at, signal, spread, prediction_type)[0]

        near = KINDS[follow.kind](clean, sample, signal, beta * spread, follow)
        return near if clip is None else near.clamp(-clip, clip)

    return predict
