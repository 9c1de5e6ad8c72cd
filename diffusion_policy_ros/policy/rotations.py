"""Rotations in NumPy: quaternions (x y z w), axis-angle vectors (rad), matrices, 6-D.

All take and give arrays with any leading shape, in float64. Left multiplication composes in the
base frame: `compose(delta, q)` turns q by delta about the base's axes.

Which of them an action should be: axis-angle for deltas, whose angles are small. For absolute
orientations 6-D (Zhou et al. 2019, https://arxiv.org/abs/1812.07035), the only one of them without
jumps: axis-angle turns its sign over at pi, and a quaternion has two signs for the same turn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

DEGENERATE = 1e-6  # vectors shorter than this have no direction
_YZX, _ZXY = [1, 2, 0], [2, 0, 1]


def quaternion_to_axis_angle(quaternion: ArrayLike) -> Array:
    """(..., 4) unit quaternions -> (..., 3), angles from 0 to pi."""
    q = canonical(quaternion)
    sine = _length(q[..., :3])
    angle: Array = 2 * np.arctan2(sine, q[..., 3:])
    return q[..., :3] * np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 0)


def axis_angle_to_quaternion(axis_angle: ArrayLike) -> Array:
    """(..., 3) -> (..., 4) unit quaternions with w >= 0."""
    vector = np.asarray(axis_angle, np.float64)
    half = _length(vector) / 2
    sine = vector * (np.sinc(half / np.pi) / 2)
    return canonical(np.concatenate([sine, np.cos(half)], axis=-1))


def quaternion_to_matrix(quaternion: ArrayLike) -> Array:
    """(..., 4) quaternions of any length but zero -> (..., 3, 3)."""
    q = _unit(np.asarray(quaternion, np.float64))
    pairs = q[..., :, None] * q[..., None, :]
    return (pairs.reshape(*q.shape[:-1], 16) @ _PAIRS).reshape(*q.shape[:-1], 3, 3)


def matrix_to_quaternion(matrix: ArrayLike) -> Array:
    """(..., 3, 3) -> (..., 4) unit quaternions with w >= 0."""
    flat = np.asarray(matrix, np.float64)
    flat = flat.reshape(*flat.shape[:-2], 9)
    pairs = (flat @ _PAIRS.T).reshape(*flat.shape[:-1], 4, 4) + _EYE  # four times q_i q_j
    # Any row is the quaternion, scaled; that of its largest part is so by the most.
    largest = np.argmax(np.einsum("...ii->...i", pairs), axis=-1)
    rows = np.take_along_axis(pairs, largest[..., None, None], axis=-2)
    return canonical(_unit(rows[..., 0, :]))


def rotation_6d_to_matrix(rotation_6d: ArrayLike) -> Array:
    """(..., 6), made a rotation as by Gram and Schmidt -> (..., 3, 3).

    What holds no rotation, see `is_rotation`, makes none.
    """
    rows = np.asarray(rotation_6d, np.float64)
    first = _unit(rows[..., :3])
    across = np.sum(first * rows[..., 3:], axis=-1, keepdims=True)
    second = _unit(rows[..., 3:] - across * first)
    return np.stack([first, second, _cross(first, second)], axis=-2)


def rotation_6d_to_quaternion(rotation_6d: ArrayLike) -> Array:
    """(..., 6), made a rotation as by Gram and Schmidt -> (..., 4) unit quaternions with w >= 0.

    Raises:
        ValueError: one holds no rotation, see `is_rotation`.
    """
    if not is_rotation("rotation_6d", rotation_6d).all():
        raise ValueError("two vectors that are zero or parallel are no rotation")
    return matrix_to_quaternion(rotation_6d_to_matrix(rotation_6d))


def matrix_to_rotation_6d(matrix: Array) -> Array:
    """(..., 3, 3) -> (..., 6), its first two rows, as in the original Diffusion Policy."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def quaternion_to_rotation_6d(quaternion: ArrayLike) -> Array:
    """(..., 4) -> (..., 6), the matrix's first two rows, as in the original Diffusion Policy."""
    return matrix_to_rotation_6d(quaternion_to_matrix(quaternion))


def _length(vector: Array) -> Array:
    return np.asarray(np.linalg.norm(vector, axis=-1, keepdims=True))


def _unit(vector: Array) -> Array:
    return vector / _length(vector)


def _cross(left: Array, right: Array) -> Array:
    """As np.cross, which is slow for the few vectors of a chunk."""
    a, b, c, d = (v.take(turned, axis=-1) for turned in (_YZX, _ZXY) for v in (left, right))
    return a * d - c * b


def is_rotation(kind: str, value: ArrayLike) -> NDArray[np.bool_]:
    """Which of (..., n) tell a rotation: a zero quaternion and parallel 6-D vectors do not.

    Args:
        kind: a key of TO_QUATERNION.
        value: any numbers; those that are not finite tell none.
    """
    array = np.asarray(value, np.float64)
    finite = np.isfinite(array).all(axis=-1)
    if kind == "axis_angle":
        return np.asarray(finite)
    if kind == "quaternion":
        return np.asarray(finite & (_length(array)[..., 0] > DEGENERATE))
    first, second = array[..., :3], array[..., 3:]
    lengths = _length(first)[..., 0], _length(second)[..., 0]
    with np.errstate(invalid="ignore"):  # of what is not finite
        area = _length(_cross(first, second))[..., 0]
    return np.asarray(
        finite & (np.minimum(*lengths) > DEGENERATE) & (area > DEGENERATE * lengths[0])
    )


def convert(value: ArrayLike, source: str, target: str) -> Array:
    """The same rotations told otherwise: from kind `source` to kind `target`.

    Args:
        value: (..., n) of the source's size.
        source: a key of TO_QUATERNION.
        target: a key of FROM_QUATERNION.
    """
    return FROM_QUATERNION[target](TO_QUATERNION[source](value))


def angle_between(left: ArrayLike, right: ArrayLike) -> Array:
    """Geodesic distance (...) of quaternions (..., 4): the angle from one to the other, 0..pi."""
    distance: Array = np.linalg.norm(delta_between(left, right), axis=-1)
    return distance


def compose(left: ArrayLike, right: ArrayLike) -> Array:
    """Product left * right of quaternions (..., 4): right first, then left; w >= 0."""
    return canonical(_unit(_product(np.asarray(left, np.float64), np.asarray(right, np.float64))))


def _product(a: Array, b: Array) -> Array:
    """Of quaternions, of any length."""
    vector = a[..., 3:] * b[..., :3] + b[..., 3:] * a[..., :3] + _cross(a[..., :3], b[..., :3])
    rest = a[..., 3:] * b[..., 3:] - np.sum(a[..., :3] * b[..., :3], axis=-1, keepdims=True)
    return np.concatenate([vector, rest], axis=-1)


def inverse(quaternion: ArrayLike) -> Array:
    """(..., 4) unit quaternions -> their inverses."""
    conjugate: Array = np.asarray(quaternion, np.float64) * np.array([-1.0, -1.0, -1.0, 1.0])
    return conjugate


def canonical(quaternion: ArrayLike) -> Array:
    """Of q and -q, which turn alike, the one with w >= 0."""
    array = np.asarray(quaternion, dtype=np.float64)
    return np.where(array[..., 3:] < 0, -array, array)


def delta_between(start: ArrayLike, end: ArrayLike) -> Array:
    """Axis-angle (..., 3) of the turn in the base frame that leads from start to end (..., 4)."""
    return quaternion_to_axis_angle(compose(end, inverse(start)))


def apply_delta(axis_angle: ArrayLike, quaternion: ArrayLike) -> Array:
    """Turn quaternion (..., 4) by axis_angle (..., 3) in the base frame."""
    return compose(axis_angle_to_quaternion(axis_angle), quaternion)


def mean_quaternion(quaternion: ArrayLike, weights: ArrayLike) -> Array:
    """Weighted mean over the first axis: (k, ..., 4) and (k, ...) -> (..., 4) with w >= 0.

    The rotation with the least squared distance of matrices, Markley et al. 2007: q and -q count
    alike, and so does SciPy's `Rotation.mean`.
    """
    q, w = np.asarray(quaternion, np.float64), np.asarray(weights, np.float64)
    vectors = np.linalg.eigh(np.einsum("k...,k...i,k...j->...ij", w, q, q))[1]
    return canonical(vectors[..., -1])


def _pairs() -> Array:
    """(16, 9): a matrix is linear in the products q_i q_j, and they in it.

    Column j of the matrix is q e_j q^-1; what is the same of q_i q_j and q_j q_i is shared out.
    """
    units = np.eye(4)
    turned = _product(_product(units[:, None, None], units[:3]), inverse(units)[:, None])
    shared = (turned + np.swapaxes(turned, 0, 1))[..., :3] / 2
    return np.swapaxes(shared, -1, -2).reshape(16, 9)


_PAIRS, _EYE = _pairs(), np.eye(4)

TO_QUATERNION: dict[str, Callable[[ArrayLike], Array]] = {
    "quaternion": canonical,
    "axis_angle": axis_angle_to_quaternion,
    "rotation_6d": rotation_6d_to_quaternion,
}
FROM_QUATERNION: dict[str, Callable[[ArrayLike], Array]] = {
    "quaternion": canonical,
    "axis_angle": quaternion_to_axis_angle,
    "rotation_6d": quaternion_to_rotation_6d,
}
"""Kinds of absolute orientations, as in ACTION_KINDS of the contract."""
TO_MATRIX: dict[str, Callable[[ArrayLike], Array]] = {
    "quaternion": quaternion_to_matrix,
    "axis_angle": lambda vector: quaternion_to_matrix(axis_angle_to_quaternion(vector)),
    "rotation_6d": rotation_6d_to_matrix,
}
FROM_MATRIX: dict[str, Callable[[Array], Array]] = {
    "quaternion": matrix_to_quaternion,
    "axis_angle": lambda matrix: quaternion_to_axis_angle(matrix_to_quaternion(matrix)),
    "rotation_6d": matrix_to_rotation_6d,
}
