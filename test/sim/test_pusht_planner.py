"""The planner's picture of the T, without gym-pusht."""

import numpy as np
import pytest

from diffusion_policy_ros.sim.pusht_planner import (
    AROUND,
    CORNERS,
    GOAL,
    MIDDLE,
    RADIUS,
    TRAVEL,
    Planner,
    _edges,
    error,
    placed,
)

ON_A_LINE = 1e-9


def is_inside(point):
    """Whether the T holds a point of its own frame: a bar and a stem."""
    x, y = point
    return (abs(x) < 60 and 0 < y < 30) or (abs(x) < 15 and 0 < y < 120)


def distance(point):
    """To the nearest edge of the T."""
    best = np.inf
    for one, other in zip(CORNERS, np.roll(CORNERS, -1, axis=0), strict=True):
        way = other - one
        part = np.clip((point - one) @ way / (way @ way), 0, 1)
        best = min(best, np.linalg.norm(point - one - part * way))
    return best


def test_pushes_begin_at_the_edges_and_lead_in():
    """Each place lies on an edge; a little further along its way is within the T."""
    for place, way in zip(*_edges(), strict=True):
        assert distance(place) < ON_A_LINE and np.linalg.norm(way) == pytest.approx(1)
        assert is_inside(place + 2 * way) and not is_inside(place - 2 * way)


def test_the_error_is_that_of_the_corners():
    """None on the outline; of a shift, the shift; of a turn, more where it is longer."""
    assert error(GOAL) == 0
    assert error(GOAL + [3, 4, 0]) == pytest.approx(5)
    assert error(GOAL + [0, 0, 0.2]) > error(GOAL + [0, 0, -0.1]) > 0


@pytest.mark.parametrize("angle", [0.0, 2.0, -1.5])
def test_the_way_around_does_not_touch_the_t(angle):
    """The shorter way, in steps that the disc follows."""

    class Still:
        dt, control_hz, k_p, k_v = 0.01, 10, 100, 20

    pose = np.array([250.0, 260.0, angle])
    middle = placed(MIDDLE[None], pose)[0]
    disc, start = middle + [AROUND, 0], middle + [0, AROUND]
    path = np.array(Planner(Still(), 0)._around(disc, start, pose))
    back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert min(distance(point) for point in (path - pose[:2]) @ back) > RADIUS
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() <= TRAVEL + 1e-6
    np.testing.assert_allclose(path[[0, -1]], [disc, start], atol=1e-6)
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).sum() < AROUND * np.pi / 2
