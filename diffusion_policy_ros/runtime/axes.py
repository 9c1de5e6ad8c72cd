"""An axis: one field of the action, from what a chunk says to what the robot is told.

For each kind there is a class, in `AXES`; all do, in this order: *anchor* where the robot is,
*gate* the first action of a chunk, *aim* at what the chunk says now, *limit* where actions may
lead, and *step* towards it as far as the limits of a tick allow. Only a step moves a set-point,
and only towards an aim; what is measured shortens steps, and never makes one.

Limits are of elapsed time, whatever the ticks are. From a velocity v a set-point that brakes with
the acceleration a comes to rest within v² / 2a, however late the ticks come, for each of them goes
only as fast as it is to be at its end. So a step of u dt may be taken where u dt + u² / 2a is
free.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import ActionField, Contract, FieldLimits
from diffusion_policy_ros.policy.rotations import TO_QUATERNION
from diffusion_policy_ros.runtime.spaces import (
    Flat,
    Limit,
    Turns,
    Vector,
    Wrapped,
    exceeds,
    shortened,
    size,
)
from diffusion_policy_ros.runtime.tail import EARLY_NS, Chunk

AHEAD = 8
"""Actions to come that are looked at: an acceleration limit must know where the way ends."""
CATCH_UP_NS = 200_000_000
"""So long takes what a late tick missed: done at once, it would be a jump of any size where no
velocity limit is set."""
CONE = 0.3
"""How far to the side, per length, a later target may lie to count as straight ahead."""
RETURN_SPEED = 0.05
"""Outside its range an axis comes back so fast at most, a second."""
REDUCED_SPEED = {"position": 0.25}
"""What `speed_scale` is of where no velocity is set: reduced speed as in ISO 10218, m/s; of other
roles 1 rad/s."""
OUTSIDE = 2e-3
"""An axis that begins so far outside its range, m or rad, is at its edge."""
HYSTERESIS = 0.1
"""How far beyond the cut at 0, of -1 to 1, a binary has to be to change."""


class Axis:
    """One field of the action, as far as it moves.

    Args:
        part: the field.
        limits: what acts on it.
        period_ns: between two actions.
        early_ns: how long before its time an action is sent.
        clamped: counts, by field and limit, what was held back.

    Attributes:
        value: what the robot is told; None before `anchor`.
        velocity: of the last step, a second.
    """

    space: Any = Flat()
    each = False
    begins_where_measured = True
    width = 0

    def __init__(
        self,
        part: ActionField,
        limits: FieldLimits,
        period_ns: int,
        early_ns: int,
        clamped: Counter[str],
    ) -> None:
        self.part, self.name, self.clamped = part, part.name, clamped
        self.early_ns, self._period_ns = early_ns, period_ns
        self.width = self.width or part.size
        self.limited_by(limits)
        self.forget()

    def limited_by(self, limits: FieldLimits) -> None:
        """Have these limits from now on."""
        self._top, self._acceleration = (
            self._limit(limits.velocity),
            self._limit(limits.acceleration),
        )
        self._step, self._lead = self._limit(limits.step), self._limit(limits.lead)
        self._jump = self._limit(limits.jump)
        self._error = self._limit(limits.following_error)
        self._brakes = bool(np.isfinite(self._acceleration).any())
        self._low: Any = None
        if limits.min is not None and limits.max is not None:
            turning = np.broadcast_to(self.part.wrap, self.width)
            self._low = np.where(turning, -np.inf, np.array(limits.min))
            self._high: Any = np.where(turning, np.inf, np.array(limits.max))
            self._range = self._low.tolist(), self._high.tolist()

    def _limit(self, value: Any) -> Limit:
        number = math.inf if value is None else value
        if isinstance(number, tuple) and len(number) == 1:
            number = number[0]
        if isinstance(number, tuple) or self.each:
            steps = len(self.space.way(*[np.ones(self.width)] * 2))
            return np.broadcast_to(np.asarray(number, dtype=float), steps).copy()
        return float(number)

    def forget(self) -> None:
        """Have no set-point; the next one is where the robot is then."""
        self.value: Any = None
        self._chunk: Chunk | None = None
        self._done_ns: int | None = None

    def is_value(self, value: Vector) -> bool:
        """Whether a measurement is one of this axis."""
        return value.shape == (self.width,) and bool(np.isfinite(value).all())

    def distance(self, start: Vector, end: Vector) -> float:
        """Between two values: m, rad, or the largest of any component."""
        way = self.space.way(start, end)
        return float(np.abs(way).max()) if self.each else math.sqrt(way @ way)

    def _count(self, limit: str) -> None:
        self.clamped[f"{self.name}.{limit}"] += 1

    def targets(self, actions: Vector) -> Vector:
        """What actions (n, size) of the field say: set-points (n, width), or deltas."""
        return np.asarray(actions, dtype=float)

    # --------------------------------------------------------------------------------- anchor

    def anchor(self, measured: Vector | None, now_ns: int) -> None:
        """Begin where the robot is, at rest."""
        self.value = self._start(measured)
        self.velocity = (
            np.zeros(0) if self.value is None else self.space.way(self.value, self.value)
        )
        self.goal: Any = self.value
        self._next: Any = None
        self._left = self._onward = self.velocity
        self._aim, self._aim_ns, self._expected = self.value, now_ns, None
        self._caught_up_ns = now_ns
        self._chunk, self._done_ns = None, None

    def _start(self, measured: Vector | None) -> Any:
        return measured if measured is not None or not self.part.is_delta else np.zeros(self.width)

    def outside(self, value: Vector) -> Any:
        """How far each component is out of its range."""
        if self._low is None or value is None:
            return np.zeros(1)
        return np.maximum(np.maximum(self._low - value, value - self._high), 0.0)

    def _is_inside(self, value: Vector) -> bool:
        """Whether it is in its range; quicker than how far it is out."""
        parts = zip(self._range[0], value.tolist(), self._range[1], strict=True)
        return all(low <= part <= high for low, part, high in parts)

    # ----------------------------------------------------------------------------------- gate

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

    # ------------------------------------------------------------------------------------ aim

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
            target = self.limit(start, self.space.move(measured, target))
        else:
            target = self.limit(start, self._led(start, target))
        self.goal = target
        if self.value is None:
            self.value = self._aim = target
            self.velocity = self._left = self._onward = self.space.way(target, target)

    def led_on(self, target: Vector) -> Any:
        """Where one more action leads from the set-point, whatever the time."""
        return (
            target if self.value is None else self.limit(self.value, self._led(self.value, target))
        )

    def _led(self, start: Vector, target: Vector) -> Vector:
        """Where an action leads from a goal, without any limit."""
        if self.part.is_delta:
            return np.asarray(self.space.move(start, target))
        return target

    def _coming(self, targets: Vector) -> list[Vector]:
        """Where the next actions lead; not known where they depend on what will be measured."""
        if self.part.deltas_from == "measured":
            return []
        found, goal = [], self.goal
        for target in targets[: AHEAD if self._brakes else 1]:
            goal = self.limit(goal, self._led(goal, target), count=False)
            found.append(goal)
        return found

    def _look_ahead(self, goals: list[Vector]) -> None:
        """Know the next goal, and how far the way goes on from there as long as it lies ahead."""
        self._next = goals[0] if goals else self.goal
        first = self.space.way(self.goal, self._next)
        onward = np.zeros_like(first)
        ahead = [self.space.way(self._next, goal) for goal in goals[1:]]
        if self.each:
            going = np.ones(len(first), dtype=bool)
            for way in ahead:
                going = going & (way * np.sign(first) >= np.abs(onward))
                onward = np.where(going, way, onward)
        elif first.any():
            direction, reached = first / math.sqrt(first @ first), 0.0
            for way in ahead:
                forward = float(way @ direction)
                aside = way - forward * direction
                if forward < reached or math.sqrt(aside @ aside) > CONE * forward:
                    break
                reached = forward
            onward = reached * direction
        self._left, self._onward = first, onward

    def _near_goal(self, measured: Vector | None, scale: float) -> Vector:
        """The goal before; what limits held back of it is made up for at once or not at all."""
        way = self.space.way(self.value, self.goal)
        period_s, top = self._period_ns / 1e9, self._speed(scale)
        near = self._within_lead(shortened(way, self._reach(top, period_s)), measured)
        return self.goal if near is way else np.asarray(self.space.move(self.value, near))

    def _reach(self, top: Limit, seconds: float) -> Limit:
        """How far it gets in a time, and behind while it gets up to speed."""
        if not self._brakes or np.isinf(top).all():
            return top * seconds
        with np.errstate(invalid="ignore"):
            reach = top * seconds + top * top / (2 * self._acceleration)
        return np.where(np.isinf(top), np.inf, reach) if isinstance(reach, np.ndarray) else reach

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
        on_course = self._expected is not None and np.array_equal(self._expected, self.goal)
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
        elif share <= 0 or not way.any():
            self._aim = begin
        else:
            self._aim = self.space.move(begin, share * way)
        self._aim_ns = now_ns
        return self._aim

    # ---------------------------------------------------------------------------------- limit

    def limit(self, start: Vector, target: Vector, count: bool = True) -> Vector:
        """Where an action may lead from a goal: into its range, and a step at most."""
        if self._low is not None:
            inside = np.minimum(np.maximum(target, self._low), self._high)
            if count and (inside != target).any():
                self._count("range")
            target = inside
        way = self.space.way(start, target)
        step = shortened(way, self._step)
        if step is way:
            return target
        if count:
            self._count("step")
        return np.asarray(self.space.move(start, step))

    # ----------------------------------------------------------------------------------- step

    def step(self, aim: Vector, elapsed_s: float, measured: Vector | None, scale: float) -> None:
        """Go towards an aim, as far as the limits allow.

        Args:
            aim: where it should be.
            elapsed_s: since the last step.
            measured: where the robot is; None where that is not known.
            scale: of the velocity, 0 to 1.
        """
        way = self.space.way(self.value, aim)
        if elapsed_s <= 0 or not (way.any() or self.velocity.any()):
            return
        near = self._within_lead(way, measured)
        wanted = near / elapsed_s
        velocity = shortened(wanted, self._speed(scale))
        if near is not way:
            self._count("lead")
        if velocity is not wanted:
            self._count("velocity")
        if self._brakes:
            velocity = shortened(velocity, self._braking(near, elapsed_s))
            velocity = self._accelerated(velocity, elapsed_s)
            if not self._may_rest_after(velocity, elapsed_s, measured):
                self._count("braking")
                velocity = self._braked(elapsed_s)
        if velocity is wanted and near is way:
            self.value, self.velocity = aim, velocity
        else:
            self._take(velocity, elapsed_s)

    def rest(self, now_ns: int, elapsed_s: float) -> None:
        """Come to rest, as fast as the limits allow, and stay; what comes next begins there."""
        if self.value is not None:
            self._brake(elapsed_s)
            self.goal = self._aim = self.value
            self._aim_ns, self._expected, self._next, self._chunk = now_ns, None, None, None

    def _brake(self, elapsed_s: float) -> None:
        if elapsed_s > 0 and self.velocity.any():
            self._take(self._braked(elapsed_s), elapsed_s)

    @property
    def at_rest(self) -> bool:
        """Whether it does not move."""
        return self.value is None or not self.velocity.any()

    def _take(self, velocity: Vector, elapsed_s: float) -> None:
        """Go on with a velocity; never farther out of its range, whatever the velocity is."""
        value = self.space.move(self.value, velocity * elapsed_s)
        if self._low is not None and not self._is_inside(value):
            low, high = np.minimum(self._low, self.value), np.maximum(self._high, self.value)
            inside = np.minimum(np.maximum(value, low), high)
            if (inside != value).any():
                value, velocity = inside, self.space.way(self.value, inside) / elapsed_s
        self.value, self.velocity = value, velocity

    def _speed(self, scale: float) -> Limit:
        """The greatest velocity now."""
        top = self._top
        if scale < 1:
            reduced = REDUCED_SPEED.get(self.part.role, 1.0)
            unset = np.where(np.isinf(top), reduced, top)
            top = scale * (unset if isinstance(top, np.ndarray) else float(unset))
        if self._low is not None and not self._is_inside(self.value):
            top = _smaller(top, RETURN_SPEED)
        return top

    def _braking(self, way: Vector, elapsed_s: float) -> Limit:
        """The greatest velocity from which it still stops where the way ends."""
        room = self._room(way)
        inner = elapsed_s**2 + 2 * room / self._acceleration
        root = math.sqrt(inner) if isinstance(inner, float) else np.sqrt(inner)
        return 2 * room / (elapsed_s + root)

    def _room(self, way: Vector) -> Any:
        """How far the way goes on: to the next goal, and beyond it, as long as it lies ahead."""
        room, onward = size(way, self._acceleration), self._left + self._onward
        if isinstance(room, np.ndarray):
            return room + np.where(onward * way > 0, np.abs(onward), 0.0)
        forward = float(onward @ way) / room if room > 0 else 0.0
        lies_ahead = forward > 0 and onward @ onward <= (1 + CONE * CONE) * forward * forward
        return room + forward if lies_ahead else room

    def _accelerated(self, velocity: Vector, elapsed_s: float) -> Vector:
        """The nearest to a velocity that the acceleration allows."""
        change = velocity - self.velocity
        allowed = shortened(change, self._acceleration * elapsed_s)
        if allowed is change:
            return velocity
        self._count("acceleration")
        return np.asarray(self.velocity + allowed)

    def _braked(self, elapsed_s: float) -> Vector:
        """The velocity after braking as hard as is allowed."""
        return np.asarray(self.velocity - shortened(self.velocity, self._acceleration * elapsed_s))

    def _may_rest_after(self, velocity: Vector, elapsed_s: float, measured: Vector | None) -> bool:
        """Whether one can still stop in time, or gets no farther outside than now."""
        braking_s = size(velocity, self._acceleration) / (2 * self._acceleration)
        rest = self.space.move(self.value, velocity * (elapsed_s + braking_s))
        leaves = self._low is not None and not self._is_inside(rest)
        if leaves and exceeds(self.outside(rest), self.outside(self.value)):
            return False
        if measured is None or not np.isfinite(self._lead).any():
            return True
        behind = size(self.space.way(measured, self.value), self._lead)
        return not exceeds(self.space.way(measured, rest), np.maximum(self._lead, behind))

    def _within_lead(self, way: Vector, measured: Vector | None) -> Vector:
        """As much of a way as does not lead the measured value by more than the lead, or than it
        does already. The same object where that is all of it.
        """
        if measured is None or not np.isfinite(self._lead).any():
            return way
        ahead = self.space.way(measured, self.value)
        if not isinstance(self._lead, float):
            most = np.maximum(self._lead, np.abs(ahead))
            near = np.minimum(np.maximum(ahead + way, -most), most) - ahead
            return near if exceeds(ahead + way, most) else way
        most = max(self._lead, math.sqrt(ahead @ ahead))
        share = 1.0
        while share > SHORTEST:
            end = self.space.move(self.value, share * way)
            if not exceeds(self.space.way(measured, end), most):
                return way if share == 1.0 else share * way
            share = _share_within(ahead, share * way, most) * share * (1 - SHORTEST)
        return 0.0 * way

    # ------------------------------------------------------------------------ following error

    def following_error(self, measured: Vector | None) -> str:
        """Why the robot does not follow; empty where it does, or nobody asks."""
        if measured is None or self.value is None or not np.isfinite(self._error).any():
            return ""
        way = self.space.way(self.value, measured)
        if not exceeds(way, self._error):
            return ""
        distance = float(np.max(size(way, self._error)))
        return f"{self.name} is {distance:.3f} from its set-point"


SHORTEST = 1e-6
"""Shorter shares of a way are none."""


def _share_within(ahead: Vector, way: Vector, most: float) -> float:
    """How much of a way from `ahead` stays within a sphere of this radius."""
    a, b, c = float(way @ way), float(ahead @ way), float(ahead @ ahead) - most * most
    share = (-b + math.sqrt(max(b * b - a * min(c, 0.0), 0.0))) / a
    return min(max(share, 0.0), 1 - SHORTEST)


def _smaller(limit: Limit, most: float) -> Limit:
    return np.minimum(limit, most) if isinstance(limit, np.ndarray) else min(limit, most)


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

    def _led(self, start: Vector, target: Vector) -> Vector:
        if self.part.is_delta or not isinstance(self.space, Wrapped):
            return super()._led(start, target)
        return np.asarray(start + self.space.way(start, target))


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
        return self.value is None or not self.value.any()


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
            contract.period_ns,
            contract.sent_early_ns(part),
            clamped,
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
