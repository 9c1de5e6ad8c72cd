"""Velocity and acceleration of one quantity from tick to tick.

Everything is counted in ticks: a velocity is a step, an acceleration a change of step. So the
limits hold for the set-points that are published, however late a tick comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]

ROUNDING = 1e-9
"""What exceeds a limit by no more than this share is within it."""
CONE = 0.3
"""How far to the side, per length, a later target may lie to count as straight ahead."""


class Space(NamedTuple):
    """How steps lead from value to value: `move(a, way(a, b)) == b`."""

    way: Callable[[Vector, Vector], Vector]
    move: Callable[[Vector, Vector], Vector]


def _turn(start: Vector, end: Vector) -> Vector:
    return np.asarray((Rotation.from_quat(end) * Rotation.from_quat(start).inv()).as_rotvec())


def _turned(start: Vector, step: Vector) -> Vector:
    return np.asarray((Rotation.from_rotvec(step) * Rotation.from_quat(start)).as_quat())


FLAT = Space(lambda start, end: end - start, lambda start, step: start + step)
TURNS = Space(_turn, _turned)
"""Quaternions x y z w; steps are rotation vectors in the base frame, rad."""


@dataclass
class Limiter:
    """Gives the steps that lead to a target as fast as is allowed, and stop there.

    Args:
        velocity: of the step, a second; one number, or one for each component; None for no limit.
        acceleration: of the step, a second squared; likewise.
        period_s: of a tick.
        each: whether components are limited each for itself, rather than the step's length.
        names: of the two limits, for the count.

    Attributes:
        last: the step before.
        clamped: limit → ticks in which it held something back.
    """

    velocity: Any
    acceleration: Any
    period_s: float
    each: bool = False
    names: tuple[str, str] = ("velocity", "acceleration")
    clamped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.top = _per_tick(self.velocity, self.period_s)
        self.change = _per_tick(self.acceleration, self.period_s**2)
        self.last: Any = 0.0

    @property
    def idle(self) -> bool:
        """Whether it has nothing to limit."""
        return bool(np.isinf(self.top).all() and np.isinf(self.change).all())

    def step(self, way: Vector, room: Any = None) -> Vector:
        """The next step; it is taken when `last` is set to it.

        Args:
            way: to where it shall be now.
            room: how far ahead it may still be on the move; as far as the way goes if not given.
        """
        size = self.size(way)
        if (size > self.top * (1 + ROUNDING)).any():
            self.clamped[self.names[0]] += 1
        brakable = braking_step(size if room is None else np.maximum(room, size), self.change)
        wanted = self.shortened(way, np.minimum(self.top, brakable))
        change = wanted - self.last
        if (self.size(change) > self.change * (1 + ROUNDING)).any():
            self.clamped[self.names[1]] += 1
        return np.asarray(self.last + self.shortened(change, self.change))

    def reach(self, ticks: float) -> Vector:
        """How far it gets in so many ticks, and behind while it gets up to speed."""
        return np.asarray(self.top * ticks + self.top**2 / (2 * self.change))

    def brake(self) -> Vector:
        """The step that brakes as hard as is allowed."""
        return np.asarray(self.last - self.shortened(np.asarray(self.last), self.change))

    def to_rest(self, step: Vector) -> Vector:
        """The way that is left after a step when it is braked from then on."""
        size = self.size(step)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            ticks = np.floor(size / self.change)
            left = np.where(ticks > 0, ticks * size - self.change * ticks * (ticks + 1) / 2, 0.0)
            return np.asarray(step * np.where(size > 0, left / size, 0.0))

    def room(self, way: Vector, ahead: Iterable[Vector]) -> Any:
        """How far ahead the way goes on: through later targets, as long as they lie ahead.

        Args:
            way: to where it shall be now.
            ahead: the ways to later targets, in order.
        """
        size = self.size(way)
        if not self.each:
            return _room(way, float(size), ahead, float(self.reach(1)))
        going = np.ones(way.shape, dtype=bool)
        for later in ahead:
            going &= later * np.sign(way) >= size
            size = np.where(going, np.abs(later), size)
        return size

    def size(self, vector: Vector) -> Any:
        """What the limits are of: its length, or the absolute of each component."""
        return np.abs(vector) if self.each else np.asarray(np.linalg.norm(vector))

    def shortened(self, vector: Vector, limit: Any) -> Vector:
        """The same way, no longer than the limit."""
        size = self.size(vector)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.asarray(vector * np.where(size > limit, limit / size, 1.0))


def braking_step(room: Any, change: Any) -> Any:
    """The largest step after which, with steps that get smaller by `change`, one stops in `room`.

    The sum u + (u - c) + (u - 2c) + … of n positive terms is n u - c n (n - 1) / 2; it equals the
    room for u = room / n + c (n - 1) / 2, with the n for which all terms are positive.
    """
    with np.errstate(invalid="ignore"):
        ticks = np.maximum(np.floor(0.5 + np.sqrt(0.25 + 2 * room / change)), 1.0)
        return np.where(
            np.isinf(change),
            room,
            room / ticks + np.where(np.isinf(change), 0.0, change) * (ticks - 1) / 2,
        )


def _room(way: Vector, size: float, ahead: Iterable[Vector], enough: float) -> float:
    if size == 0.0:
        return size
    direction, reached = way / size, size
    for later in ahead:
        forward = float(later @ direction)
        if (
            forward < reached
            or float(np.linalg.norm(later - forward * direction)) > CONE * forward
        ):
            break
        reached = forward
        if reached > enough:
            break
    return reached


def _per_tick(limit: Any, seconds: float) -> Vector:
    unset = limit is None or (isinstance(limit, tuple) and not limit)
    return np.asarray(np.inf if unset else np.asarray(limit, dtype=float) * seconds)
