"""How steps lead from value to value: `move(a, way(a, b)) == b`.

Plain floats instead of SciPy's rotations: this runs some hundred times a second for every axis,
and making one `Rotation` takes as long as all of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

SMALL = 1e-12
"""Angles below this are taken as their sine."""


class Flat:
    """Positions, and joints that end somewhere."""

    def way(self, start: Vector, end: Vector) -> Vector:
        """The step from one value to another."""
        return end - start

    def move(self, start: Vector, step: Vector) -> Vector:
        """The value after a step."""
        return start + step

    def near(self, start: Vector, end: Vector) -> Vector:
        """Of the numbers that say where `end` is, those nearest to `start`."""
        return end


class Wrapped(Flat):
    """Joints of which some are continuous, which go the short way round.

    Args:
        continuous: (n,) which.
    """

    def __init__(self, continuous: NDArray[np.bool_]) -> None:
        self._turns = np.where(continuous, 2 * np.pi, 0.0)

    def way(self, start: Vector, end: Vector) -> Vector:
        """The step from one value to another, half a turn at most where a joint turns."""
        return self.near(start, end) - start

    def near(self, start: Vector, end: Vector) -> Vector:
        """`end`, by whole turns as near to `start` as can be where a joint turns."""
        return np.asarray(end - self._turns * np.rint((end - start) / (2 * np.pi)))


class Turns(Flat):
    """Quaternions x y z w; steps are rotation vectors in the base frame, rad."""

    def way(self, start: Vector, end: Vector) -> Vector:
        """The rotation vector of ``end * start^-1``, of half a turn at most."""
        ax, ay, az, aw = end.tolist()
        bx, by, bz, bw = start.tolist()
        w = aw * bw + ax * bx + ay * by + az * bz
        x = ax * bw - aw * bx - ay * bz + az * by
        y = ay * bw - aw * by - az * bx + ax * bz
        z = az * bw - aw * bz - ax * by + ay * bx
        sine = math.sqrt(x * x + y * y + z * z)
        angle = 2.0 * math.atan2(sine, abs(w))
        factor = (angle / sine if sine > SMALL else 2.0) * (1.0 if w >= 0 else -1.0)
        return np.array((x * factor, y * factor, z * factor))

    def near(self, start: Vector, end: Vector) -> Vector:
        """`end` with the sign, of the two that say the same turn, that is like `start`'s."""
        return end if start @ end >= 0 else -end

    def move(self, start: Vector, step: Vector) -> Vector:
        """``exp(step) * start``, of length one."""
        x, y, z = step.tolist()
        angle = math.sqrt(x * x + y * y + z * z)
        factor = math.sin(angle / 2) / angle if angle > SMALL else 0.5
        ax, ay, az, aw = x * factor, y * factor, z * factor, math.cos(angle / 2)
        bx, by, bz, bw = start.tolist()
        turned = (
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        )
        length = math.sqrt(sum(part * part for part in turned))
        return np.array([part / length for part in turned])


Limit = Any
"""A float is of a vector's length, an array of each component."""


def length(vector: Vector) -> float:
    """Of a vector; quicker than NumPy for a few components, as all here that make lists are."""
    return math.hypot(*vector.tolist())


def is_zero(vector: Vector) -> bool:
    """Whether a step goes nowhere."""
    return not any(vector.tolist())


def size(vector: Vector, limit: Limit) -> Any:
    """What a limit is of: the length, or the absolute of each component."""
    return length(vector) if isinstance(limit, float) else np.abs(vector)


def shortened(vector: Vector, limit: Limit) -> Vector:
    """The same way, no longer than the limit; the same object where it is not."""
    if isinstance(limit, float):
        whole = length(vector)
        return vector if whole <= limit else vector * (limit / whole)
    if all(abs(part) <= most for part, most in _pairs(vector, limit)):
        return vector
    return np.minimum(np.maximum(vector, -limit), limit)


def exceeds(vector: Vector, limit: Limit, slack: float = 1e-9) -> bool:
    """Whether a vector is longer than a limit, by more than rounding."""
    if isinstance(limit, float):
        return length(vector) > limit * (1 + slack) + slack
    return any(abs(part) > most * (1 + slack) + slack for part, most in _pairs(vector, limit))


def surely_within(first: Vector, second: Vector, limit: Limit) -> bool:
    """Whether two steps, one after the other, end within a limit whatever their directions."""
    if isinstance(limit, float):
        return length(first) + length(second) <= limit
    return bool((np.abs(first) + np.abs(second) <= limit).all())


def _pairs(vector: Vector, limit: Vector) -> Iterator[tuple[float, float]]:
    return zip(vector.tolist(), limit.tolist(), strict=True)
