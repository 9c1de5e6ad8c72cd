"""Steps between values, against SciPy."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.runtime.spaces import Turns, Wrapped, exceeds, shortened

vectors = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(np.array)


@given(vectors, vectors)
def test_turns_are_scipys(start, step):
    """The same rotation vector there, and the same rotation after it, from the left."""
    turns, before = Turns(), Rotation.from_rotvec(start)
    after = Rotation.from_rotvec(step) * before
    moved = turns.move(before.as_quat(), step)
    assert (Rotation.from_quat(moved) * after.inv()).magnitude() < 1e-9
    back = turns.way(before.as_quat(), after.as_quat())
    assert (Rotation.from_rotvec(back) * Rotation.from_rotvec(step).inv()).magnitude() < 1e-7
    assert np.linalg.norm(back) <= np.pi + 1e-9


def test_both_signs_of_a_quaternion_are_the_same_turn():
    """And a very small turn is not lost."""
    turns, there = Turns(), Rotation.from_rotvec([1e-9, 0, 0]).as_quat()
    assert turns.way(np.array([0, 0, 0, 1.0]), -there) == pytest.approx([1e-9, 0, 0], rel=1e-6)


def test_continuous_joints_go_the_short_way_and_others_do_not():
    """Half a turn at most."""
    step = Wrapped(np.array([True, False])).way(np.array([3.0, 3.0]), np.array([-3.0, -3.0]))
    assert step == pytest.approx([2 * np.pi - 6, -6])


def test_a_number_is_of_the_length_and_a_list_of_each_component():
    """A vector within its limit is handed back as it is."""
    vector = np.array([3.0, 4.0])
    assert shortened(vector, 5.0) is vector
    assert shortened(vector, 1.0) == pytest.approx([0.6, 0.8])
    assert shortened(vector, np.array([1.0, 9.0])) == pytest.approx([1, 4])
    assert exceeds(vector, 4.9) and not exceeds(vector, 5.0)
    assert exceeds(vector, np.array([2.9, 9.0])) and not exceeds(vector, np.array([3.0, 4.0]))
