"""Rotations: round trips, group laws, double cover, angles near 0 and pi."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.policy.rotations import (
    FROM_QUATERNION,
    TO_QUATERNION,
    angle_between,
    apply_delta,
    axis_angle_to_quaternion,
    canonical,
    compose,
    convert,
    delta_between,
    inverse,
    is_rotation,
    matrix_to_quaternion,
    quaternion_to_axis_angle,
    quaternion_to_matrix,
    quaternion_to_rotation_6d,
    rotation_6d_to_quaternion,
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


def test_the_arithmetic_is_scipys():
    """Random turns, half turns about each axis and tiny ones: the same numbers, to rounding."""
    random = np.random.default_rng(0)
    halves = np.vstack([np.eye(4), [[1, 1, 0, 0], [0, 1, -1, 0], [1, 0, 0, 1e-9]]])
    told = np.vstack([random.normal(size=(500, 4)), halves, [[1e-12, 0, -1e-13, -1.0]]])
    told /= np.linalg.norm(told, axis=1, keepdims=True)
    theirs, other = Rotation.from_quat(told), Rotation.from_quat(told[::-1])
    vectors, matrices = theirs.as_rotvec(), theirs.as_matrix()
    near = {"rtol": 1e-14, "atol": 1e-15}
    np.testing.assert_allclose(quaternion_to_axis_angle(told), vectors, **near)
    np.testing.assert_allclose(quaternion_to_matrix(told), matrices, **near)
    signless = [
        (axis_angle_to_quaternion(vectors), told),
        (matrix_to_quaternion(matrices), told),
        (compose(told, told[::-1]), (theirs * other).as_quat()),
    ]
    for ours, wanted in signless:
        assert (ours[..., 3] >= 0).all()
        signs = np.sign(np.sum(ours * wanted, axis=-1, keepdims=True))
        np.testing.assert_allclose(signs * ours, wanted, **near)


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


# Angles over the whole range, and as many right beside 0 and pi.
angles = st.one_of(
    st.floats(0, np.pi),
    st.floats(-14, -3).map(lambda power: 10**power),
    st.floats(-14, -3).map(lambda power: np.pi - 10**power),
    st.sampled_from([0.0, np.pi]),
)
turns = st.tuples(directions, angles).map(
    lambda turn: axis_angle_to_quaternion(turn[0] / np.linalg.norm(turn[0]) * turn[1])
)


def small(angle):
    """Whether an angle is nothing but rounding."""
    return angle < 1e-7


@pytest.mark.parametrize("source", TO_QUATERNION)
@pytest.mark.parametrize("target", FROM_QUATERNION)
@given(turns)
def test_every_kind_tells_the_same_turn(source, target, quaternion):
    """From any kind to any other and back is no turn, beside 0 and pi too."""
    told = convert(quaternion, "quaternion", source)
    back = convert(convert(told, source, target), target, "quaternion")
    assert small(angle_between(back, quaternion))


@given(quaternions, quaternions)
def test_the_distance_is_a_metric_of_turns(a, b):
    """Symmetric, zero between q and -q, at most pi, and the same wherever both are turned to."""
    distance = angle_between(a, b)
    assert 0 <= distance <= np.pi + 1e-9
    assert small(abs(distance - angle_between(b, a)))
    assert small(abs(distance - angle_between(-a, b)))
    assert small(angle_between(a, -a))
    assert small(abs(distance - angle_between(compose(IDENTITY, a), b)))


@given(quaternions, quaternions, quaternions)
def test_distances_bear_turning_both_and_the_triangle(a, b, c):
    """Turning both by c changes no distance, and no way round is shorter."""
    assert small(abs(angle_between(compose(c, a), compose(c, b)) - angle_between(a, b)))
    assert angle_between(a, b) <= angle_between(a, c) + angle_between(c, b) + 1e-7


@given(turns, angles, directions)
def test_a_delta_is_the_shortest_way(start, angle, direction):
    """Its length is the angle that was turned by, and it leads there, beside 0 and pi too."""
    turn = direction / np.linalg.norm(direction) * angle
    end = apply_delta(turn, start)
    delta = delta_between(start, end)
    assert small(abs(np.linalg.norm(delta) - angle))
    assert small(angle_between(apply_delta(delta, start), end))


@given(quaternions)
def test_six_numbers_know_no_double_cover(quaternion):
    """Both signs of a quaternion have the same 6-D: the first two rows of the matrix."""
    rows = quaternion_to_rotation_6d(quaternion)
    np.testing.assert_allclose(rows, quaternion_to_rotation_6d(-quaternion), atol=1e-12)
    np.testing.assert_allclose(rows.reshape(2, 3), quaternion_to_matrix(quaternion)[:2])
    np.testing.assert_allclose(np.linalg.norm(rows.reshape(2, 3), axis=1), 1, atol=1e-9)


@given(quaternions, st.floats(0.01, 100), st.floats(0.01, 100), st.floats(-10, 10))
def test_any_two_vectors_are_made_a_rotation(quaternion, first, second, mixed):
    """Lengths do not count, nor how much of the first row is in the second: Gram and Schmidt."""
    x, y = quaternion_to_rotation_6d(quaternion).reshape(2, 3)
    told = rotation_6d_to_quaternion(np.concatenate([first * x, second * y + mixed * x]))
    assert angle_between(told, quaternion) < 1e-6


@given(turns, directions, st.floats(0, 1e-3))
def test_six_numbers_have_no_jumps(quaternion, direction, angle):
    """Close orientations have close numbers, everywhere; the others jump beside pi."""
    turned = apply_delta(direction / np.linalg.norm(direction) * angle, quaternion)
    change = quaternion_to_rotation_6d(turned) - quaternion_to_rotation_6d(quaternion)
    assert np.linalg.norm(change) <= np.sqrt(2) * angle + 1e-9


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("quaternion", [0, 0, 0, 0], False),
        ("quaternion", [0, 0, 0, 2], True),
        ("axis_angle", [0, 0, 0], True),
        ("rotation_6d", [1, 0, 0, 0, 1, 0], True),
        ("rotation_6d", [0, 0, 0, 0, 1, 0], False),
        ("rotation_6d", [1, 0, 0, 0, 0, 0], False),
        ("rotation_6d", [1, 0, 0, -3, 0, 0], False),
        ("rotation_6d", [1, 0, 0, 0, np.inf, 0], False),
        ("quaternion", [0, 0, np.nan, 1], False),
        ("axis_angle", [0, np.inf, 0], False),
    ],
)
def test_numbers_that_tell_no_rotation_are_known(kind, value, expected):
    """Zero and parallel vectors have no direction to go by."""
    assert is_rotation(kind, value) == expected
    assert is_rotation(kind, np.tile(value, (2, 5, 1))).shape == (2, 5)
    if kind == "rotation_6d" and not expected:
        with pytest.raises(ValueError, match="no rotation"):
            rotation_6d_to_quaternion(value)


def test_six_numbers_keep_leading_shapes():
    """Any number of leading dimensions, also none."""
    many = np.tile(IDENTITY, (2, 3, 1))
    assert quaternion_to_rotation_6d(many).shape == (2, 3, 6)
    assert rotation_6d_to_quaternion(quaternion_to_rotation_6d(many)).shape == (2, 3, 4)
    assert quaternion_to_rotation_6d(IDENTITY).tolist() == [1, 0, 0, 0, 1, 0]
    assert angle_between(many, IDENTITY).shape == (2, 3)
