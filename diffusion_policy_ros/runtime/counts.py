"""What happened since the start, for diagnostics; which reasons are the same one."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract

RECENT = 1000
"""Chunks whose times are kept."""
AMOUNTS = re.compile(r"(?<![\w/.])-?[\d.]+")
"""In a reason they count on while it stays the same; digits of a name are none."""


def kind_of(reason: str) -> str:
    """A reason without the amounts in it."""
    return AMOUNTS.sub("", reason)


@dataclass
class Counts:
    """What happened since the start.

    Attributes:
        frames: windows offered.
        chunks: chunks handed over.
        holds: how often it began to hold.
        refused: frames that could not be made.
        deadline_misses: chunks that came after the previous one had run out.
        replaced: windows that a newer one replaced before they were used.
        failures: inferences that raised or were not finite, chunks that could not be published.
        late: chunks that were dropped because their last action was past.
        clamped: actions beyond the contract's limits, which the player clamps.
        chunk_ms: computing time of recent chunks.
        latency_ms: of recent chunks, from the newest frame's stamp to the publication.
    """

    frames: int = 0
    chunks: int = 0
    holds: int = 0
    refused: int = 0
    deadline_misses: int = 0
    replaced: int = 0
    failures: int = 0
    late: int = 0
    clamped: int = 0
    chunk_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


def beyond_limits(actions: NDArray[np.float64], contract: Contract) -> int:
    """How many actions exceed what the contract allows in one action, or the field's range.

    Args:
        actions: (n, Da), physical units.
        contract: gives the limits.
    """
    beyond = np.zeros(len(actions), dtype=bool)
    for part in contract.action.fields:
        limits, value = (
            contract.action.limits_of(part),
            actions[:, contract.action.slices[part.name]],
        )
        if part.kind.startswith("delta_"):
            if limits.step is not None:
                each = part.role == "joints" or isinstance(limits.step, tuple)
                size = np.abs(value) if each else np.linalg.norm(value, axis=1, keepdims=True)
                beyond |= (size > limits.step).any(axis=1)
        elif limits.min is not None and limits.max is not None:
            beyond |= ((value < limits.min) | (value > limits.max)).any(axis=1)
    return int(beyond.sum())
