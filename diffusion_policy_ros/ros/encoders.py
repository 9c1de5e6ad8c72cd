"""Set-points → message: what `observe/codecs.py` is for the other direction.

Fields of the action that share a topic make one message, so a position and a rotation make a
pose. A new output is one function and one line of `ENCODERS`, and one of `contract.OUTPUTS`.
"""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Twist, TwistStamped, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from diffusion_policy_ros.contract import Output
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.chunks import SECOND_NS, time_msg

Vector = NDArray[np.float64]
SetPoint = Mapping[str, Vector]


@dataclass(frozen=True)
class Told:
    """What the robot is told at one instant, and what it will be told.

    Attributes:
        time_ns: now.
        set_point: field → what it is told now.
        velocity: field → how fast that changes, a unit a second; rotations in rad/s.
        time_from_start_s: how far the last point of a trajectory is ahead, s.
        ahead: set-points to come, evenly until then; may be empty.
    """

    time_ns: int
    set_point: SetPoint
    velocity: Mapping[str, Vector]
    time_from_start_s: float = 0.1
    ahead: Sequence[SetPoint] = ()


def encode(output: Output, told: Told) -> Any:
    """The message, or the goal of an action, that tells a topic's fields.

    Args:
        output: topic, type and fields.
        told: with a set-point of each of these fields.
    """
    return ENCODERS[output.type](output, told)


def _header(output: Output, told: Told) -> Header:
    return Header(stamp=time_msg(told.time_ns), frame_id=output.frame)


def _values(output: Output, set_point: SetPoint) -> Vector:
    """(k,), the fields' components in order, as the controller takes them."""
    parts = []
    for part in output.fields:
        value = set_point[part.name]
        if part.role == "binary":
            value = np.array([part.send.closed if value[0] > 0 else part.send.open])
        elif part.send.scale:
            value = value / np.array(part.send.scale)
        parts.append(value)
    return np.concatenate(parts)


def _of(output: Output, role: str, values: Mapping[str, Vector]) -> Vector | None:
    """The value of the field that has a role, if there is one."""
    return next((values.get(part.name) for part in output.fields if part.role == role), None)


def _pose(output: Output, told: Told) -> PoseStamped:
    position = _of(output, "position", told.set_point)
    turned = _of(output, "rotation", told.set_point)
    assert position is not None and turned is not None, "the contract completes poses"
    (x, y, z), (a, b, c, w) = map(float, position), map(float, turned)
    pose = Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=a, y=b, z=c, w=w))
    return PoseStamped(header=_header(output, told), pose=pose)


def _twist(output: Output, told: Told) -> Twist:
    """The twist that is told; or the velocity of the pose that is, in the base frame."""
    twist = _of(output, "twist", told.set_point)
    if twist is None:
        moved = _of(output, "position", told.velocity)
        turned = _of(output, "rotation", told.velocity)
        still = np.zeros(3)
        twist = np.concatenate([still if part is None else part for part in (moved, turned)])
    x, y, z, a, b, c = map(float, twist)
    return Twist(linear=Vector3(x=x, y=y, z=z), angular=Vector3(x=a, y=b, z=c))


def _twist_stamped(output: Output, told: Told) -> TwistStamped:
    return TwistStamped(header=_header(output, told), twist=_twist(output, told))


def _trajectory(output: Output, told: Told) -> JointTrajectory:
    """The way ahead, which ends at rest: the next message replaces it before.

    The stamp is zero, which means "begin at once" to ros2_control's joint_trajectory_controller;
    with another one a busy machine's controller would refuse a point whose time has just passed.
    It also refuses a last point that moves, and an arm whose player has died shall stop there.
    """
    coming = told.ahead if looks_ahead(output) else ()
    path = np.array([_values(output, point) for point in (told.set_point, *coming)])
    ahead = path[1:] if len(coming) else path
    step_s = told.time_from_start_s / len(ahead)
    velocities = np.zeros_like(ahead)
    velocities[:-1] = (path[2:] - path[:-2]) / (2.0 * step_s)
    message = JointTrajectory(joint_names=list(output.names))
    for i, (place, velocity) in enumerate(zip(ahead, velocities, strict=True), start=1):
        sec, nanosec = divmod(round(i * step_s * SECOND_NS), SECOND_NS)
        point = JointTrajectoryPoint(time_from_start=Duration(sec=sec, nanosec=nanosec))
        point.positions, point.velocities = array("d", place), array("d", velocity)
        message.points.append(point)
    return message


def looks_ahead(output: Output) -> bool:
    """Whether it is sent the way ahead: a trajectory of more than a gripper, which has none."""
    moves = any(part.moves_arm for part in output.fields)
    return moves and output.type == "trajectory_msgs/msg/JointTrajectory"


def _joint_state(output: Output, told: Told) -> JointState:
    message = JointState(header=_header(output, told), name=list(output.names))
    are_speeds = all(part.role == "joint_velocity" for part in output.fields)
    values = array("d", _values(output, told.set_point))
    setattr(message, "velocity" if are_speeds else "position", values)
    return message


def _array(output: Output, told: Told) -> Float64MultiArray:
    """Numbers without names, as ros2_control's forward controllers take them."""
    return Float64MultiArray(data=array("d", _values(output, told.set_point)))


def _number(output: Output, told: Told) -> Float64:
    return Float64(data=float(_values(output, told.set_point)[0]))


def _gripper(output: Output, told: Told) -> Any:
    goal = action_class(output.type).Goal()
    goal.command.position = float(_values(output, told.set_point)[0])
    goal.command.max_effort = float(output.fields[0].send.max_effort)
    return goal


def _parallel_gripper(output: Output, told: Told) -> Any:
    goal, effort = action_class(output.type).Goal(), float(output.fields[0].send.max_effort)
    goal.command.name = list(output.names)
    goal.command.position = array("d", _values(output, told.set_point))
    goal.command.effort = [effort] * len(output.names) if effort else []
    return goal


ENCODERS: dict[str, Callable[[Output, Told], Any]] = {
    "geometry_msgs/msg/PoseStamped": _pose,
    "geometry_msgs/msg/TwistStamped": _twist_stamped,
    "geometry_msgs/msg/Twist": _twist,
    "trajectory_msgs/msg/JointTrajectory": _trajectory,
    "sensor_msgs/msg/JointState": _joint_state,
    "std_msgs/msg/Float64MultiArray": _array,
    "std_msgs/msg/Float64": _number,
    "control_msgs/action/GripperCommand": _gripper,
    "control_msgs/action/ParallelGripperCommand": _parallel_gripper,
}
"""Type of a message, or of an action → what makes one."""


def action_class(name: str) -> Any:
    """The class of an action, as in ``control_msgs/action/GripperCommand``.

    Raises:
        UserError: no such action is installed.
    """
    package, _, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.action"), kind)
    except (ImportError, AttributeError):
        cure = f"install or source {package}, or send a message type"
        raise UserError("this action is not installed", name, cure) from None
