"""The messages that a contract may name, and what is known of them without their definitions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

TF, TF_STATIC, TF_MESSAGE = "/tf", "/tf_static", "tf2_msgs/msg/TFMessage"
DEPTH_ENCODINGS = ("16UC1", "32FC1")
Encoding = Literal[
    "rgb8",
    "bgr8",
    "rgba8",
    "bgra8",
    "mono8",
    "8UC1",
    "8UC3",
    "mono16",
    "16UC1",
    "32FC1",
    "yuv422",
    "uyvy",
    "yuv422_yuy2",
    "yuyv",
    "nv12",
    "bayer_rggb8",
    "bayer_bggr8",
    "bayer_gbrg8",
    "bayer_grbg8",
]


@dataclass(frozen=True)
class MessageType:
    """What the contract has to know of a message type; how to read one is in
    ``observe/codecs.py``.

    Attributes:
        fields: readable fields → size, 0 where ``names`` or ``shape`` gives it. The first is the
            default.
        stamped: whether it has a header. Without one, time is the time of receipt.
        image: whether it becomes an image.
    """

    fields: dict[str, int]
    stamped: bool = True
    image: bool = False


_POSE = {"position": 3, "orientation": 4}
_TWIST = {"linear": 3, "angular": 3}
_WRENCH = {"force": 3, "torque": 3}


def _below(name: str, fields: dict[str, int]) -> dict[str, int]:
    return {f"{name}.{field}": size for field, size in fields.items()}


MESSAGE_TYPES: dict[str, MessageType] = {
    "sensor_msgs/msg/Image": MessageType({"": 0}, image=True),
    "sensor_msgs/msg/CompressedImage": MessageType({"": 0}, image=True),
    "sensor_msgs/msg/JointState": MessageType({"position": 0, "velocity": 0, "effort": 0}),
    "geometry_msgs/msg/PoseStamped": MessageType(_below("pose", _POSE)),
    "geometry_msgs/msg/TransformStamped": MessageType(
        {"transform.translation": 3, "transform.rotation": 4}
    ),
    "geometry_msgs/msg/TwistStamped": MessageType(_below("twist", _TWIST)),
    TF_MESSAGE: MessageType({"translation": 3, "rotation": 4}, stamped=False),
    "trajectory_msgs/msg/JointTrajectory": MessageType({"positions": 0, "velocities": 0}),
    "std_msgs/msg/Float32MultiArray": MessageType({"data": 0}, stamped=False),
    "std_msgs/msg/Float64MultiArray": MessageType({"data": 0}, stamped=False),
    "geometry_msgs/msg/Pose": MessageType(_POSE, stamped=False),
    "geometry_msgs/msg/PointStamped": MessageType({"point": 3}),
    "geometry_msgs/msg/Vector3Stamped": MessageType({"vector": 3}),
    "geometry_msgs/msg/QuaternionStamped": MessageType({"quaternion": 4}),
    "geometry_msgs/msg/Twist": MessageType(_TWIST, stamped=False),
    "geometry_msgs/msg/Wrench": MessageType(_WRENCH, stamped=False),
    "geometry_msgs/msg/WrenchStamped": MessageType(_below("wrench", _WRENCH)),
    "geometry_msgs/msg/AccelStamped": MessageType(_below("accel", _TWIST)),
    "nav_msgs/msg/Odometry": MessageType(
        {
            **_below("pose.pose", _POSE),
            **_below("twist.twist", _TWIST),
            "pose.covariance": 36,
            "twist.covariance": 36,
        }
    ),
    "sensor_msgs/msg/Imu": MessageType(
        {
            "orientation": 4,
            "angular_velocity": 3,
            "linear_acceleration": 3,
            "orientation_covariance": 9,
            "angular_velocity_covariance": 9,
            "linear_acceleration_covariance": 9,
        }
    ),
    "sensor_msgs/msg/Joy": MessageType({"axes": 0, "buttons": 0}),
    "sensor_msgs/msg/Range": MessageType({"range": 1}),
    **{
        f"std_msgs/msg/{name}": MessageType({"data": 1}, stamped=False)
        for name in ("Float32", "Float64", "Bool", "Int8", "UInt8", "Int16", "Int32", "Int64")
    },
}
"""Message types of which sizes are known without their definitions. Any other type may be named
with the path of a field, and a shape where the path does not say it."""
NAMED = ("sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory")
"""Types whose values have joint names beside them."""
ANY = MessageType({})
"""What is known of any other type; whether it has a stamp, its messages say."""
TYPE_NAME = re.compile(r"[a-z]\w*/msg/[A-Z]\w*", re.ASCII)


Quantity = Literal[
    "",
    "position",
    "orientation",
    "linear_velocity",
    "angular_velocity",
    "linear_acceleration",
    "force",
    "torque",
    "joint_position",
    "joint_velocity",
    "joint_effort",
]
"""What a vector measures: m, quaternion x y z w, m/s, rad/s, m/s^2, N, Nm; of joints rad or m, and
their derivatives."""

QUANTITIES: dict[str, Quantity] = {
    "position": "position",
    "translation": "position",
    "orientation": "orientation",
    "rotation": "orientation",
    "linear": "linear_velocity",
    "angular": "angular_velocity",
    "point": "position",
    "quaternion": "orientation",
    "force": "force",
    "torque": "torque",
    "angular_velocity": "angular_velocity",
    "linear_acceleration": "linear_acceleration",
}
"""Last part of a field's path → what it measures."""
