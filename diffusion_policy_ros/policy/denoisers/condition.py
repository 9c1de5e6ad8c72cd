"""What a denoiser is told besides the noisy actions and the step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Condition(NamedTuple):
    """Features of the observation window.

    Attributes:
        global_cond: (B, C), one vector for the whole chunk.
        local_cond: (B, H, L), one vector for each of its steps.
    """

    global_cond: Tensor | None = None
    local_cond: Tensor | None = None

    def repeat(self, times: int) -> Condition:
        """Each entry of the batch `times` times in a row: (B, ...) -> (B * times, ...)."""
        if times == 1:
            return self
        return Condition(
            *(None if part is None else part.repeat_interleave(times, dim=0) for part in self)
        )
