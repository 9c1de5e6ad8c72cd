"""What a simulated robot publishes, as ROS messages, without importing ROS.

The messages are made by constructors that the caller hands in: `types(name)` returns what is
called with *all* fields of message type `name` as keyword arguments. That serves rclpy's classes
(with `arrays=ros_array`), the dataclasses of rosbags, which take NumPy arrays, and
`types.SimpleNamespace` in tests. So a recorded message and a live one come from the same lines.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Types = Callable[[str], Callable[..., Any]]
Arrays = Callable[[np.ndarray], Any]

IMAGE = "sensor_msgs/msg/Image"
POSE = "geometry_msgs/msg/PoseStamped"
JOINTS = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


class Stamped(NamedTuple):
    """One message to publish or record."""

    topic: str
    type_name: str
    message: Any


def duck_typed(_: str) -> type[SimpleNamespace]:
    """Constructors of messages that nobody sends."""
    return SimpleNamespace


def numpy_array(values: np.ndarray) -> np.ndarray:
    """Leave numeric sequences as NumPy arrays, as rosbags needs them."""
    return values


def ros_array(values: np.ndarray) -> array.array[Any]:
    """Numeric sequences as `array.array`, which rclpy assigns whole, not value by value."""
    result = array.array(values.dtype.char)
    result.frombytes(np.ascontiguousarray(values).tobytes())
    return result


class Stamper:
    """Makes the messages of one instant.

    Args:
        stamp_ns: header stamp of every message.
        types: message constructors by name.
        arrays: makes the numeric sequences; `ros_array` for rclpy.
    """

    def __init__(self, stamp_ns: int, types: Types, arrays: Arrays = numpy_array) -> None:
        self._stamp = divmod(int(stamp_ns), 1_000_000_000)
        self._types, self._arrays = types, arrays

    def header(self, frame: str) -> Any:
        """Of a tf frame."""
        seconds, nanoseconds = self._stamp
        stamp = self._types("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)
        return self._types("std_msgs/msg/Header")(stamp=stamp, frame_id=frame)

    def image(self, topic: str, frame: str, image: np.ndarray) -> Stamped:
        """A picture (H, W, 3) uint8 RGB."""
        height, width, channels = image.shape
        message = self._types(IMAGE)(
            header=self.header(frame),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=width * channels,
            data=self._arrays(np.ascontiguousarray(image).reshape(-1)),
        )
        return Stamped(topic, IMAGE, message)

    def pose(
        self, topic: str, frame: str, position: np.ndarray, quaternion: np.ndarray
    ) -> Stamped:
        """A pose: (3,) m and (4,) x y z w."""
        x, y, z = (float(v) for v in position)
        qx, qy, qz, qw = (float(v) for v in quaternion)
        types = self._types
        pose = types("geometry_msgs/msg/Pose")(
            position=types("geometry_msgs/msg/Point")(x=x, y=y, z=z),
            orientation=types("geometry_msgs/msg/Quaternion")(x=qx, y=qy, z=qz, w=qw),
        )
        return Stamped(topic, POSE, types(POSE)(header=self.header(frame), pose=pose))

    def joints(
        self, topic: str, frame: str, names: Sequence[str], position: np.ndarray
    ) -> Stamped:
        """Joints: names and as many positions (n,), rad or m."""
        nothing = self._arrays(np.zeros(0))
        message = self._types(JOINTS)(
            header=self.header(frame),
            name=list(names),
            position=self._arrays(np.asarray(position, np.float64)),
            velocity=nothing,
            effort=nothing,
        )
        return Stamped(topic, JOINTS, message)

    def command(self, topic: str, frame: str, names: Sequence[str], values: np.ndarray) -> Stamped:
        """An action (n,) as it is recorded: one point that is meant at its stamp."""
        if len(values) != len(names):
            raise ValueError(f"{len(values)} components, {len(names)} names: {list(names)}")
        nothing = self._arrays(np.zeros(0))
        point = self._types("trajectory_msgs/msg/JointTrajectoryPoint")(
            positions=self._arrays(np.asarray(values, np.float64)),
            velocities=nothing,
            accelerations=nothing,
            effort=nothing,
            time_from_start=self._types("builtin_interfaces/msg/Duration")(sec=0, nanosec=0),
        )
        message = self._types(TRAJECTORY)(
            header=self.header(frame), joint_names=list(names), points=[point]
        )
        return Stamped(topic, TRAJECTORY, message)
