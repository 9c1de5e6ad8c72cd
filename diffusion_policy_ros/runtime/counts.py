"""What happened since the start, for diagnostics."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract

RECENT = 1000
"""Chunks whose times are kept."""


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
    """How many actions exceed what the contract allows in one action, or its joints' ranges.

    Args:
        actions: (n, Da), physical units.
        contract: gives the limits.
    """
    limits, beyond = contract.action.limits, np.zeros(len(actions), dtype=bool)
    for part in contract.action.fields:
        value = actions[:, contract.action.slices[part.name]]
        length = {"delta_position": limits.translation, "delta_axis_angle": limits.rotation}
        limit = length.get(part.kind)
        if limit is not None:
            beyond |= np.linalg.norm(value, axis=1) > limit
        if part.kind == "joint_position" and limits.joint_min:
            beyond |= ((value < limits.joint_min) | (value > limits.joint_max)).any(axis=1)
        if part.kind == "position" and limits.workspace_min:
            beyond |= ((value < limits.workspace_min) | (value > limits.workspace_max)).any(axis=1)
    return int(beyond.sum())
