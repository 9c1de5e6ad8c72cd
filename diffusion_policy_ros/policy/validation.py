"""How well a policy predicts what was demonstrated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import ACTION
from diffusion_policy_ros.policy.objective import masked_mean

BATCH = 64
SAMPLED_WINDOWS = 64  # for the action error


class Windows(Protocol):
    """Windows of demonstrations by number, as `DiffusionPolicy.loss` takes them."""

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Key -> (B, ...)."""


@torch.inference_mode()
def validate(
    policy: DiffusionPolicy, windows: Windows, most: int, generator: torch.Generator
) -> tuple[float, float]:
    """Loss and error of sampled actions on held-out windows.

    The error is the mean distance of the executed actions, normalised.

    Args:
        policy: in eval mode.
        windows: to choose from, always the same.
        most: how many, at most.
        generator: of the noise; numbers can be compared where it begins alike.
    """
    count, total = min(len(windows), most), 0.0
    chosen = np.linspace(0, len(windows) - 1, count).round().astype(np.int64)
    for start in range(0, count, BATCH):
        batch = windows.batch(chosen[start : start + BATCH])
        total += float(policy.loss(batch, generator)) * len(batch[ACTION])
    few = chosen[np.linspace(0, count - 1, min(count, SAMPLED_WINDOWS)).round().astype(int)]
    return total / count, _action_error(policy, windows.batch(few), generator)


def _action_error(
    policy: DiffusionPolicy, batch: Mapping[str, NDArray[Any]], generator: torch.Generator
) -> float:
    settings, device = policy.recipe.policy, policy.device
    ahead = slice(settings.n_obs_steps - 1, settings.n_obs_steps - 1 + settings.n_action_steps)
    normalize = policy.normalizer[ACTION].normalize
    truth = normalize(torch.as_tensor(batch[ACTION]).to(device))
    seen = {key: batch[key][:, : settings.n_obs_steps] for key in policy.frames.seen.observations}
    guess = normalize(policy.sample_seen(seen, generator=generator))[:, settings.executed]
    is_pad = torch.as_tensor(batch["action_is_pad"]).to(device)
    return float(masked_mean((guess - truth[:, ahead]).abs(), is_pad[:, ahead]))
