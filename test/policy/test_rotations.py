"""Rotations: round trips, group laws, double cover, angles near 0 and pi."""

import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from diffusion_policy_ros.policy.rotations import (
    apply_delta,
    axis_angle_to_quaternion,
    canonical,
    compose,
    delta_between,
    inverse,
    matrix_to_quaternion,
    quaternion_to_axis_angle,
    quaternion_to_matrix,
)

IDENTITY = np.array([0.0, 0.0, 0.0, 1.0])
directions = arrays(np.float64, 3, elements=st.floats(-1, 1)).filter(
    lambda v: np.linalg.norm(v) > 1e-3
)
quaternions = (
    arrays(np.float64, 4, elements=st.floats(-1, 1))
    .filter(lambda q: np.linalg.norm(q) > 1e-3)
    .map(lambda q: q / np.linalg.norm(q))
)


def same_turn(a, b):
    """Whether quaternions turn alike, to 1e-9."""
    return np.abs(np.abs(np.sum(a * b, axis=-1)) - 1) < 1e-9


@given(quaternions)
def test_matrix_round_trip(quaternion):
    """Through the matrix and back is the same turn, and the matrix is a rotation."""
    matrix = quaternion_to_matrix(quaternion)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) > 0
    assert same_turn(matrix_to_quaternion(matrix), quaternion)


@given(directions, st.floats(0, np.pi - 1e-6))
def test_axis_angle_round_trip(direction, angle):
    """Any axis and angle up to pi comes back, however small the angle."""
    axis_angle = direction / np.linalg.norm(direction) * angle
    back = quaternion_to_axis_angle(axis_angle_to_quaternion(axis_angle))
    np.testing.assert_allclose(back, axis_angle, atol=1e-7)


@given(directions)
def test_half_turns_come_back_up_to_sign(direction):
    """At pi both signs of the axis are the same turn."""
    axis_angle = direction / np.linalg.norm(direction) * np.pi
    back = quaternion_to_axis_angle(axis_angle_to_quaternion(axis_angle))
    assert np.linalg.norm(back - axis_angle) < 1e-6 or np.linalg.norm(back + axis_angle) < 1e-6


@given(quaternions, quaternions, quaternions)
def test_group_laws(a, b, c):
    """Composition is associative, has an identity and inverses, and is the matrices' product."""
    assert same_turn(compose(compose(a, b), c), compose(a, compose(b, c)))
    assert same_turn(compose(a, IDENTITY), a)
    assert same_turn(compose(a, inverse(a)), IDENTITY)
    product = quaternion_to_matrix(a) @ quaternion_to_matrix(b)
    np.testing.assert_allclose(quaternion_to_matrix(compose(a, b)), product, atol=1e-9)


@given(quaternions)
def test_double_cover(quaternion):
    """Quaternions q and -q are one turn with one canonical form."""
    assert canonical(quaternion)[3] >= 0
    assert same_turn(canonical(quaternion), quaternion)
    np.testing.assert_allclose(
        quaternion_to_matrix(quaternion), quaternion_to_matrix(-quaternion), atol=1e-12
    )


@given(quaternions, quaternions)
def test_the_delta_between_two_leads_from_one_to_the_other(start, end):
    """Applying it in the base frame is from the left."""
    assert same_turn(apply_delta(delta_between(start, end), start), end)


def test_a_quarter_turn_by_hand():
    """90 degrees about z takes x to y, in x y z w order."""
    quaternion = axis_angle_to_quaternion([0, 0, np.pi / 2])
    np.testing.assert_allclose(quaternion, [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    np.testing.assert_allclose(quaternion_to_matrix(quaternion) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_leading_shapes_are_kept():
    """Any number of leading dimensions, also none and also empty."""
    many = np.tile(IDENTITY, (2, 3, 1))
    assert quaternion_to_matrix(many).shape == (2, 3, 3, 3)
    assert matrix_to_quaternion(quaternion_to_matrix(many)).shape == (2, 3, 4)
    assert quaternion_to_axis_angle(many).shape == (2, 3, 3)
    assert axis_angle_to_quaternion(np.zeros((5, 3))).shape == (5, 4)
    assert compose(IDENTITY, many).shape == (2, 3, 4)
