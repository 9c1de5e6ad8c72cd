"""As what, and where to, set-points are sent: which message carries which fields.

How a message is filled is in ``ros/encoders.py``, one function a row of `OUTPUTS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion_policy_ros.contract.stream import TOPIC, Stream
from diffusion_policy_ros.errors import did_you_mean
from diffusion_policy_ros.strict_yaml import Problem

if TYPE_CHECKING:
    from diffusion_policy_ros.contract.action import ActionField


@dataclass(frozen=True)
class Send:
    """As what, and where to, a field's set-points are sent.

    Attributes:
        topic: the ROS topic, or an action's name; by the field's role where none is given. Fields
            of one topic go out in one message.
        type: the message's type, a row of `OUTPUTS`.
        names: of joints; those of the field's state where none are given.
        open: what an open ``binary`` is sent as.
        closed: what a closed ``binary`` is sent as.
        max_effort: of a gripper's action, N.
        scale: what one unit of the message is in SI units, as that of a stream; one number, or one
            for each component.
    """

    topic: str = ""
    type: str = ""
    names: tuple[str, ...] = ()
    open: float = -1.0
    closed: float = 1.0
    max_effort: float = 0.0
    scale: tuple[float, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        if self.type and self.type not in OUTPUTS:
            what = f"set-points cannot be sent as '{self.type}'"
            yield Problem("type", what, did_you_mean(self.type, OUTPUTS))
        if self.topic and not TOPIC.fullmatch(self.topic):
            yield Problem(
                "topic", f"'{self.topic}' is no topic name", "write it as /arm/target_pose"
            )
        if 0 in self.scale:
            yield Problem("scale", "is 0", "give what one unit is in SI units")


@dataclass(frozen=True)
class OutputType:
    """What a message can carry.

    Attributes:
        roles: of fields.
        most: so many fields of one role; 0 for any number, one after the other.
        size: so many values; 0 for any number.
        named: whether every value has a joint's name.
        whole: whether it says position and rotation, so that a field of one needs the other.
    """

    roles: tuple[str, ...]
    most: int = 0
    size: int = 0
    named: bool = False
    whole: bool = False


OUTPUTS: dict[str, OutputType] = {
    "geometry_msgs/msg/PoseStamped": OutputType(("position", "rotation"), most=1, whole=True),
    "geometry_msgs/msg/TwistStamped": OutputType(("twist", "position", "rotation"), most=1),
    "geometry_msgs/msg/Twist": OutputType(("twist", "position", "rotation"), most=1),
    "trajectory_msgs/msg/JointTrajectory": OutputType(("joints", "scalar", "binary"), named=True),
    "std_msgs/msg/Float64MultiArray": OutputType(("joints", "joint_velocity", "scalar", "binary")),
    "std_msgs/msg/Float64": OutputType(("joints", "joint_velocity", "scalar", "binary"), 1, 1),
    "sensor_msgs/msg/JointState": OutputType(
        ("joints", "joint_velocity", "scalar", "binary"), named=True
    ),
    "control_msgs/action/GripperCommand": OutputType(("scalar", "binary"), most=1, size=1),
    "control_msgs/action/ParallelGripperCommand": OutputType(
        ("scalar", "binary"), most=1, size=1, named=True
    ),
}
"""Message or action type → what it can carry; a pose that is sent as a twist is its velocity."""

DEFAULTS: dict[str, tuple[str, str]] = {
    "position": ("~/pose", "geometry_msgs/msg/PoseStamped"),
    "rotation": ("~/pose", "geometry_msgs/msg/PoseStamped"),
    "joints": ("~/joint_trajectory", "trajectory_msgs/msg/JointTrajectory"),
    "joint_velocity": ("~/joint_velocity", "std_msgs/msg/Float64MultiArray"),
    "twist": ("~/twist", "geometry_msgs/msg/TwistStamped"),
    "scalar": ("~/gripper", "std_msgs/msg/Float64MultiArray"),
    "binary": ("~/gripper", "std_msgs/msg/Float64MultiArray"),
}
"""Role of a field → topic and type where its ``send`` gives none."""

SCALED = ("joints", "joint_velocity", "scalar")
"""Roles of fields that a driver may want in units of its own."""

OTHER_HALF = {
    "position": "orientation",
    "orientation": "position",
    "translation": "rotation",
    "rotation": "translation",
}
"""Half of a pose, as the last part of a message's field names it → the other."""


@dataclass(frozen=True)
class Output:
    """One message, and the fields that go out in it.

    Attributes:
        topic, type: of the message.
        fields: in the action's order; what is only kept comes last.
        names: of the values, where the message has names; may be empty otherwise.
    """

    topic: str
    type: str
    fields: tuple[ActionField, ...]
    names: tuple[str, ...]

    @property
    def frame(self) -> str:
        """The tf frame of the message."""
        return self.fields[0].frame

    def problems(self) -> Iterator[Problem]:
        """Why the message cannot carry its fields."""
        row, names = OUTPUTS[self.type], ", ".join(part.name for part in self.fields)
        roles = [part.role for part in self.fields]
        size = sum(1 if part.role == "binary" else part.size for part in self.fields)
        for part in self.fields:
            if part.role not in row.roles:
                fitting = [name for name, other in OUTPUTS.items() if part.role in other.roles]
                what = f"{self.type} cannot carry {part.name}, a {part.kind}"
                yield Problem("send.type", what, f"give {fitting[0]}")
        many = [part.name for part in self.fields if roles.count(part.role) > row.most]
        if row.most and many:
            what = f"{', '.join(many)} would go out in one {self.type} on {self.topic}"
            yield Problem("send", what, "give each its own send: {topic: ..., type: ...}")
        elif row.size and size != row.size:
            what = f"{names} has {size} values, {self.type} has {row.size}"
            yield Problem("send.type", what, "give std_msgs/msg/Float64MultiArray")
        if row.named and len(self.names) != size:
            what = f"{names}: {len(self.names)} names for {size} values in {self.type}"
            yield Problem("send.names", what, "name the joints")
        elif row.named and len(set(self.names)) < size:
            twice = ", ".join(n for n in dict.fromkeys(self.names) if self.names.count(n) > 1)
            what = f"{names} would tell {twice} twice in one {self.type} on {self.topic}"
            yield Problem("send.names", what, "name each joint once, or give two topics")
        for part in self.fields:
            yield from _scale_problems(self.type, part)
        if row.whole and len({part.frame for part in self.fields}) > 1:
            yield Problem("send", f"{names} are in different frames", "give each its own topic")
        if "twist" in roles and len(roles) > 1:
            yield Problem("send", f"{names} would be one twist", "give two topics")
        if row.named and "joint_velocity" in roles and len(set(roles)) > 1:
            yield Problem("send", f"{names} mix positions and velocities", "give two topics")


def _scale_problems(type_name: str, part: ActionField) -> Iterator[Problem]:
    """Why a field cannot be sent in other units."""
    scale = part.send.scale
    if not scale:
        return
    if part.role == "binary":
        yield Problem("send.scale", f"{part.name} is open or closed", "give open: and closed:")
    elif part.role not in SCALED:
        yield Problem("send.scale", f"{type_name} is in SI units", "remove it")
    elif len(scale) not in (1, part.size):
        what = f"{len(scale)} numbers for {part.size} components of {part.name}"
        yield Problem("send.scale", what, "give one, or one for each component")


def grouped(
    fields: Sequence[ActionField], observations: Mapping[str, Stream]
) -> tuple[list[Output], list[Problem]]:
    """The messages that fields go out in, and why some cannot.

    Args:
        fields: with what is only kept.
        observations: key → stream, which joints' names are from.
    """
    found: dict[str, list[ActionField]] = {}
    problems = []
    for part in fields:
        found.setdefault(part.send.topic, []).append(part)
    outputs = []
    for topic, parts in found.items():
        types = dict.fromkeys(part.send.type for part in parts)
        if len(types) > 1:
            what = f"{topic} is {' and '.join(types)}"
            problems.append(Problem("send.type", what, "give one type, or two topics"))
        names = tuple(name for part in parts for name in names_of(part, observations))
        outputs.append(Output(topic, next(iter(types)), tuple(parts), names))
        problems += outputs[-1].problems()
    return outputs, problems


def names_of(part: ActionField, observations: Mapping[str, Stream]) -> tuple[str, ...]:
    """The joints' names of a field: its own, else those of what measures it."""
    state = observations.get(part.state)
    measured = state.names if state is not None and part.role != "binary" else ()
    return part.send.names or (measured if len(measured) == part.size else ())
