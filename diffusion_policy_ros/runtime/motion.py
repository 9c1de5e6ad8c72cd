"""How a set-point moves: towards an aim, as far as the limits of a tick allow, and to rest.

Limits are of elapsed time, whatever the ticks are. From a velocity v a set-point that brakes with
the acceleration a comes to rest within v² / 2a, however late the ticks come, for each of them goes
only as fast as it is to be at its end. So a step of u dt may be taken where u dt + u² / 2a is
free. What is measured shortens steps, and never makes one.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import ActionField, FieldLimits
from diffusion_policy_ros.runtime.spaces import (
    Flat,
    Limit,
    Vector,
    exceeds,
    is_zero,
    length,
    shortened,
    size,
    surely_within,
)

CONE = 0.3
"""How far to the side, per length, a later target may lie to count as straight ahead."""
RETURN_SPEED = 0.05
"""Outside its range an axis comes back so fast at most, a second."""
REDUCED_SPEED = {"position": 0.25}
"""What `speed_scale` is of where no velocity is set: reduced speed as in ISO 10218, m/s; of other
roles 1 rad/s."""
SHORTEST = 1e-6
"""Shorter shares of a way are none."""


class Motion:
    """The set-point of one field, and what it may do in a tick.

    Args:
        part: the field.
        limits: what acts on it.
        clamped: counts, by field and limit, what was held back.
        period_s: between two actions.

    Attributes:
        value: what the robot is told; None before it has begun.
        goal: where the last action that fell due leads.
        velocity: of the last step, a second.
    """

    space: Any = Flat()
    each = False
    width = 0

    def __init__(
        self, part: ActionField, limits: FieldLimits, clamped: Counter[str], period_s: float
    ) -> None:
        self.part, self.name, self.clamped, self.period_s = part, part.name, clamped, period_s
        self.width = self.width or part.size
        self.value: Any = None
        self.goal: Any = None
        self.velocity = self._left = self._onward = np.zeros(0)
        self.limited_by(limits)

    def limited_by(self, limits: FieldLimits) -> None:
        """Have these limits from now on."""
        self._top = self._limit(limits.velocity)
        self._acceleration = self._limit(limits.acceleration)
        self._step, self._lead = self._limit(limits.step), self._limit(limits.lead)
        self._jump = self._limit(limits.jump)
        self._error = self._limit(limits.following_error)
        self._leads, self._follows = limits.lead is not None, limits.following_error is not None
        self._steps = limits.step is not None
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

    def is_value(self, value: Vector) -> bool:
        """Whether a measurement is one of this axis."""
        return value.shape == (self.width,) and all(map(math.isfinite, value.tolist()))

    def distance(self, start: Vector, end: Vector) -> float:
        """Between two values: m, rad, or the largest of any component."""
        way = self.space.way(start, end)
        return max(map(abs, way.tolist())) if self.each else length(way)

    def _count(self, limit: str) -> None:
        self.clamped[f"{self.name}.{limit}"] += 1

    def outside(self, value: Vector | None) -> Any:
        """How far each component is out of its range."""
        if self._low is None or value is None:
            return np.zeros(1)
        return np.maximum(np.maximum(self._low - value, value - self._high), 0.0)

    def _is_inside(self, value: Vector) -> bool:
        """Whether it is in its range; quicker than how far it is out."""
        parts = zip(self._range[0], value.tolist(), self._range[1], strict=True)
        return all(low <= part <= high for low, part, high in parts)

    def step(self, aim: Vector, elapsed_s: float, measured: Vector | None, scale: float) -> None:
        """Go towards an aim, as far as the limits allow.

        Args:
            aim: where it should be.
            elapsed_s: since the last step.
            measured: where the robot is; None where that is not known.
            scale: of the velocity, 0 to 1.
        """
        way = self.space.way(self.value, aim)
        if elapsed_s <= 0 or (is_zero(way) and is_zero(self.velocity)):
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

    def _brake(self, elapsed_s: float) -> None:
        if elapsed_s > 0 and not is_zero(self.velocity):
            self._take(self._braked(elapsed_s), elapsed_s)

    @property
    def at_rest(self) -> bool:
        """Whether it does not move."""
        return self.value is None or is_zero(self.velocity)

    def _take(self, velocity: Vector, elapsed_s: float) -> None:
        """Go on with a velocity; never farther out of its range, whatever the velocity is."""
        value = self.space.move(self.value, velocity * elapsed_s)
        if self._low is not None and not self._is_inside(value):
            low, high = np.minimum(self._low, self.value), np.maximum(self._high, self.value)
            inside = np.minimum(np.maximum(value, low), high)
            if (inside != value).any():
                value, velocity = inside, self.space.way(self.value, inside) / elapsed_s
        self.value, self.velocity = value, velocity

    def _reach(self, top: Limit, seconds: float) -> Limit:
        """How far it gets in a time, and behind while it gets up to speed."""
        if not self._brakes or np.isinf(top).all():
            return top * seconds
        with np.errstate(invalid="ignore"):
            reach = top * seconds + top * top / (2 * self._acceleration)
        return np.where(np.isinf(top), np.inf, reach) if isinstance(reach, np.ndarray) else reach

    def _near_goal(self, measured: Vector | None, scale: float) -> Vector:
        """The goal before; what limits held back of it is made up for at once or not at all."""
        way = self.space.way(self.value, self.goal)
        period_s, top = self.period_s, self._speed(scale)
        near = self._within_lead(shortened(way, self._reach(top, period_s)), measured)
        return self.goal if near is way else np.asarray(self.space.move(self.value, near))

    def _speed(self, scale: float) -> Limit:
        """The greatest velocity now."""
        top = self._top
        if scale < 1:
            reduced = REDUCED_SPEED.get(self.part.role, 1.0)
            unset = np.where(np.isinf(top), reduced, top)
            top = scale * (unset if isinstance(top, np.ndarray) else float(unset))
        if self.part.moves_arm and self._low is not None and not self._is_inside(self.value):
            top = _smaller(top, RETURN_SPEED)
        return top

    def _braking(self, way: Vector, elapsed_s: float) -> Limit:
        """The greatest velocity from which it still stops where the way ends."""
        room = self._room(way)
        inner = elapsed_s**2 + 2 * room / self._acceleration
        root = math.sqrt(inner) if isinstance(inner, float) else np.sqrt(inner)
        return 2 * room / (elapsed_s + root)

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
        way = velocity * (elapsed_s + braking_s)
        return not self._leaves(way) and not self._leads_away(way, measured)

    def _leaves(self, way: Vector) -> bool:
        """Whether a way ends farther outside the range than it begins."""
        if self._low is None:
            return False
        end = self.space.move(self.value, way)
        return not self._is_inside(end) and exceeds(self.outside(end), self.outside(self.value))

    def _leads_away(self, way: Vector, measured: Vector | None) -> bool:
        """Whether a way ends farther from the measured value than the lead, and than it begins."""
        if measured is None or not self._leads:
            return False
        ahead = self.space.way(measured, self.value)
        most = self._most(ahead)
        if surely_within(ahead, way, most):  # quicker than to go there
            return False
        return exceeds(self.space.way(measured, self.space.move(self.value, way)), most)

    def _most(self, ahead: Vector) -> Limit:
        """How far a set-point may be ahead of the measured value: the lead, or what it is."""
        if isinstance(self._lead, float):
            return max(self._lead, length(ahead))
        return np.maximum(self._lead, np.abs(ahead))

    def _within_lead(self, way: Vector, measured: Vector | None) -> Vector:
        """As much of a way as does not lead the measured value by more than the lead, or than it
        does already. The same object where that is all of it.
        """
        if measured is None or not self._leads_away(way, measured):
            return way
        ahead = self.space.way(measured, self.value)
        most = self._most(ahead)
        if not isinstance(most, float):
            return np.asarray(np.minimum(np.maximum(ahead + way, -most), most) - ahead)
        share = 1.0
        while share > SHORTEST:
            share *= _share_within(ahead, share * way, most) * (1 - SHORTEST)
            if not self._leads_away(share * way, measured):
                return share * way
        return 0.0 * way

    def following_error(self, measured: Vector | None) -> str:
        """Why the robot does not follow; empty where it does, or nobody asks."""
        if not self._follows or measured is None or self.value is None:
            return ""
        way = self.space.way(self.value, measured)
        if not exceeds(way, self._error):
            return ""
        distance = float(np.max(size(way, self._error)))
        return f"{self.name} is {distance:.3f} from its set-point"


def _share_within(ahead: Vector, way: Vector, most: float) -> float:
    """How much of a way from `ahead` stays within a sphere of this radius."""
    a, b, c = float(way @ way), float(ahead @ way), float(ahead @ ahead) - most * most
    share = (-b + math.sqrt(max(b * b - a * min(c, 0.0), 0.0))) / a
    return min(max(share, 0.0), 1 - SHORTEST)


def _smaller(limit: Limit, most: float) -> Limit:
    return np.minimum(limit, most) if isinstance(limit, np.ndarray) else min(limit, most)
