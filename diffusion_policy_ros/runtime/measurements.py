"""What is measured of a robot, and whether it can be believed.

Measurements never move a set-point. They are where it begins, they shorten its steps, and they end
its motion: here by being old, by being none, or by jumping farther than any arm moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.axes import Axis
from diffusion_policy_ros.runtime.spaces import Vector
from diffusion_policy_ros.runtime.tail import HUGEST

FASTEST = (3.0, 0.05)
FASTEST_TURN = (20.0, 0.2)
"""How far a measurement may be from the one before: a speed, and a distance on top of it, for
noise; in m of positions, in rad of rotations and joints."""
SAMPLES = 2
"""So many measurements have to agree before a set-point may begin at one."""
ON_CHANGE_NS = 1_000_000_000
"""What may be older than this is published when it changes: one measurement has to do."""


class Seen(NamedTuple):
    """A measurement: its value and time, and how many up to it have come without a jump."""

    value: Vector
    time_ns: int
    agreeing: int


class Measurements:
    """The newest measurement of each axis that begins where the robot is.

    Args:
        contract: the robot.
        axes: its axes.

    Attributes:
        fault: name and reason of what ends a motion; None for nothing.
    """

    def __init__(self, contract: Contract, axes: Sequence[Axis]) -> None:
        self.fault: tuple[str, str] | None = None
        self._seen: dict[str, Seen] = {}
        self._axes: dict[str, Axis] = {}
        for axis in axes:
            if axis.part.state in contract.measured and axis.begins_where_measured:
                self._axes.setdefault(axis.part.state, axis)
        self.limited_by(contract)

    def limited_by(self, contract: Contract) -> None:
        """Have this contract's time-outs; what is published on change has a life of its own."""
        limits, streams = contract.action.limits, contract.measured
        self._stops = limits.on_stale == "stop"
        self._time_outs_ns = {
            key: round(1e9 * max(limits.observation_timeout_s, streams[key].max_age_s))
            for key in self._axes
        }

    def forget(self) -> None:
        """Know nothing."""
        self._seen, self.fault = {}, None

    def of(self, axis: Axis) -> Vector | None:
        """Where an axis is; None where that is not known."""
        seen = self._seen.get(axis.part.state)
        return seen.value if seen is not None else None

    @property
    def unsure(self) -> list[str]:
        """Keys of which more measurements are needed before a set-point may begin there."""
        return [key for key, seen in self._seen.items() if seen.agreeing < SAMPLES]

    def take(
        self, measured: Mapping[str, Any], measured_ns: Mapping[str, int] | None, now_ns: int
    ) -> str:
        """Take what is measured; why it cannot be believed to be so now, or nothing."""
        self.fault, why = None, ""
        if measured_ns is None:
            self._seen = {
                key: Seen(np.asarray(measured[key], dtype=float), now_ns, SAMPLES)
                for key in self._axes
                if key in measured
            }
            return ""
        for key, axis in self._axes.items():
            value = np.asarray(measured.get(key, ()), dtype=float)
            if key in measured and axis.is_value(value):
                self._see(key, axis, value, measured_ns[key])
            elif key in measured:
                why = why or f"{key} measures {np.round(value, 3).tolist()}"
            why = why or self._stale(key, now_ns)
        return why

    def _see(self, key: str, axis: Axis, value: Vector, time_ns: int) -> None:
        before, limit_ns = self._seen.get(key), self._time_outs_ns[key]
        if before is None:
            self._seen[key] = Seen(value, time_ns, SAMPLES if limit_ns > ON_CHANGE_NS else 1)
            return
        elapsed_ns = max(time_ns - before.time_ns, 0)
        if elapsed_ns == 0 and value.tolist() == before.value.tolist():
            return
        if not axis.part.moves_arm:
            speed = slack = HUGEST
        else:
            speed, slack = FASTEST if axis.part.role == "position" else FASTEST_TURN
        start, reach = before.value, slack + speed * elapsed_ns / 1e9
        if elapsed_ns > limit_ns and axis.value is not None:
            # Nobody has seen how it got there, but it must have gone where it was told to.
            start, reach = axis.value, slack + axis.distance(axis.value, before.value)
        distance = axis.distance(start, value)
        self._seen[key] = Seen(value, time_ns, before.agreeing + 1 if distance <= reach else 1)
        if distance > reach:
            passed = f"{elapsed_ns / 1e9:.3f} s"
            self.fault = "measured_jump", f"{key} jumped by {distance:.3f} in {passed}"

    def _stale(self, key: str, now_ns: int) -> str:
        """Why a measurement is not of now."""
        if key not in self._seen:
            return f"waiting for {key}"
        age_s, limit_s = (now_ns - self._seen[key].time_ns) / 1e9, self._time_outs_ns[key] / 1e9
        if abs(age_s) <= limit_s:
            return ""
        why = f"{key} is {age_s:.3f} s old, {limit_s:g} s are allowed"
        if age_s < 0:
            why = f"{key} is stamped {-age_s:.3f} s in the future"
        if self._stops:
            self.fault = self.fault or ("stale", why)
        return why
