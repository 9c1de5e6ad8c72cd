"""The grid of frames along a clock."""

import numpy as np
from hypothesis import given, strategies as st

from diffusion_policy_ros.sim.grid import FrameGrid

PERIOD = 50_000_000
MS = 1_000_000


def test_readings_a_little_late_keep_the_grid():
    """Timers that fire up to 5 ms late give stamps a period apart, to 0.5 ms."""
    grid, late = FrameGrid(PERIOD, PERIOD // 2), np.random.default_rng(0).uniform(0, 5 * MS, 400)
    stamps = [s for i, x in enumerate(late) for s in grid.stamps(i * PERIOD + int(x))]
    assert len(stamps) == 400
    assert np.abs(np.diff(stamps[50:]) - PERIOD).max() < 0.5 * MS


def test_a_clock_that_is_read_often_gives_even_stamps():
    """Read every 10 ms it keeps the grid of its first reading to a hundredth of a period."""
    grid = FrameGrid(PERIOD)
    stamps = [s for i in range(500) for s in grid.stamps(20 * MS + i * 10 * MS)]
    assert len(stamps) == 100
    assert np.abs(np.diff(stamps) - PERIOD).max() < PERIOD / 100


@given(st.lists(st.integers(0, 200 * MS), min_size=2, max_size=50))
def test_stamps_rise_and_never_lie_ahead(pauses):
    """However irregularly it is read, stamps rise by three quarters of a period and more."""
    grid, now, stamps = FrameGrid(PERIOD, PERIOD // 2), 0, []
    for pause in pauses:
        now += pause
        found = grid.stamps(now)
        assert all(stamp <= now for stamp in found)
        stamps += found
    assert all(b - a >= PERIOD / 2 for a, b in zip(stamps, stamps[1:], strict=False))


def test_short_pauses_are_caught_up_with():
    """After a pause of three periods the frames missed come at once, each with its own stamp."""
    grid = FrameGrid(PERIOD, PERIOD // 2)
    grid.stamps(0)
    np.testing.assert_allclose(grid.stamps(3 * PERIOD), [PERIOD, 2 * PERIOD, 3 * PERIOD], atol=2)


def test_a_clock_that_was_stepped_begins_a_new_grid():
    """Neither a jump forwards nor one backwards is filled with frames."""
    grid = FrameGrid(PERIOD, PERIOD // 2)
    grid.stamps(10**12)
    assert grid.stamps(2 * 10**12) == [2 * 10**12]
    assert grid.stamps(10**12) == [10**12]


def test_a_clock_that_runs_a_little_differently_is_followed():
    """A timer on another clock, 0.01 % off, never leads to a jump."""
    grid = FrameGrid(PERIOD, PERIOD // 2)
    stamps = [s for i in range(20_000) for s in grid.stamps(round(i * PERIOD * 1.0001))]
    assert abs(np.diff(stamps) - PERIOD).max() < 0.1 * MS
    assert abs(len(stamps) - 20_000) <= 3
