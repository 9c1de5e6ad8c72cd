"""The policy as it is, run by PyTorch: what every other engine is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import Arrays, DiffusionPolicy


class EagerEngine:
    """Runs `policy.sample` in float32.

    Args:
        policy: moved to `device` and put into eval mode; its weights are learned no more.
        device: where to compute.
        dtype: None or f32.
        checkpoint: not used; nothing is compiled.
        say: not used; there is nothing that it goes on without.

    Raises:
        UserError: for another precision.
    """

    name, dtype = "eager", "f32"

    def __init__(
        self,
        policy: DiffusionPolicy,
        device: torch.device,
        dtype: str | None = None,
        checkpoint: Path | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        if dtype not in (None, "f32"):
            raise UserError(f"{dtype}", "dtype", "the eager engine computes in f32")
        # Where a chunk follows another, only the derivative by its sample is wanted.
        self.policy = policy.to(device).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.policy.device

    def sample(self, observation: Arrays, **options: Any) -> Tensor:
        """See DiffusionPolicy.sample."""
        return self.policy.sample(observation, **options)
