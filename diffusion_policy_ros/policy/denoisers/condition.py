"""What a denoiser is built for, and what it is told besides the noisy actions and the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Sizes(NamedTuple):
    """What a denoiser is built for.

    Attributes:
        action_dim: A, numbers in one step of the sample.
        horizon: H, steps of the sample; None where any that the network can take will do.
        global_cond: C, size of condition.global_cond; 0 for none.
        local_cond: L, size of condition.local_cond's steps; 0 for none.
        tokens: number of condition.tokens; 0 for none.
        token_dim: size of each of them.
    """

    action_dim: int
    horizon: int | None = None
    global_cond: int = 0
    local_cond: int = 0
    tokens: int = 0
    token_dim: int = 0

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of each part of a condition -> its shape in a batch's entry."""
        shapes = {
            "global_cond": (self.global_cond,),
            "local_cond": (self.horizon or 0, self.local_cond),
            "tokens": (self.tokens, self.token_dim),
        }
        return {name: shape for name, shape in shapes.items() if all(shape)}


class Condition(NamedTuple):
    """Features of the observation window.

    Attributes:
        global_cond: (B, C), one vector for the whole chunk.
        local_cond: (B, H, L), one vector for each of its steps.
        tokens: (B, To, D), one vector for each observed frame.
        given: (B, H, A), for inpainting: values of a part of the sample. Denoisers do not look at
            it; it is put into what they get.
        is_given: (B, H, A), true where it counts.
    """

    global_cond: Tensor | None = None
    local_cond: Tensor | None = None
    tokens: Tensor | None = None
    given: Tensor | None = None
    is_given: Tensor | None = None

    def inpainted(self, sample: Tensor) -> Tensor:
        """The sample (B, H, A) with what is given in its place."""
        if self.given is None or self.is_given is None:
            return sample
        return torch.where(self.is_given, self.given, sample)

    def repeat(self, times: int) -> Condition:
        """Each entry of the batch `times` times in a row: (B, ...) -> (B * times, ...)."""
        if times == 1:
            return self
        return self._each(lambda part: part.repeat_interleave(times, dim=0))

    def hidden(
        self, where: Tensor | None = None, null: Mapping[str, Tensor] | None = None
    ) -> Condition:
        """Null features instead, in the batch's entries `where` (B,) or in all.

        Args:
            where: the entries.
            null: part -> what stands for it, of a batch's entry; zeros where not given.
        """
        found = {}
        for name, part in self._asdict().items():
            if part is None:
                continue
            blank = torch.zeros_like(part[0]) if null is None else null[name].to(part)
            here = torch.ones(len(part), dtype=torch.bool, device=part.device)
            here = here if where is None else where
            found[name] = torch.where(here.view(-1, *[1] * (part.dim() - 1)), blank, part)
        return Condition(**found)

    def beside(self, other: Condition) -> Condition:
        """A batch of both, of 2 B entries."""
        pairs = zip(self, other, strict=True)
        return Condition(
            *(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(*(None if part is None else change(part) for part in self))
