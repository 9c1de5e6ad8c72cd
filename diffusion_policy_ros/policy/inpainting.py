"""Inpainting: actions and observations denoised as one sequence, of which a part is given.

After Janner et al. 2022 (https://arxiv.org/abs/2205.09991), whose planners are told so where they
are; the reference implementation offers it for vectors. What is given replaces what the sampler
has there before each look of the network, and does not count in the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskGenerator:
    """Says which numbers of a sequence of (action, observation) steps are given.

    Attributes:
        action_dim: numbers of a step's action, which come first.
        obs_dim: numbers of a step's observation.
        max_n_obs_steps: observed steps, from the first.
        fix_obs_steps: always that many; otherwise 1 to that many are drawn for each sequence.
        action_visible: the actions before the newest observation are given, too.
    """

    action_dim: int
    obs_dim: int
    max_n_obs_steps: int = 2
    fix_obs_steps: bool = True
    action_visible: bool = False

    def __call__(
        self,
        batch: int,
        horizon: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A mask for `batch` sequences.

        Args:
            batch: B.
            horizon: H, steps of a sequence.
            generator: source of the observed steps, needed where they are drawn.
            device: where the mask is to be.

        Returns:
            (B, H, action_dim + obs_dim), true = given.
        """
        seen = self._observed_steps(batch, generator, device)[:, None, None]
        step = torch.arange(horizon, device=device)[None, :, None]
        is_action = torch.arange(self.action_dim + self.obs_dim, device=device) < self.action_dim
        given = (step < seen) & ~is_action
        if self.action_visible:
            given = given | ((step < seen - 1) & is_action)
        return given

    def _observed_steps(
        self, batch: int, generator: torch.Generator | None, device: torch.device | str
    ) -> Tensor:
        if self.fix_obs_steps:
            return torch.full((batch,), self.max_n_obs_steps, device=device)
        if generator is None:
            raise ValueError("the observed steps are drawn: give a generator")
        highest, source = self.max_n_obs_steps + 1, generator.device
        return torch.randint(1, highest, (batch,), generator=generator, device=source).to(device)
