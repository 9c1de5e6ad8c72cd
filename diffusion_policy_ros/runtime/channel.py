"""One quantity of the set-point from tick to tick: interpolated, limited, led."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_policy_ros.runtime.commander import Commander, Vector
from diffusion_policy_ros.runtime.limits import FLAT, ROUNDING, TURNS, Limiter, Space
from diffusion_policy_ros.runtime.playback import EARLY_NS, Knot

LATE_TICKS = 5
"""A tick that comes later than so many periods is late."""
CATCH_UP_NS = 200_000_000
"""So long takes what a late tick missed: done at once, it would be a jump of any size where no
velocity limit is set."""


@dataclass
class Channel:
    """One part of the set-point on its way from tick to tick.

    Args:
        slot: which part.
        space: how its values are stepped through.
        limiter: of its steps.
        lead: how far it may be from what is measured; one number, or one for each component.
        lead_name: what that limit is called.
        low, high: of its values; empty for none.

    Attributes:
        value: what the robot is told; None before `begin`.
        state: the observation that measures it.
    """

    slot: str
    space: Space
    limiter: Limiter
    lead: Any = None
    lead_name: str = "lead"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    value: Any = None
    state: str = ""

    def begin(self, value: Vector, now_ns: int) -> None:
        """Start from here, at rest."""
        self.value = self._aim = value
        self.limiter.last = np.zeros_like(self.space.way(value, value))
        self._aim_ns = self._caught_up_ns = now_ns
        self._expected: Vector | None = None

    def aim(self, knots: Sequence[Knot], now_ns: int, period_ns: int) -> Vector:
        """Where it should be now.

        Args:
            knots: what it was told last, and what it will be told next.
            now_ns: the time.
            period_ns: between two actions.
        """
        last, begin, begin_ns = knots[0], self._aim, self._aim_ns
        tick_ns = round(self.limiter.period_s * 1e9)
        if now_ns - begin_ns > LATE_TICKS * tick_ns:
            begin_ns, self._caught_up_ns = now_ns - tick_ns, now_ns + CATCH_UP_NS
        is_behind = now_ns < self._caught_up_ns
        on_course = self._expected is not None and np.array_equal(self._expected, last.value)
        if not is_behind and abs(now_ns - last.due_ns) <= EARLY_NS:
            begin, begin_ns = last.value, now_ns
        elif not is_behind and on_course and last.due_ns > begin_ns:
            begin, begin_ns = last.value, last.due_ns
        # The last action of a chunk is gone to at once if that is the way it was on anyway.
        goal = knots[1] if len(knots) > 1 else Knot(last.due_ns + period_ns, last.value)
        self._expected = goal.value
        left_ns = max(goal.due_ns, self._caught_up_ns) - begin_ns
        way = self.space.way(begin, goal.value)
        share = min((now_ns - begin_ns) / left_ns, 1.0) if left_ns > 0 else 1.0
        self._aim = begin if share <= 0 or not way.any() else self.space.move(begin, share * way)
        self._aim_ns = now_ns
        return self._aim

    def go(self, aim: Vector, ahead: Sequence[Vector], measured: Vector | None) -> None:
        """Take a tick's step towards an aim, as far as the limits allow.

        Args:
            aim: where it should be.
            ahead: where it should be later.
            measured: where the robot is; None where that is not known.
        """
        limiter, way = self.limiter, self.space.way(self.value, aim)
        if limiter.idle or not (way.any() or limiter.last.any()):
            self._take(aim, measured)
            return
        room = limiter.room(way, (self.space.way(self.value, value) for value in ahead))
        step = limiter.step(way, room)
        if not self._may_rest_after(step, measured):
            limiter.clamped["braking"] += 1
            step = limiter.brake()
        self._take(self.space.move(self.value, step), measured)

    def hold(self, now_ns: int, measured: Vector | None) -> None:
        """Come to rest, as fast as the limits allow, and stay."""
        step = self.limiter.brake()
        self._take(self.space.move(self.value, step) if step.any() else self.value, measured)
        self._aim, self._aim_ns, self._expected = self.value, now_ns, None

    def _take(self, value: Vector, measured: Vector | None) -> None:
        value = self._led(value, measured)
        self.limiter.last = self.space.way(self.value, value)
        self.value = value

    def _may_rest_after(self, step: Vector, measured: Vector | None) -> bool:
        """Whether one can still stop in time after a step, or is no farther outside than now."""
        rest = self.space.move(self.value, step + self.limiter.to_rest(step))
        allowed = self._outside(self.value, measured)
        return bool((self._outside(rest, measured) <= allowed + ROUNDING).all())

    def _outside(self, value: Vector, measured: Vector | None) -> Vector:
        """How far a value is out of its range, and beyond its lead."""
        beyond = [np.zeros(1)]
        if self.low:
            beyond.append(np.maximum(self.low - value, 0.0) + np.maximum(value - self.high, 0.0))
        if measured is not None and self.lead is not None:
            ahead = self.limiter.size(self.space.way(measured, value))
            beyond.append(np.atleast_1d(np.maximum(ahead - self.lead, 0.0)))
        return np.concatenate(beyond)

    def _led(self, value: Vector, measured: Vector | None) -> Vector:
        """No farther from what is measured than the lead; nothing comes after this."""
        if measured is None or self.lead is None:
            return value
        ahead = self.space.way(measured, value)
        if not (self.limiter.size(ahead) > np.asarray(self.lead) * (1 + ROUNDING)).any():
            return value
        self.limiter.clamped[self.lead_name] += 1
        return self.space.move(measured, self.limiter.shortened(ahead, self.lead))


def channels(commander: Commander, period_s: float) -> list[Channel]:
    """The parts of a contract's set-points that go on from tick to tick.

    Args:
        commander: of the contract; its count of clamps is added to.
        period_s: of a tick.
    """
    limits, count = commander.contract.action.limits, commander.clamped
    move = Limiter(limits.velocity, limits.acceleration, period_s, clamped=count)
    turn = Limiter(
        limits.angular_velocity,
        limits.angular_acceleration,
        period_s,
        names=("angular_velocity", "angular_acceleration"),
        clamped=count,
    )
    bend = Limiter(
        limits.joint_velocity,
        limits.joint_acceleration,
        period_s,
        each=True,
        names=("joint_velocity", "joint_acceleration"),
        clamped=count,
    )
    made = {
        "position": Channel(
            "position",
            FLAT,
            move,
            lead=limits.lead,
            low=limits.workspace_min,
            high=limits.workspace_max,
        ),
        "quaternion": Channel("quaternion", TURNS, turn, limits.lead_rotation, "lead_rotation"),
        "joints": Channel(
            "joints",
            FLAT,
            bend,
            limits.joint_lead or None,
            "joint_lead",
            limits.joint_min,
            limits.joint_max,
        ),
    }
    found = [made[slot] for slot in commander.fields if slot in made]
    for channel in found:
        channel.state = commander.fields[channel.slot].state
    return found
