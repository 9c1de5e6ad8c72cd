"""Dropout whose masks belong to a batch's windows, however the batch is cut.

torch draws a mask for whatever tensor it is given, so two halves of a batch would get the same
masks where each begins with the same seed, and others than the whole batch has. Here a mask is
drawn for the whole batch, by a generator of its own, and each part takes its rows: accumulated
batches and several processes learn exactly what one computes at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class DropoutDraws(NamedTuple):
    """Which masks.

    Attributes:
        seed: of the whole batch's.
        start, stop: the windows that are computed.
        whole: how many there are.
    """

    seed: int
    start: int
    stop: int
    whole: int

    def part(self, where: slice) -> DropoutDraws:
        """Those of the windows `where` among these."""
        return self._replace(start=self.start + where.start, stop=self.start + where.stop)


class _Masks(threading.local):
    """What is in force in this thread; batches may be computed side by side."""

    draws: DropoutDraws | None = None
    generator: torch.Generator | None = None


_masks = _Masks()


@contextmanager
def masks_of(draws: DropoutDraws | None, device: torch.device) -> Iterator[None]:
    """Let all dropout within draw these masks, one layer after another."""
    if draws is not None:
        _masks.draws = draws
        _masks.generator = torch.Generator(device).manual_seed(draws.seed)
    try:
        yield
    finally:
        _masks.draws = _masks.generator = None


def leave_out_of_compiling() -> None:
    """Have torch.compile take dropout as it is: its generators are no part of a graph.

    Not when this is imported: torch's compiler takes seconds to import, of every start.
    """
    global _dropped
    _dropped = torch.compiler.disable(_dropped)  # type: ignore[no-untyped-call]


def _dropped(values: Tensor, share: float) -> Tensor:
    """Of values (rows of the windows in turn, ...), a share is zero and the rest is raised."""
    draws = _masks.draws
    if draws is None:
        return functional.dropout(values, share)
    rows = len(values) // (draws.stop - draws.start)  # of each window
    shape = (draws.whole * rows, *values.shape[1:])
    drawn = torch.rand(shape, generator=_masks.generator, device=values.device)
    kept = drawn[draws.start * rows : draws.stop * rows] >= share
    return values * kept / (1 - share)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, see above."""

    def forward(self, values: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        return _dropped(values, self.p) if self.training and self.p else values


class Attention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` (batch first), whose weights are dropped as above."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See torch.nn.MultiheadAttention; in training it gives no weights."""
        if not (self.training and self.dropout):
            how = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return super().forward(query, key, value, *how)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(*part).view(*part[0].shape[:2], self.num_heads, -1).transpose(1, 2)
            for part in zip((query, key, value), weights, biases, strict=True)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        scores = scores if attn_mask is None else scores + attn_mask
        shares = _dropped(scores.softmax(-1), self.dropout)
        return self.out_proj((shares @ v).transpose(1, 2).flatten(2)), None


OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: Dropout,
    nn.MultiheadAttention: Attention,
}


def with_masks_of_windows(module: nn.Module) -> nn.Module:
    """Let the dropout of torch's own layers be ours; weights and their names stay."""
    for part in module.modules():
        part.__class__ = OURS.get(type(part), type(part))
    return module
