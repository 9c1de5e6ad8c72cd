"""An axis: one field of the action, from what a chunk says to what the robot is told.

For each kind there is a class, in `AXES`; all do, in this order: *anchor* where the robot is,
*gate* the first action of a chunk, *aim* at what the chunk says now, *limit* where actions may
lead, and *step* towards it as far as the limits of a tick allow (`motion.py`). Only a step moves
a set-point, and only towards an aim; what is measured shortens steps, and never makes one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import ActionField, Contract, FieldLimits
from diffusion_policy_ros.policy.rotations import TO_QUATERNION
from diffusion_policy_ros.runtime.motion import SHORTEST, Motion
from diffusion_policy_ros.runtime.spaces import (
    Flat,
    Turns,
    Vector,
    Wrapped,
    exceeds,
    is_zero,
    shortened,
    size,
)
from diffusion_policy_ros.runtime.tail import EARLY_NS, Chunk

AHEAD = 8
"""Actions to come that are looked at: an acceleration limit must know where the way ends."""
CATCH_UP_NS = 200_000_000
"""So long takes what a late tick missed: done at once, it would be a jump of any size where no
velocity limit is set."""
OUTSIDE = 2e-3
"""An axis that begins so far outside its range, m or rad, is at its edge."""
HYSTERESIS = 0.1
"""How far beyond the cut at 0, of -1 to 1, a binary has to be to change."""


class Axis(Motion):
    """One field of the action, as far as it moves.

    Args:
        part: the field.
        limits: what acts on it.
        clamped: counts, by field and limit, what was held back.
        period_ns: between two actions.
        early_ns: how long before its time an action is sent.
    """

    begins_where_measured = True

    def __init__(
        self,
        part: ActionField,
        limits: FieldLimits,
        clamped: Counter[str],
        period_ns: int,
        early_ns: int,
    ) -> None:
        super().__init__(part, limits, clamped, period_ns / 1e9)
        self.early_ns, self._period_ns = early_ns, period_ns
        self.forget()

    def forget(self) -> None:
        """Have no set-point; the next one is where the robot is then."""
        self.value: Any = None
        self._chunk: Chunk | None = None
        self._done_ns: int | None = None

    def targets(self, actions: Vector) -> Vector:
        """What actions (n, size) of the field say: set-points (n, width), or deltas."""
        return np.asarray(actions, dtype=float)

    def anchor(self, measured: Vector | None, now_ns: int) -> None:
        """Begin where the robot is, at rest."""
        self.value = self._start(measured)
        self.velocity = (
            np.zeros(0) if self.value is None else self.space.way(self.value, self.value)
        )
        self.goal = self.value
        self._next: Any = None
        self._left = self._onward = self.velocity
        self._aim, self._aim_ns, self._expected = self.value, now_ns, None
        self._caught_up_ns = now_ns
        self._chunk, self._done_ns = None, None

    def _start(self, measured: Vector | None) -> Any:
        return measured if measured is not None or not self.part.is_delta else np.zeros(self.width)

    def gate(self, first: Vector, measured: Vector | None) -> str:
        """Why a chunk may not begin with an action: it leads too far from where the robot is, and
        from where it is told to be. Empty when it may.
        """
        if self.part.is_delta:
            ways = [first]
        else:
            known = [value for value in (self.value, measured) if value is not None]
            ways = [self.space.way(value, first) for value in known]
        if not ways or not all(exceeds(way, self._jump) for way in ways):
            return ""
        distance = min(float(np.max(size(way, self._jump))) for way in ways)
        return f"begins {distance:.3f} from the measured {self.name}, beyond its jump"

    def plan(
        self, chunk: Chunk, targets: Vector, now_ns: int, measured: Vector | None, scale: float
    ) -> str:
        """Execute what is due of a chunk, and see what comes next; why nothing is, or nothing."""
        index = chunk.index(now_ns + self.early_ns)
        if not 0 <= index < len(targets):
            return "past the last action" if index >= 0 else "the chunk is from the future"
        due_ns = chunk.stamp_ns + index * chunk.period_ns
        begins = self._done_ns is None or due_ns - self._done_ns > self._period_ns / 2
        if begins:
            self._execute(targets[index], measured, scale)
            self._done_ns = due_ns
        if begins or chunk is not self._chunk:
            done = chunk.index(self._done_ns or due_ns) + 1
            self._chunk = chunk
            self._look_ahead(self._coming(targets[max(done, 0) :]))
        return ""

    def skipped(self, chunk: Chunk, now_ns: int) -> int:
        """Actions whose time has passed since the last one that was executed."""
        index = chunk.index(now_ns + self.early_ns)
        if self._done_ns is None or not 0 <= index < len(chunk.actions):
            return 0
        due_ns = chunk.stamp_ns + index * chunk.period_ns
        return max(0, min(round((due_ns - self._done_ns) / self._period_ns) - 1, index))

    def _execute(self, target: Vector, measured: Vector | None, scale: float) -> None:
        """Let one action lead on from the goal before, or from what is measured."""
        start = self._near_goal(measured, scale) if self.value is not None else target
        if self.part.deltas_from == "measured" and measured is not None:
            # Drivers of continuous joints count turns as they please.
            target = self.space.near(start, self.space.move(measured, target))
        else:
            target = self._led(start, target)
        self.goal = target = self.limit(start, target)
        if self.value is None:
            self.value = self._aim = target
            self.velocity = self._left = self._onward = self.space.way(target, target)

    def led_on(self, target: Vector) -> Any:
        """Where one more action leads from the set-point, whatever the time."""
        before = self.value
        return target if before is None else self.limit(before, self._led(before, target))

    def _led(self, start: Vector, target: Vector) -> Vector:
        """Where an action leads from a goal, without any limit."""
        if self.part.is_delta:
            return np.asarray(self.space.move(start, target))
        return np.asarray(self.space.near(start, target))

    def _coming(self, targets: Vector) -> list[Vector]:
        """Where the next actions lead; not known where they depend on what will be measured."""
        if self.part.deltas_from == "measured":
            return []
        found, goal = [], self.goal
        for target in targets[: AHEAD if self._brakes else 1]:
            goal = self.limit(goal, self._led(goal, target), count=False)
            found.append(goal)
        return found

    def aim(self, now_ns: int, tick_ns: int, late: bool) -> Vector:
        """Where it should be now: at an action's time there, and on the straight way between two.

        Args:
            now_ns: the time.
            tick_ns: between two ticks.
            late: whether ticks were missed before this one.
        """
        begin, begin_ns, due_ns = self._aim, self._aim_ns, (self._done_ns or 0) - self.early_ns
        if late:
            begin_ns, self._caught_up_ns = now_ns - tick_ns, now_ns + CATCH_UP_NS
        behind = now_ns < self._caught_up_ns
        on_course = self._expected is not None and (self._expected.tolist() == self.goal.tolist())
        if not behind and abs(now_ns - due_ns) <= EARLY_NS:
            begin, begin_ns = self.goal, now_ns
        elif not behind and on_course and due_ns > begin_ns:
            begin, begin_ns = self.goal, due_ns
        # The last action of a chunk is gone to at once if that is the way it was on anyway.
        self._expected = self.goal if self._next is None else self._next
        left_ns = max(due_ns + self._period_ns, self._caught_up_ns) - begin_ns
        share = min((now_ns - begin_ns) / left_ns, 1.0) if left_ns > 0 else 1.0
        if self.part.deltas_from == "measured":
            share = 1.0
        way = self.space.way(begin, self._expected)
        self._left = (1.0 - share) * way
        if share >= 1:
            self._aim = self._expected
        elif share <= 0 or is_zero(way):
            self._aim = begin
        else:
            self._aim = self.space.move(begin, share * way)
        self._aim_ns = now_ns
        return self._aim

    def limit(self, start: Vector, target: Vector, count: bool = True) -> Vector:
        """Where an action may lead from a goal: into its range, and a step at most."""
        if self._low is not None and not self._is_inside(target):
            target = np.minimum(np.maximum(target, self._low), self._high)
            if count:
                self._count("range")
        if not self._steps:
            return target
        way = self.space.way(start, target)
        step = shortened(way, self._step)
        if step is way:
            return target
        if count:
            self._count("step")
        return np.asarray(self.space.move(start, step))

    def rest(self, now_ns: int, elapsed_s: float) -> None:
        """Come to rest, as fast as the limits allow, and stay; what comes next begins there."""
        if self.value is not None:
            self._brake(elapsed_s)
            self.goal = self._aim = self.value
            self._aim_ns, self._expected, self._next, self._chunk = now_ns, None, None, None


class Position(Axis):
    """Of an end effector: the step's length counts."""


class Rotation(Axis):
    """A quaternion: the step's angle counts."""

    space, width = Turns(), 4

    def targets(self, actions: Vector) -> Vector:
        """Quaternions, whatever tells them."""
        if self.part.is_delta:
            return np.asarray(actions, dtype=float)
        return TO_QUATERNION[self.part.kind](actions)

    def is_value(self, value: Vector) -> bool:
        """Whether it is a quaternion."""
        return super().is_value(value) and bool(value @ value > SHORTEST)

    def _start(self, measured: Vector | None) -> Any:
        if measured is None:
            return np.array([0.0, 0.0, 0.0, 1.0]) if self.part.is_delta else None
        return measured / math.sqrt(measured @ measured)


class Joints(Axis):
    """Every joint for itself; also a gripper's width and other numbers."""

    each = True

    def __init__(self, part: ActionField, *args: Any) -> None:
        wraps = np.broadcast_to(part.wrap, part.size)
        self.space = Wrapped(wraps) if wraps.any() else Flat()
        super().__init__(part, *args)


class Velocity(Axis):
    """What is told is a velocity itself: it changes as fast as the acceleration allows, and is
    zero where the axis holds.
    """

    each = True
    begins_where_measured = False

    def limited_by(self, limits: FieldLimits) -> None:
        """Have these limits from now on."""
        most, rate = self._limit(limits.velocity), self._limit(limits.acceleration)
        low = self._limit(limits.min) if limits.min is not None else -most
        high = self._limit(limits.max) if limits.max is not None else most
        super().limited_by(FieldLimits())
        self._top, self._slowest, self._fastest = (
            rate,
            np.maximum(low, -most),
            np.minimum(high, most),
        )

    def _start(self, measured: Vector | None) -> Any:
        return np.zeros(self.width)

    def gate(self, first: Vector, measured: Vector | None) -> str:
        """Nothing: it begins at zero."""
        return ""

    def limit(self, start: Vector, target: Vector, count: bool = True) -> Vector:
        """As fast as is allowed."""
        slower = np.minimum(np.maximum(target, self._slowest), self._fastest)
        if count and (slower != target).any():
            self._count("velocity")
        return slower

    def step(self, aim: Vector, elapsed_s: float, measured: Vector | None, scale: float) -> None:
        """Go towards the velocity that is aimed at, scaled."""
        super().step(scale * aim, elapsed_s, None, 1.0)

    def _brake(self, elapsed_s: float) -> None:
        super().step(np.zeros(self.width), elapsed_s, None, 1.0)

    @property
    def at_rest(self) -> bool:
        """Whether it tells the robot to stand still."""
        return self.value is None or is_zero(self.value)


class Binary(Axis):
    """Open or closed: +1 for closed, -1 for open; it changes where an action clearly says so."""

    begins_where_measured = False

    def _start(self, measured: Vector | None) -> Any:
        return None

    def gate(self, first: Vector, measured: Vector | None) -> str:
        """Nothing: it is never far."""
        return ""

    def _execute(self, target: Vector, measured: Vector | None, scale: float) -> None:
        if self.value is None or abs(float(target[0])) > HYSTERESIS:
            self.value = np.where(target > 0, 1.0, -1.0)
        self.goal = self.value

    def _look_ahead(self, goals: list[Vector]) -> None:
        pass

    def aim(self, now_ns: int, tick_ns: int, late: bool) -> Vector:
        """Where the last action led."""
        return np.asarray(self.value)

    def step(self, aim: Vector, elapsed_s: float, measured: Vector | None, scale: float) -> None:
        """Nothing: it is there at once."""

    def _brake(self, elapsed_s: float) -> None:
        pass

    @property
    def at_rest(self) -> bool:
        """Always."""
        return True


AXES: dict[str, type[Axis]] = {
    "position": Position,
    "rotation": Rotation,
    "joints": Joints,
    "scalar": Joints,
    "joint_velocity": Velocity,
    "twist": Velocity,
    "binary": Binary,
}
"""Role of a field → its axis."""


def axes_of(contract: Contract, clamped: Counter[str]) -> list[Axis]:
    """The axes of a contract, in the order of its action; what is only kept comes last.

    Args:
        contract: the robot.
        clamped: to count in.
    """
    return [
        AXES[part.role](
            part,
            contract.action.limits_of(part),
            clamped,
            contract.period_ns,
            contract.sent_early_ns(part),
        )
        for part in contract.commanded
    ]


def goals(
    contract: Contract, start: Mapping[str, Any], actions: Vector
) -> list[dict[str, Vector]]:
    """Where actions lead one after the other: field → goal, one more than there are actions.

    Args:
        contract: the robot.
        start: field → where it is before the first.
        actions: (n, Da).
    """
    axes, slices = axes_of(contract, Counter()), contract.action.slices
    for axis in axes:
        axis.anchor(start.get(axis.name), 0)
    found = [{axis.name: axis.value for axis in axes if axis.value is not None}]
    for action in actions:
        for axis in axes:
            if axis.name in slices:
                axis.value = axis.led_on(axis.targets(action[None, slices[axis.name]])[0])
        found.append({axis.name: axis.value for axis in axes if axis.value is not None})
    return found
