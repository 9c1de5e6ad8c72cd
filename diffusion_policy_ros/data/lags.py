"""How much later one thing moves as another one did: cross-correlation of their velocities."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EARLIEST_S, LATEST_S = -0.3, 0.7
"""Lags that are tried, s."""
STEPS = 10
"""Lags tried a frame."""
GAP = 3.0
"""Usual intervals without a message over which nothing is said of the motion."""
SURE, PROMINENT = 0.5, 0.05
"""Correlation of a peak, and its height above the curve's higher end, below which it says nothing.
"""
MOVED_S, JUMPS = 3.0, 3
"""Motion without which nothing is said: s, and jumps of what jumps."""
MOVING = 0.1
"""Share of the fastest velocity (99 %) that counts as motion."""


@dataclass(frozen=True)
class Track:
    """Something that moves: where it was at some times.

    Attributes:
        times_s: (n,) increasing.
        places: (n, d) cumulative: only differences count.
        holds: whether it jumps at its times, rather than moving evenly in between.
    """

    times_s: Floats
    places: Floats
    holds: bool = False

    def velocity(self, grid_s: Floats, width_s: float) -> tuple[Floats, NDArray[np.bool_]]:
        """Mean velocities (m, d) over a width around the times of a grid, and which are known."""
        ends = (self._at(grid_s + width_s / 2), self._at(grid_s - width_s / 2))
        return (ends[0] - ends[1]) / width_s, self._known(grid_s, width_s)

    def path(self) -> Track:
        """How far it has moved in all, as a track of one dimension; of an image: mean change."""
        steps = np.abs(np.diff(self.places, axis=0)).mean(axis=1) if len(self.places) else []
        total = np.concatenate([[0.0], np.cumsum(steps)])[: len(self.times_s), None]
        return Track(self.times_s, total, self.holds)

    def _at(self, times_s: Floats) -> Floats:
        if self.holds:
            place = np.searchsorted(self.times_s, times_s, side="right") - 1
            return self.places[np.maximum(place, 0)]
        columns = [np.interp(times_s, self.times_s, column) for column in self.places.T]
        return np.stack(columns, axis=1)

    def _known(self, grid_s: Floats, width_s: float) -> NDArray[np.bool_]:
        steps = np.diff(self.times_s)
        wide = np.flatnonzero(steps > max(GAP * float(np.median(steps)), 2 * width_s))
        known = np.asarray((grid_s > self.times_s[0]) & (grid_s < self.times_s[-1]))
        for i in wide:
            begin, end = self.times_s[i] - width_s / 2, self.times_s[i + 1] + width_s / 2
            known[np.searchsorted(grid_s, begin) : np.searchsorted(grid_s, end)] = False
        return known


@dataclass(frozen=True)
class Lag:
    """How much later one track does what another one did.

    Attributes:
        seconds: the lag; None where it cannot be told.
        correlation: of the velocities at the best lag, -1 to 1.
        prominence: how far the best one stands above the higher of the curve's two ends.
        why: why it cannot be told.
        lags_s: (k,) those that were tried.
        curve: (k,) their correlations.
    """

    seconds: float | None
    correlation: float = 0.0
    prominence: float = 0.0
    why: str = ""
    lags_s: Floats = field(default_factory=lambda: np.zeros(0), repr=False)
    curve: Floats = field(default_factory=lambda: np.zeros(0), repr=False)


def lag_between(first: Track, second: Track, period_s: float) -> Lag:
    """How much later the second track moves as the first one did.

    Args:
        first: moves first, as a rule.
        second: moves after it.
        period_s: of a frame; motion is looked at as its mean over one.
    """
    if min(len(first.times_s), len(second.times_s)) < 3:
        return Lag(None, why="there are too few messages")
    step_s = period_s / STEPS
    begin = max(first.times_s[0], second.times_s[0])
    grid_s = np.arange(begin, min(first.times_s[-1], second.times_s[-1]), step_s)
    if len(grid_s) * step_s < MOVED_S:
        return Lag(None, why=f"both were recorded for less than {MOVED_S:g} s")
    told, told_known = first.velocity(grid_s, period_s)
    done, done_known = second.velocity(grid_s, period_s)
    needed_s = JUMPS * period_s if first.holds else MOVED_S
    for velocity, known in ((told, told_known), (done, done_known)):
        moved_s = _moving_s(velocity[known], step_s)
        if moved_s < 0.99 * needed_s:
            why = f"too little moves: {moved_s:.2g} s of motion, {needed_s:.2g} s are needed"
            return Lag(None, why=why)
    shifts = range(round(EARLIEST_S / step_s), round(LATEST_S / step_s) + 1)
    curve = [_correlation(told, told_known, done, done_known, k) for k in shifts]
    return _peak(np.array(shifts, np.float64) * step_s, np.array(curve))


def _moving_s(velocity: Floats, step_s: float) -> float:
    if not len(velocity):
        return 0.0
    speed = np.linalg.norm(velocity, axis=1)
    fast = float(np.quantile(speed, 0.99))
    return float((speed > MOVING * fast).sum() * step_s) if fast > 1e-6 else 0.0


def _correlation(
    a: Floats, a_known: NDArray[np.bool_], b: Floats, b_known: NDArray[np.bool_], shift: int
) -> float:
    """Of a(t) with b(t + shift), over the times at which both are known."""
    n = len(a) - abs(shift)
    at, bt = max(0, -shift), max(0, shift)
    known = a_known[at : at + n] & b_known[bt : bt + n]
    x, y = a[at : at + n][known], b[bt : bt + n][known]
    if not len(x):
        return 0.0
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size > 0 else 0.0


def _peak(lags_s: Floats, curve: Floats) -> Lag:
    """The highest point of the curve, between its points by a parabola."""
    best = int(curve.argmax())
    top, ends = float(curve[best]), (curve[:best], curve[best + 1 :])
    if not len(ends[0]) or not len(ends[1]):
        why = f"they are not within {EARLIEST_S:g} to {LATEST_S:g} s of each other"
        return Lag(None, top, 0.0, why, lags_s, curve)
    prominence = top - max(float(end.min()) for end in ends)
    before, after = curve[best - 1], curve[best + 1]
    bend = before - 2 * top + after
    offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
    seconds = float(lags_s[best] + offset * (lags_s[1] - lags_s[0]))
    why = ""
    if top < SURE:
        why = f"the motions do not agree: correlation {top:.2f}, {SURE:g} is needed"
    elif prominence < PROMINENT:
        why = f"no lag stands out: by {prominence:.2f}, {PROMINENT:g} is needed"
    return Lag(None if why else seconds, top, prominence, why, lags_s, curve)
