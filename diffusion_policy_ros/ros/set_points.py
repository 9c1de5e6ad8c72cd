"""A set-point as the messages that controllers take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from diffusion_policy_ros.ros.chunks import SECOND_NS, time_msg


@dataclass(frozen=True)
class SetPoint:
    """What the robot is told at one instant; None for what the action does not command."""

    position: NDArray[np.float64] | None = None
    quaternion: NDArray[np.float64] | None = None
    gripper: float | None = None
    joints: NDArray[np.float64] | None = None
    holding: str = ""


def header(time_ns: int, frame: str) -> Header:
    """Of a set-point: when it is meant, in which frame."""
    return Header(stamp=time_msg(time_ns), frame_id=frame)


def pose_msg(told: SetPoint, head: Header) -> PoseStamped:
    """Position and orientation of the end effector."""
    assert told.position is not None and told.quaternion is not None, "the contract has both"
    message = PoseStamped(header=head)
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = map(float, told.position)
    orientation.x, orientation.y, orientation.z, orientation.w = map(float, told.quaternion)
    return message


def twist_msg(before: SetPoint, told: SetPoint, period_s: float, head: Header) -> TwistStamped:
    """The velocity, in the base frame, that leads from one set-point to the next in a tick."""
    assert told.position is not None and before.position is not None, "the contract has both"
    message = TwistStamped(header=head)
    linear, angular = message.twist.linear, message.twist.angular
    turn = Rotation.from_quat(told.quaternion) * Rotation.from_quat(before.quaternion).inv()
    moved, turned = (told.position - before.position) / period_s, turn.as_rotvec() / period_s
    linear.x, linear.y, linear.z = map(float, moved)
    angular.x, angular.y, angular.z = map(float, turned)
    return message


def array_msg(values: Sequence[float]) -> Float64MultiArray:
    """Numbers without names, as ros2_control's forward controllers take them."""
    return Float64MultiArray(data=[float(value) for value in values])


def trajectory_msg(names: Sequence[str], positions: ArrayLike, period_ns: int) -> JointTrajectory:
    """One point, a tick from now: ros2_control's joint_trajectory_controller.

    The stamp is zero, which means "begin at once" there; with another one the controller of a
    busy machine would refuse a point whose time has just passed.
    """
    sec, nanosec = divmod(period_ns, SECOND_NS)
    point = JointTrajectoryPoint(positions=np.asarray(positions, dtype=float).tolist())
    point.time_from_start = Duration(sec=sec, nanosec=nanosec)
    return JointTrajectory(joint_names=list(names), points=[point])
