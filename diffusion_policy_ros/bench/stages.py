"""Where the time of each chunk went, read from what `runtime.trace.Trace` wrote."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.trace import ChunkTimes

STAGES = {
    "robot to node": ("stamp_ns", "arrived_ns"),
    "other streams": ("arrived_ns", "closed_ns"),
    "waiting for the inference": ("closed_ns", "begun_ns"),
    "sampling": ("begun_ns", "ended_ns"),
    "publishing": ("ended_ns", "published_ns"),
}
"""Where a chunk's time goes: name → the times between which it goes."""


def read_trace(path: str | Path) -> list[ChunkTimes]:
    """A table that a `Trace` wrote; a last line that was cut off is left out.

    Raises:
        UserError: the file is none, or has no chunk.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if not rows or tuple(rows[0]) != ChunkTimes._fields:
            raise ValueError
        whole = rows[1:] if len(rows[-1]) == len(ChunkTimes._fields) else rows[1:-1]
        found = [ChunkTimes(*map(int, row)) for row in whole]
    except (OSError, ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "is no trace"
        cure = "give the file that the policy node's parameter trace named"
        raise UserError(why, str(path), cure) from None
    if not found:
        raise UserError("there is no chunk in it", str(path), "let the node run for longer")
    return found


def stage_ms(trace: list[ChunkTimes]) -> dict[str, NDArray[np.float64]]:
    """Stage → (n,) how long it took each chunk, ms."""
    return {
        name: np.array([getattr(row, end) - getattr(row, begin) for row in trace]) / 1e6
        for name, (begin, end) in STAGES.items()
    }


def causes(trace: list[ChunkTimes]) -> dict[str, int]:
    """Stage → missed deadlines that it is to blame for: it took most beyond its median."""
    took = np.array(list(stage_ms(trace).values()))
    excess = took - np.median(took, axis=1, keepdims=True)
    missed = np.flatnonzero([row.missed for row in trace])
    return dict(Counter(list(STAGES)[int(worst)] for worst in excess[:, missed].argmax(axis=0)))
