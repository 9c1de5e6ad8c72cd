"""Decode the four message types that make nearly all of a demonstration, several times faster.

rosbags decodes every type; for these, which have not changed since ROS 2 began, a few lines read
the fields in place. A test holds both against each other. Little-endian CDR only, as every robot
writes it; alignment counts from behind the four bytes of the encapsulation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.observe.codecs import Array

PLAIN_LITTLE = b"\0\1"
"""The encapsulation that these functions read."""
ALIGN_4, ALIGN_8 = ~3, ~7
"""``(p + 3) & ALIGN_4`` is the next place for 4 bytes, ``((p + 3) & ALIGN_8) + 4`` for 8."""
FRAME_ID = 12
"""Where the length of the header's frame_id stands: behind encapsulation and stamp."""

_U32 = struct.Struct("<I").unpack_from
_IMAGE_SIZE = struct.Struct("<III").unpack_from
_ROW_AND_DATA = struct.Struct("<II").unpack_from
_POSE = struct.Struct("<7d").unpack_from
_DURATION = struct.Struct("<iI").unpack_from

Fields = dict[str, Any]


class Point(NamedTuple):
    """``geometry_msgs/Point``."""

    x: float
    y: float
    z: float


class Quaternion(NamedTuple):
    """``geometry_msgs/Quaternion``."""

    x: float
    y: float
    z: float
    w: float


class Pose(NamedTuple):
    """``geometry_msgs/Pose``."""

    position: Point
    orientation: Quaternion


class Duration(NamedTuple):
    """``builtin_interfaces/Duration``."""

    sec: int
    nanosec: int


class TrajectoryPoint(NamedTuple):
    """``trajectory_msgs/JointTrajectoryPoint``."""

    positions: Array
    velocities: Array
    accelerations: Array
    effort: Array
    time_from_start: Duration


def _image(raw: memoryview) -> Fields:
    place = (FRAME_ID + 7 + _U32(raw, FRAME_ID)[0]) & ALIGN_4
    height, width, length = _IMAGE_SIZE(raw, place)
    place += 12
    encoding = str(raw[place : place + length - 1], "utf-8")
    big_endian = raw[place + length]
    place = (place + length + 4) & ALIGN_4
    step, size = _ROW_AND_DATA(raw, place)
    data = raw[place + 8 : place + 8 + size]
    if len(data) != size:
        raise ValueError(f"{size} bytes of pixels announced, {len(data)} there")
    return {
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": big_endian,
        "step": step,
        "data": data,
    }


def _pose_stamped(raw: memoryview) -> Fields:
    place = ((FRAME_ID + 7 + _U32(raw, FRAME_ID)[0]) & ALIGN_8) + 4
    x, y, z, *turn = _POSE(raw, place)
    return {"pose": Pose(Point(x, y, z), Quaternion(*turn))}


def _joint_state(raw: memoryview) -> Fields:
    names, place = _texts(raw, FRAME_ID + 4 + _U32(raw, FRAME_ID)[0])
    position, place = _doubles(raw, place)
    velocity, place = _doubles(raw, place)
    effort, _ = _doubles(raw, place)
    return {"name": names, "position": position, "velocity": velocity, "effort": effort}


def _joint_trajectory(raw: memoryview) -> Fields:
    names, place = _texts(raw, FRAME_ID + 4 + _U32(raw, FRAME_ID)[0])
    place = (place + 3) & ALIGN_4
    (count,) = _U32(raw, place)
    place += 4
    points = []
    for _ in range(count):
        positions, place = _doubles(raw, place)
        velocities, place = _doubles(raw, place)
        accelerations, place = _doubles(raw, place)
        effort, place = _doubles(raw, place)
        place = (place + 3) & ALIGN_4
        start = Duration(*_DURATION(raw, place))
        place += 8
        points.append(TrajectoryPoint(positions, velocities, accelerations, effort, start))
    return {"joint_names": names, "points": points}


def _texts(raw: memoryview, place: int) -> tuple[list[str], int]:
    """A sequence of strings, and where it ends."""
    place = (place + 3) & ALIGN_4
    (count,) = _U32(raw, place)
    place += 4
    found = []
    for _ in range(count):
        place = (place + 3) & ALIGN_4
        (length,) = _U32(raw, place)
        found.append(str(raw[place + 4 : place + 3 + length], "utf-8"))
        place += 4 + length
    return found, place


def _doubles(raw: memoryview, place: int) -> tuple[Array, int]:
    """A sequence of float64 as a view, and where it ends."""
    place = (place + 3) & ALIGN_4
    (count,) = _U32(raw, place)
    if not count:
        return _NONE, place + 4
    place = ((place + 7) & ALIGN_8) + 4
    return np.frombuffer(raw, np.float64, count, place), place + 8 * count


_NONE: Array = np.zeros(0)

DECODERS: dict[str, Callable[[memoryview], Fields]] = {
    "sensor_msgs/msg/Image": _image,
    "sensor_msgs/msg/JointState": _joint_state,
    "geometry_msgs/msg/PoseStamped": _pose_stamped,
    "trajectory_msgs/msg/JointTrajectory": _joint_trajectory,
}
"""Message type → bytes to fields, but for the header."""

ERRORS = (struct.error, ValueError, IndexError)
"""What they raise for bytes that are no message of the type."""
