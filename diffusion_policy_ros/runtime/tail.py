"""Which chunk holds at a time, and which of its actions.

A chunk says when each of its actions is meant, so what is late is dropped *by time*, never by
index. A newer chunk replaces the tail of the older one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.rotations import TO_QUATERNION, is_rotation

Vector = NDArray[np.float64]
Targets = dict[str, Vector]

EARLY_NS = 1_000
"""Slack for times that were rounded to whole ns on their way."""
HUGEST = 1e6
"""No robot is told so many m or rad; larger numbers would overflow on their way."""
PERIOD_SLACK = 0.02
"""Share by which a chunk's period may differ from the contract's."""
NO_CHUNK = "no chunk yet"
AGED_OUT = "the newest chunk has aged out"


@dataclass(frozen=True)
class Chunk:
    """The actions of one inference; without any it means hold.

    Attributes:
        stamp_ns: time of the newest observed frame, and of the first action.
        actions: (n, Da), physical units.
        period_ns: time between actions.
    """

    stamp_ns: int
    actions: Vector
    period_ns: int

    @property
    def end_ns(self) -> int:
        """When the last action has been executed."""
        return self.stamp_ns + len(self.actions) * self.period_ns

    def index(self, time_ns: int) -> int:
        """Which action's time it is; negative before the first, beyond the last after it."""
        return (time_ns + EARLY_NS - self.stamp_ns) // self.period_ns


class Tail:
    """Holds the newest chunk, and the one to go on with until that begins, or if it may not.

    Args:
        contract: the robot.
        read: actions → field → what they say of it.

    Attributes:
        chunk: the newest; None where the robot is to hold.
        targets: what its actions say of each field.
        fresh: whether nobody has looked yet whether it may begin.
        why: why there is none.
        rejected: reason → how many chunks were rejected for it.
        since_ns: chunks of observations from before are rejected.
    """

    def __init__(self, contract: Contract, read: Callable[[Vector], Targets]) -> None:
        self._contract, self._read, self.rejected = contract, read, Counter[str]()
        self._rotations = [part for part in contract.action.fields if part.kind in TO_QUATERNION]
        self.since_ns: int | None = None
        self.forget()

    def limited_by(self, contract: Contract) -> None:
        """Have this contract's time-out."""
        self._contract = contract

    def forget(self, why: str = NO_CHUNK) -> None:
        """Have no chunk."""
        self.chunk: Chunk | None = None
        self.targets: Targets = {}
        self._before: tuple[Chunk | None, Targets] = (None, {})
        self.fresh, self.why = False, why

    def offer(self, chunk: Chunk, now_ns: int | None) -> str:
        """Take a chunk; why it was rejected, or nothing."""
        if not len(chunk.actions):
            self.forget("told to hold")
            return ""
        reason = self._fault(chunk) or self._untimely(chunk, now_ns)
        if reason:
            self.rejected[reason] += 1
            return reason
        if not self.fresh:
            self._before = self.at(chunk.stamp_ns if now_ns is None else now_ns)
        self.chunk, self.targets, self.fresh = chunk, self._read(chunk.actions), True
        return ""

    def at(self, time_ns: int) -> tuple[Chunk | None, Targets]:
        """The newest chunk that has begun by a time, and what it says of each field."""
        waits = self.chunk is not None and self.chunk.index(time_ns) < 0
        waits = waits and self._before[0] is not None
        return self._before if waits else (self.chunk, self.targets)

    def put_away(self, reason: str, why: str) -> None:
        """Go on with the chunk before, for the newest may not begin."""
        self.rejected[reason] += 1
        (self.chunk, self.targets), self.fresh, self.why = self._before, False, why

    def _fault(self, chunk: Chunk) -> str:
        actions, period_ns = chunk.actions, self._contract.period_ns
        if actions.ndim != 2 or actions.shape[1] != self._contract.action_dim:
            return "actions of another size"
        if not np.isfinite(actions).all():
            return "not finite"
        if np.abs(actions).max() > HUGEST:
            return "beyond any robot"
        slices = self._contract.action.slices
        for part in self._rotations:
            if not is_rotation(part.kind, actions[:, slices[part.name]]).all():
                return "no rotation"
        if abs(chunk.period_ns - period_ns) > PERIOD_SLACK * period_ns:
            ours, theirs = period_ns / 1e6, chunk.period_ns / 1e6
            return f"its actions are {theirs:g} ms apart, the contract's {ours:g} ms"
        return ""

    def _untimely(self, chunk: Chunk, now_ns: int | None) -> str:
        if self.chunk is not None and chunk.stamp_ns < self.chunk.stamp_ns:
            return "older than the one before"
        if self.since_ns is not None and chunk.stamp_ns < self.since_ns:
            return "from before this run"
        if now_ns is None:
            return ""
        if chunk.stamp_ns > now_ns + chunk.period_ns:
            return "from the future"
        old = now_ns - chunk.stamp_ns > self._contract.action.limits.chunk_timeout_s * 1e9
        return "aged out on its way" if old else ""
