"""Observations and actions as ROS messages, without importing ROS.

The messages are made by constructors that the caller hands in: `types(name)` returns what is
called with *all* fields of message type `name` as keyword arguments. That serves rclpy's classes
(with `arrays=ros_array`), the dataclasses of rosbags, which take NumPy arrays, and
`types.SimpleNamespace` in tests. So a recorded message and a live one come from the same lines.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Types = Callable[[str], Callable[..., Any]]
Arrays = Callable[[np.ndarray], Any]

IMAGE = "sensor_msgs/msg/Image"
POSE = "geometry_msgs/msg/PoseStamped"
JOINTS = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"

BASE_FRAME = "base"
IMAGE_TOPICS = {
    "agentview_image": ("/agentview/image_raw", "agentview"),
    "robot0_eye_in_hand_image": ("/eye_in_hand/image_raw", "eye_in_hand"),
}
COMMAND_TOPIC = "/eef_command"
TOPICS = {
    "/agentview/image_raw": IMAGE,
    "/eye_in_hand/image_raw": IMAGE,
    "/eef_pose": POSE,
    "/gripper/joint_states": JOINTS,
    "/object_pose": POSE,
    "/gripper_to_object": POSE,
}


class Stamped(NamedTuple):
    """One message to publish or record."""

    topic: str
    type_name: str
    message: Any


def numpy_array(values: np.ndarray) -> np.ndarray:
    """Leave numeric sequences as NumPy arrays, as rosbags needs them."""
    return values


def ros_array(values: np.ndarray) -> array.array[Any]:
    """Numeric sequences as `array.array`, which rclpy assigns whole, not value by value."""
    result = array.array(values.dtype.char)
    result.frombytes(np.ascontiguousarray(values).tobytes())
    return result


def messages(
    obs: dict[str, np.ndarray], stamp_ns: int, types: Types, arrays: Arrays = numpy_array
) -> list[Stamped]:
    """What the robot publishes at one instant: cameras first, as far as `obs` has them.

    Args:
        obs: observation of `SimArm`.
        stamp_ns: header stamp of every message.
        types: message constructors by name.
        arrays: makes the numeric sequences; `ros_array` for rclpy.
    """
    result = []
    for key, (topic, frame) in IMAGE_TOPICS.items():
        if key in obs:
            result.append(Stamped(topic, IMAGE, _image(obs[key], stamp_ns, frame, types, arrays)))
    none = np.array([0.0, 0.0, 0.0, 1.0])
    poses = {
        "/eef_pose": (BASE_FRAME, obs["robot0_eef_pos"], obs["robot0_eef_quat"]),
        "/object_pose": (BASE_FRAME, obs["object_pos"], obs["object_quat"]),
        # An offset in base axes that begins at the tool: no frame of the robot's own has that.
        "/gripper_to_object": ("tool_parallel_to_base", obs["gripper_to_object_pos"], none),
    }
    for topic, (frame, position, quaternion) in poses.items():
        header = _header(stamp_ns, frame, types)
        result.append(Stamped(topic, POSE, _pose(header, position, quaternion, types)))
    joints = _joints(obs["robot0_gripper_qpos"], stamp_ns, types, arrays)
    return [*result, Stamped("/gripper/joint_states", JOINTS, joints)]


def command_message(
    action: np.ndarray,
    stamp_ns: int,
    names: Sequence[str],
    types: Types,
    arrays: Arrays = numpy_array,
) -> Stamped:
    """An action as it is recorded: one point that is meant at its stamp.

    Args:
        action: (n,) components, n the number of `names`.
        stamp_ns: header stamp, the time of the observation that the action answers.
        names: joint names: the action's component names.
        types: message constructors by name.
        arrays: makes the numeric sequences; `ros_array` for rclpy.
    """
    if len(action) != len(names):
        raise ValueError(f"{len(action)} components, {len(names)} names: {list(names)}")
    nothing = arrays(np.zeros(0))
    point = types("trajectory_msgs/msg/JointTrajectoryPoint")(
        positions=arrays(np.asarray(action, np.float64)),
        velocities=nothing,
        accelerations=nothing,
        effort=nothing,
        time_from_start=types("builtin_interfaces/msg/Duration")(sec=0, nanosec=0),
    )
    header = _header(stamp_ns, BASE_FRAME, types)
    message = types(TRAJECTORY)(header=header, joint_names=list(names), points=[point])
    return Stamped(COMMAND_TOPIC, TRAJECTORY, message)


def _header(stamp_ns: int, frame: str, types: Types) -> Any:
    seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
    stamp = types("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)
    return types("std_msgs/msg/Header")(stamp=stamp, frame_id=frame)


def _image(image: np.ndarray, stamp_ns: int, frame: str, types: Types, arrays: Arrays) -> Any:
    height, width, channels = image.shape
    return types(IMAGE)(
        header=_header(stamp_ns, frame, types),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=width * channels,
        data=arrays(np.ascontiguousarray(image).reshape(-1)),
    )


def _pose(header: Any, position: np.ndarray, quaternion: np.ndarray, types: Types) -> Any:
    x, y, z = (float(v) for v in position)
    qx, qy, qz, qw = (float(v) for v in quaternion)
    pose = types("geometry_msgs/msg/Pose")(
        position=types("geometry_msgs/msg/Point")(x=x, y=y, z=z),
        orientation=types("geometry_msgs/msg/Quaternion")(x=qx, y=qy, z=qz, w=qw),
    )
    return types(POSE)(header=header, pose=pose)


def _joints(openings: np.ndarray, stamp_ns: int, types: Types, arrays: Arrays) -> Any:
    nothing = arrays(np.zeros(0))
    return types(JOINTS)(
        header=_header(stamp_ns, BASE_FRAME, types),
        name=["left", "right"],
        position=arrays(openings.astype(np.float64)),
        velocity=nothing,
        effort=nothing,
    )
