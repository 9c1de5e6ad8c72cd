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
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

DEGENERATE = 1e-6  # vectors shorter than this have no direction


def _rotation(quaternion: ArrayLike) -> tuple[Rotation, tuple[int, ...]]:
    flat = np.asarray(quaternion, dtype=np.float64)
    return Rotation.from_quat(flat.reshape(-1, 4)), flat.shape[:-1]


def quaternion_to_axis_angle(quaternion: ArrayLike) -> Array:
    """(..., 4) unit quaternions -> (..., 3), angles from 0 to pi."""
    rotation, shape = _rotation(quaternion)
    return np.asarray(rotation.as_rotvec()).reshape(*shape, 3)


def axis_angle_to_quaternion(axis_angle: ArrayLike) -> Array:
    """(..., 3) -> (..., 4) unit quaternions with w >= 0."""
    flat = np.asarray(axis_angle, dtype=np.float64)
    rotation = Rotation.from_rotvec(flat.reshape(-1, 3))
    return canonical(np.asarray(rotation.as_quat()).reshape(*flat.shape[:-1], 4))


def quaternion_to_matrix(quaternion: ArrayLike) -> Array:
    """(..., 4) unit quaternions -> (..., 3, 3)."""
    rotation, shape = _rotation(quaternion)
    return np.asarray(rotation.as_matrix()).reshape(*shape, 3, 3)


def matrix_to_quaternion(matrix: ArrayLike) -> Array:
    """(..., 3, 3) -> (..., 4) unit quaternions with w >= 0."""
    flat = np.asarray(matrix, dtype=np.float64)
    rotation = Rotation.from_matrix(flat.reshape(-1, 3, 3))
    return canonical(np.asarray(rotation.as_quat()).reshape(*flat.shape[:-2], 4))


def rotation_6d_to_matrix(rotation_6d: ArrayLike) -> Array:
    """(..., 6), made a rotation as by Gram and Schmidt -> (..., 3, 3).

    Raises:
        ValueError: one holds no rotation, see `is_rotation`.
    """
    rows = np.asarray(rotation_6d, dtype=np.float64)
    if not is_rotation("rotation_6d", rows).all():
        raise ValueError("two vectors that are zero or parallel are no rotation")
    first = _unit(rows[..., :3])
    across = np.sum(first * rows[..., 3:], axis=-1, keepdims=True)
    second = _unit(rows[..., 3:] - across * first)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def rotation_6d_to_quaternion(rotation_6d: ArrayLike) -> Array:
    """(..., 6), made a rotation as by Gram and Schmidt -> (..., 4) unit quaternions with w >= 0.

    Raises:
        ValueError: one holds no rotation, see `is_rotation`.
    """
    return matrix_to_quaternion(rotation_6d_to_matrix(rotation_6d))


def matrix_to_rotation_6d(matrix: Array) -> Array:
    """(..., 3, 3) -> (..., 6), its first two rows, as in the original Diffusion Policy."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def quaternion_to_rotation_6d(quaternion: ArrayLike) -> Array:
    """(..., 4) -> (..., 6), the matrix's first two rows, as in the original Diffusion Policy."""
    return matrix_to_rotation_6d(quaternion_to_matrix(quaternion))


def _unit(vector: Array) -> Array:
    unit: Array = vector / np.linalg.norm(vector, axis=-1, keepdims=True)
    return unit


def is_rotation(kind: str, value: ArrayLike) -> NDArray[np.bool_]:
    """Which of (..., n) tell a rotation: a zero quaternion and parallel 6-D vectors do not.

    Args:
        kind: a key of TO_QUATERNION.
        value: finite numbers.
    """
    array = np.asarray(value, dtype=np.float64)
    if kind == "axis_angle":
        return np.ones(array.shape[:-1], dtype=bool)
    if kind == "quaternion":
        return np.asarray(np.linalg.norm(array, axis=-1) > DEGENERATE)
    first, second = array[..., :3], array[..., 3:]
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    area = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.asarray((np.minimum(*lengths) > DEGENERATE) & (area > DEGENERATE * lengths[0]))


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
    pair = np.broadcast_arrays(np.asarray(left, np.float64), np.asarray(right, np.float64))
    (a, shape), (b, _) = _rotation(pair[0]), _rotation(pair[1])
    return canonical(np.asarray((a * b).as_quat()).reshape(*shape, 4))


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
