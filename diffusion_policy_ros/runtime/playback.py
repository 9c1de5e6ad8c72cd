"""Chunks become set-points.

A chunk says when each of its actions is meant, so what is late is dropped *by time*, never by
index. An action is sent as much before its time as its field's commands take to take effect.
`player.py` makes a stream of set-points of what this gives, at any rate.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.rotations import TO_QUATERNION, is_rotation
from diffusion_policy_ros.runtime.commander import Commander, SetPoint, Vector

EARLY_NS = 1_000
"""Slack for times that were rounded to whole ns on their way."""
HUGEST = 1e6
"""No robot is told so many m or rad; larger numbers would overflow on their way."""
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


class Knot(NamedTuple):
    """A part of the set-point, and when it is due: the robot is told exactly this then."""

    due_ns: int
    value: Vector


@dataclass
class _Track:
    """The fields whose actions are sent the same time before they are meant."""

    early_ns: int
    slots: tuple[str, ...]
    done_ns: int | None = None


class Playback:
    """Holds the newest chunk and answers "the set-point at time t".

    A newer chunk replaces the tail of the older one. Every action is executed once, when its time
    has come; one whose time has passed by when it could take effect is dropped. Past the last
    action, without a chunk, after an empty one, or when the newest is older than
    ``limits.chunk_timeout_s``, it holds and says why.

    Args:
        contract: the robot.

    Attributes:
        rejected: reason → how many chunks were rejected for it.
        dropped: actions that were never executed because their time had passed.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.commander = Commander(contract)
        self.rejected: Counter[str] = Counter()
        self.dropped = 0
        self._absolute = [p for p in contract.action.fields if p.kind in TO_QUATERNION]
        self._timeout_ns = round(contract.action.limits.chunk_timeout_s * 1e9)
        slots: dict[int, list[str]] = {}
        for slot, part in self.commander.fields.items():
            slots.setdefault(contract.sent_early_ns(part), []).append(slot)
        self._tracks = [_Track(early_ns, tuple(found)) for early_ns, found in slots.items()]
        self.reset()

    def reset(self) -> None:
        """Forget chunk and commanded pose; the next set-point starts at the measured pose."""
        self.chunk: Chunk | None = None
        self._before: Chunk | None = None
        self._fresh = False
        self._why = "no chunk yet"
        for track in self._tracks:
            track.done_ns = None
        self.commander.set_point = None

    def offer(self, chunk: Chunk) -> str:
        """Take a chunk.

        Returns:
            Why it was rejected; empty when it was taken.
        """
        if not len(chunk.actions):
            self.chunk, self._fresh, self._why = None, False, "told to hold"
            return ""
        reason = self._fault(chunk)
        if reason:
            self.rejected[reason] += 1
            return reason
        if not self._fresh:
            self._before = self.chunk
        self.chunk, self._fresh = chunk, True
        return ""

    def _fault(self, chunk: Chunk) -> str:
        if chunk.actions.ndim != 2 or chunk.actions.shape[1] != self.contract.action_dim:
            return "actions of another size"
        if not np.isfinite(chunk.actions).all():
            return "not finite"
        if np.abs(chunk.actions).max() > HUGEST:
            return "beyond any robot"
        if not all(self._tells_rotations(part, chunk.actions) for part in self._absolute):
            return "no rotation"
        if chunk.period_ns <= 0:
            return "no time between its actions"
        if self.chunk is not None and chunk.stamp_ns < self.chunk.stamp_ns:
            return "older than the one before"
        return ""

    def _tells_rotations(self, part: Any, actions: Vector) -> bool:
        values = actions[:, self.contract.action.slices[part.name]]
        return bool(is_rotation(part.kind, values).all())

    def at(self, time_ns: int, measured: Mapping[str, Any]) -> SetPoint:
        """The set-point at a time, which must not run backwards between calls.

        Args:
            time_ns: now, by the clock that chunks are stamped by.
            measured: observation key → newest array; where commanding starts, and what the lead is
                limited against.
        """
        commander = self.commander
        before = commander.set_point or commander.anchor(measured)
        if self._fresh:
            self._check_first(time_ns, measured)
        chunk = self.chunk
        if chunk is None:
            return held(before, self._why)
        if time_ns - chunk.stamp_ns > self._timeout_ns:
            return held(before, AGED_OUT)
        holds = [self._play(chunk, track, time_ns, measured) for track in self._tracks]
        after = commander.set_point or before
        return held(after, holds[0]) if all(holds) else after

    def coming(self, measured: Mapping[str, Any], most: int = 1) -> dict[str, list[Knot]]:
        """What each slot was told last, and what it will be told next by the chunk in hand.

        Args:
            measured: observation key → newest array.
            most: how many of the actions to come.
        """
        found: dict[str, list[Knot]] = {}
        commander, chunk = self.commander, self.chunk
        for track in self._tracks:
            if track.done_ns is None or chunk is None or commander.set_point is None:
                continue
            scout, due_ns = Commander(self.contract), track.done_ns - track.early_ns
            scout.set_point = commander.set_point
            knots = {s: [Knot(due_ns, getattr(scout.set_point, s))] for s in track.slots}
            first = _index(chunk, track.done_ns) + 1
            for action in chunk.actions[max(first, 0) : first + most]:
                due_ns += chunk.period_ns
                told = scout.apply(np.asarray(action, dtype=float), measured, track.slots)
                for slot in track.slots:
                    knots[slot].append(Knot(due_ns, getattr(told, slot)))
            found |= knots
        return found

    def _check_first(self, time_ns: int, measured: Mapping[str, Any]) -> None:
        """Put a chunk away whose first action lies too far from where the robot is."""
        self._fresh, chunk = False, self.chunk
        assert chunk is not None, "an empty one is not fresh"
        early_ns = max(track.early_ns for track in self._tracks)
        index = max(_index(chunk, time_ns + early_ns), 0)
        if index >= len(chunk.actions):
            return
        why = self.commander.jump(np.asarray(chunk.actions[index], dtype=float), measured)
        if why:
            self.rejected["jump"] += 1
            self.chunk, self._why = self._before, f"a chunk {why}"

    def _play(self, chunk: Chunk, track: _Track, time_ns: int, measured: Mapping[str, Any]) -> str:
        """Execute what is due of a track; why it holds, or nothing."""
        index = _index(chunk, time_ns + track.early_ns)
        if not 0 <= index < len(chunk.actions):
            return "past the last action" if index >= 0 else "the chunk is from the future"
        due_ns, done_ns = chunk.stamp_ns + index * chunk.period_ns, track.done_ns
        if done_ns is None or due_ns - done_ns > chunk.period_ns / 2:
            action = np.asarray(chunk.actions[index], dtype=float)
            self.commander.apply(action, measured, track.slots)
            if done_ns is not None and track is self._tracks[0]:
                skipped = round((due_ns - done_ns) / chunk.period_ns) - 1
                self.dropped += min(skipped, index)
            track.done_ns = due_ns
        return ""


def _index(chunk: Chunk, time_ns: int) -> int:
    """Which action's time it is; negative before the first, beyond the last after it."""
    return (time_ns + EARLY_NS - chunk.stamp_ns) // chunk.period_ns


def held(set_point: SetPoint, why: str) -> SetPoint:
    """The same set-point, held."""
    return dataclasses.replace(set_point, holding=why)
