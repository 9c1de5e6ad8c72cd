"""Rotations in NumPy: quaternions (x y z w), axis-angle vectors (rad), matrices.

All take and give arrays with any leading shape, in float64. Left multiplication composes in the
base frame: `compose(delta, q)` turns q by delta about the base's axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


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
