"""The robot's contract: which topics become which arrays, and what an action is.

One YAML file a robot, copied into bag metadata, dataset and checkpoint. The recorder, the
converter, the trainer and the node all read the robot from here and from nowhere else, which is
why they agree.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusion_policy_ros import strict_yaml
from diffusion_policy_ros.errors import UserError, UserErrors, did_you_mean
from diffusion_policy_ros.shipped import read_config
from diffusion_policy_ros.strict_yaml import Problem


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


MESSAGE_TYPES: dict[str, MessageType] = {
    "sensor_msgs/msg/Image": MessageType({"": 0}, image=True),
    "sensor_msgs/msg/CompressedImage": MessageType({"": 0}, image=True),
    "sensor_msgs/msg/JointState": MessageType({"position": 0, "velocity": 0, "effort": 0}),
    "geometry_msgs/msg/PoseStamped": MessageType({"pose.position": 3, "pose.orientation": 4}),
    "geometry_msgs/msg/TransformStamped": MessageType(
        {"transform.translation": 3, "transform.rotation": 4}
    ),
    "geometry_msgs/msg/TwistStamped": MessageType({"twist.linear": 3, "twist.angular": 3}),
    "trajectory_msgs/msg/JointTrajectory": MessageType({"positions": 0, "velocities": 0}),
    "std_msgs/msg/Float32MultiArray": MessageType({"data": 0}, stamped=False),
    "std_msgs/msg/Float64MultiArray": MessageType({"data": 0}, stamped=False),
}

ACTION_KINDS: dict[str, int] = {
    "delta_position": 3,
    "delta_axis_angle": 3,
    "position": 3,
    "axis_angle": 3,
    "quaternion": 4,
    "rotation_6d": 6,
    "joint_position": 0,
    "binary": 1,
}
"""Kind of an action field → its size, 0 where the contract gives it.

Deltas are per action, in the base frame, rotations multiplied from the left; ``rotation_6d`` is
the first two rows of the rotation's matrix; ``binary`` is > 0 for closed.
"""
ROTATION_KINDS = ("delta_axis_angle", "axis_angle", "quaternion", "rotation_6d")


def _later(default: Any, low: float | None = None, high: float = float("inf")) -> Any:
    """A key that contracts did not have from the start: it changes the hash only where it is used,
    so that what was recorded and trained before stays valid.
    """
    ranged = {} if low is None else {"min": low, "max": high}
    return dataclasses.field(default=default, metadata={"later": True, **ranged})


def _limit() -> Any:
    return _later(None, 1e-6)


@dataclass(frozen=True)
class Stream:
    """One array read from one topic.

    Attributes:
        topic: the ROS topic, absolute or relative to the node's namespace.
        type: the message type, as in ``sensor_msgs/msg/Image``.
        shape: (height, width, channels) of an image after resizing; otherwise (size,), derived
            where possible.
        field: which part of the message, as in ``pose.position``.
        names: joint names to pick, in this order, whatever the message's order.
        encoding: what an Image must be encoded as; anything else is refused rather than guessed.
        source_size: (height, width) that images must arrive with; any when empty and ``resize`` is
            not none.
        crop: (top, left, height, width) cut out before resizing.
        resize: how an image gets to its shape: ``area`` averages, ``none`` demands the exact size.
        scale: what one unit of the message is in SI units; one number, or one for each component.
        max_age_s: a frame is refused when the newest message is older than this.
        observation_latency_s: how much older than its stamp a measurement is; taken off the stamp
            wherever one is read. One for all streams of a topic.
        name: the array's key; filled in.
    """

    topic: str
    type: str
    shape: tuple[int, ...] = ()
    field: str = ""
    names: tuple[str, ...] = ()
    encoding: Literal["rgb8", "bgr8", "rgba8", "bgra8", "mono8"] = "rgb8"
    source_size: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    resize: Literal["area", "bilinear", "none"] = "area"
    scale: tuple[float, ...] = ()
    max_age_s: float = dataclasses.field(default=0.15, metadata={"min": 0.001, "max": 3600.0})
    observation_latency_s: float = _later(0.0, 0.0, 10.0)
    name: str = dataclasses.field(default="", metadata={"derived": True})

    @property
    def message(self) -> MessageType:
        """The message type's entry in `MESSAGE_TYPES`."""
        return MESSAGE_TYPES[self.type]

    @property
    def is_image(self) -> bool:
        """Whether it becomes a uint8 (H, W, C) array rather than a float32 vector."""
        return self.message.image

    @property
    def size(self) -> int:
        """Number of values."""
        return int(functools.reduce(lambda a, b: a * b, self.shape, 1))

    def resolved(self, name: str) -> Stream:
        """The same with name, default field and derivable shape filled in."""
        message = MESSAGE_TYPES.get(self.type)
        if message is None:
            return dataclasses.replace(self, name=name)
        field_name = self.field or next(iter(message.fields))
        size = message.fields.get(field_name, 0) or len(self.names)
        shape = self.shape or ((size,) if size else ())
        return dataclasses.replace(self, name=name, field=field_name, shape=shape)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        if not TOPIC.fullmatch(self.topic):
            yield Problem(
                "topic", f"'{self.topic}' is no topic name", "write it as /camera/image_raw"
            )
        message = MESSAGE_TYPES.get(self.type)
        if message is None:
            yield Problem(
                "type", f"cannot read '{self.type}'", did_you_mean(self.type, MESSAGE_TYPES)
            )
            return
        if self.field and self.field not in message.fields:
            yield Problem(
                "field",
                f"{self.type} has no '{self.field}'",
                did_you_mean(self.field, message.fields),
            )
            return
        yield from self._image_problems() if message.image else self._vector_problems(message)

    def _image_problems(self) -> Iterator[Problem]:
        if len(self.shape) != 3 or min(self.shape) < 1 or self.shape[-1] not in (1, 3):
            yield Problem(
                "shape", f"{list(self.shape)} is no image shape", "write [height, width, 3]"
            )
        if self.crop and (len(self.crop) != 4 or min(self.crop) < 0 or min(self.crop[2:]) < 1):
            yield Problem(
                "crop", f"{list(self.crop)} is no crop", "write [top, left, height, width]"
            )
        if self.source_size and (len(self.source_size) != 2 or min(self.source_size) < 1):
            yield Problem(
                "source_size", f"{list(self.source_size)} is no size", "write [height, width]"
            )
        if self.names or self.scale:
            yield Problem("names" if self.names else "scale", "an image has none", "remove it")

    def _vector_problems(self, message: MessageType) -> Iterator[Problem]:
        size = message.fields.get(self.field or next(iter(message.fields)), 0)
        if size and self.shape and self.shape != (size,):
            yield Problem(
                "shape",
                f"{list(self.shape)} does not fit the field",
                f"write [{size}] or leave it out",
            )
        if not size and not self.names and (len(self.shape) != 1 or self.shape[0] < 1):
            yield Problem("shape", "the size is not known", "give names: [...] or shape: [n]")
        if self.names and (size or not message.stamped):
            yield Problem("names", f"{self.type} has no joint names", "remove them")
        if self.names and self.shape and self.shape != (len(self.names),):
            yield Problem(
                "shape", f"{list(self.shape)} but {len(self.names)} names", "leave the shape out"
            )
        if len(set(self.names)) != len(self.names):
            yield Problem("names", "a name stands twice", "name each joint once")
        if len(self.scale) > 1 and len(self.scale) != (size or len(self.names) or sum(self.shape)):
            yield Problem(
                "scale", f"{len(self.scale)} numbers", "give one, or one for each component"
            )
        if self.crop or self.source_size:
            yield Problem(
                "crop" if self.crop else "source_size", "only images have one", "remove it"
            )


@dataclass(frozen=True)
class ActionField:
    """One named part of the action vector.

    Attributes:
        name: its name, the prefix of its components' names.
        kind: one of `ACTION_KINDS`.
        size: number of components; given by the kind, but for joints.
        frame: the tf frame that it is expressed in.
        state: the observation that measures the same thing: where the arm is now, and what actions
            are derived from when ``record`` is ``next_state``.
        threshold: for ``binary`` from ``next_state``: closed where the state's first component is
            below it.
        actuation_latency_s: how long a command of this field takes to take effect; it is sent that
            much early, see `Contract.sent_early_ns`.
    """

    name: str
    kind: Literal[
        "delta_position",
        "delta_axis_angle",
        "position",
        "axis_angle",
        "quaternion",
        "rotation_6d",
        "joint_position",
        "binary",
    ]
    size: int = dataclasses.field(default=0, metadata={"min": 0, "max": 1000})
    frame: str = "base"
    state: str = ""
    threshold: float | None = None
    actuation_latency_s: float = _later(0.0, 0.0, 10.0)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        size = ACTION_KINDS[self.kind]
        if size and self.size not in (0, size):
            yield Problem("size", f"{self.size}, but {self.kind} has {size}", "leave it out")
        if not size and not self.size:
            yield Problem("size", "is missing", "give the number of joints")


TOPIC = re.compile(r"(~?/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
"""What ROS takes for a topic's name."""
JOINT_LIMITS = ("joint_lead", "joint_velocity", "joint_acceleration", "joint_jump")
LIMITS_OF: dict[tuple[str, ...], tuple[str, ...]] = {
    ("delta_position", "position"): (
        "velocity",
        "translation",
        "acceleration",
        "lead",
        "jump",
        "workspace_min",
        "workspace_max",
    ),
    ROTATION_KINDS: (
        "angular_velocity",
        "rotation",
        "angular_acceleration",
        "lead_rotation",
        "jump_rotation",
    ),
    ("joint_position",): ("joint_velocity", *JOINT_LIMITS, "joint_min", "joint_max"),
}
"""Kinds of action fields → the limits that act on them, that of their speed first."""
SPEED_LIMITS = ("velocity", "translation", "angular_velocity", "rotation", "joint_velocity")
"""Limits of speed: a step of one action takes as long as an action."""


@dataclass(frozen=True)
class Limits:
    """What no action may exceed, whatever the network says. Unset means no limit.

    Attributes:
        translation: length of one action's translation, m.
        rotation: angle of one action's rotation, rad.
        lead: distance of the commanded from the measured position, m.
        lead_rotation: the same of orientations, rad.
        workspace_min: lowest commanded position (x, y, z), m.
        workspace_max: highest commanded position (x, y, z), m.
        joint_min: lowest joint positions, rad or m.
        joint_max: highest joint positions, rad or m.
        joint_lead: distance of commanded from measured joints, rad or m; one for all, or one each.
        velocity: of the commanded position, m/s.
        acceleration: of the commanded position, m/s^2.
        angular_velocity: of the commanded orientation, rad/s.
        angular_acceleration: of the commanded orientation, rad/s^2.
        joint_velocity: of commanded joints, rad/s or m/s; one for all, or one each.
        joint_acceleration: of commanded joints, rad/s^2 or m/s^2; one for all, or one each.
        jump: distance of a chunk's first action from the measured position, m; a chunk that begins
            farther away is rejected.
        jump_rotation: the same of orientations, rad.
        joint_jump: the same of joints, rad or m; one for all, or one each.
        chunk_timeout_s: hold when the newest chunk is older than this, s.
        observation_timeout_s: the player holds when the measured pose is older than this, s.
        on_stale: what these two time-outs do: ``hold`` goes on when news come, ``stop`` waits to
            be resumed.
    """

    translation: float | None = dataclasses.field(default=None, metadata={"min": 0.0})
    rotation: float | None = dataclasses.field(default=None, metadata={"min": 0.0})
    lead: float | None = dataclasses.field(default=None, metadata={"min": 0.0})
    lead_rotation: float | None = _limit()
    workspace_min: tuple[float, ...] = ()
    workspace_max: tuple[float, ...] = ()
    joint_min: tuple[float, ...] = ()
    joint_max: tuple[float, ...] = ()
    joint_lead: tuple[float, ...] = _later(())
    velocity: float | None = _limit()
    acceleration: float | None = _limit()
    angular_velocity: float | None = _limit()
    angular_acceleration: float | None = _limit()
    joint_velocity: tuple[float, ...] = _later(())
    joint_acceleration: tuple[float, ...] = _later(())
    jump: float | None = _limit()
    jump_rotation: float | None = _limit()
    joint_jump: tuple[float, ...] = _later(())
    chunk_timeout_s: float = dataclasses.field(default=1.0, metadata={"min": 0.01, "max": 60.0})
    observation_timeout_s: float = _later(0.5, 0.01, 60.0)
    on_stale: Literal["hold", "stop"] = _later("hold")

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        for name, size in (("workspace", 3), ("joint", 0)):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if len(low) != len(high) or (low and size and len(low) != size):
                yield Problem(
                    f"{name}_min", "minimum and maximum differ in size", "give both, equally long"
                )
            elif any(a > b for a, b in zip(low, high, strict=True)):
                yield Problem(f"{name}_min", "is above the maximum", "swap them")
        for name in JOINT_LIMITS:
            if min(getattr(self, name), default=1.0) <= 0:
                yield Problem(name, "is not above zero", "leave it out for no limit")

    def joint_problems(self, size: int) -> Iterator[Problem]:
        """What does not fit the number of joints."""
        for name in ("joint_min", "joint_max", *JOINT_LIMITS):
            if len(given := getattr(self, name)) not in (0, 1, size):
                what = f"{len(given)} numbers for {size} joints"
                yield Problem(f"limits.{name}", what, "give one, or one for each")


@dataclass(frozen=True)
class Action:
    """The action vector and where training finds it.

    Attributes:
        fields: its parts in order.
        record: recorded command streams, concatenated; or ``next_state``: derived from the states
            one frame later.
        limits: what no action may exceed.
    """

    fields: tuple[ActionField, ...]
    record: Literal["next_state"] | tuple[Stream, ...]
    limits: Limits = Limits()

    @functools.cached_property
    def slices(self) -> dict[str, slice]:
        """Field name → its place in the action vector."""
        ends = [0]
        for part in self.fields:
            ends.append(ends[-1] + part.size)
        return {
            part.name: slice(a, b) for part, a, b in zip(self.fields, ends, ends[1:], strict=False)
        }

    @property
    def commands(self) -> tuple[Stream, ...]:
        """The recorded command streams; none with ``next_state``."""
        return () if isinstance(self.record, str) else self.record

    @property
    def frame(self) -> str:
        """The base frame, which chunks are stamped with."""
        return self.fields[0].frame

    def of_kind(self, *kinds: str) -> ActionField | None:
        """The first field of one of these kinds."""
        return next((part for part in self.fields if part.kind in kinds), None)

    @property
    def acting_limits(self) -> list[str]:
        """Names of the limits that there is something for in this action; time-outs aside."""
        acting = [names for kinds, names in LIMITS_OF.items() if self.of_kind(*kinds)]
        return list(dict.fromkeys(name for names in acting for name in names))

    @property
    def unlimited(self) -> list[str]:
        """The limits that would keep slow what is now as fast as the policy says."""
        given = [name for name in SPEED_LIMITS if getattr(self.limits, name) not in (None, ())]
        return [
            names[0]
            for kinds, names in LIMITS_OF.items()
            if self.of_kind(*kinds) and not set(names) & set(given)
        ]

    def cure_of_idle(self, limit: str) -> str:
        """What to do about a limit of what this action does not command; empty if it acts.

        Args:
            limit: its name.
        """
        acting = self.acting_limits
        if limit in acting or not any(limit in names for names in LIMITS_OF.values()):
            return ""
        return did_you_mean(limit, acting) if acting else "remove it"

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        names = [part.name for part in self.fields]
        if not names:
            yield Problem("fields", "the action is empty", "list at least one field")
        if len(set(names)) != len(names):
            yield Problem("fields", "two fields have the same name", "rename one")
        size, recorded = sum(f.size or ACTION_KINDS[f.kind] for f in self.fields), 0
        for i, stream in enumerate(self.commands):
            if stream.type in MESSAGE_TYPES and stream.message.image:
                yield Problem(
                    f"record.{i}.type", "an image is no command", "name a command's topic"
                )
            recorded += sum(stream.resolved("").shape)
        if self.commands and recorded != size:
            yield Problem(
                "record", f"gives {recorded} values, the fields need {size}", "make them equal"
            )
        joints = self.of_kind("joint_position")
        yield from self.limits.joint_problems(joints.size if joints else 0)


@dataclass(frozen=True)
class Contract:
    """One robot: observations, action, rate.

    Attributes:
        name: the robot's or task's name.
        rate_hz: frames and actions a second.
        anchor: the observation whose stamps are the frames' times.
        observations: key → stream, in the order of the condition vector.
        action: the action vector.
        settle_s: how long after the anchor's arrival a frame waits for the other streams.
        text: the YAML it was read from; filled in.
    """

    name: str
    rate_hz: float = dataclasses.field(metadata={"min": 0.1, "max": 1000.0})
    anchor: str
    observations: dict[str, Stream]
    action: Action
    settle_s: float = dataclasses.field(default=0.01, metadata={"min": 0.0, "max": 10.0})
    text: str = dataclasses.field(
        default="", compare=False, repr=False, metadata={"derived": True}
    )

    @classmethod
    def from_text(cls, text: str, where: str = "contract") -> Contract:
        """Read a contract.

        Raises:
            UserErrors: every mistake with key, line and cure.
        """
        raw = strict_yaml.parse(cls, text, where)
        action = raw.action
        record = action.record
        if not isinstance(record, str):
            record = tuple(s.resolved(f"action.record.{i}") for i, s in enumerate(record))
        fields = tuple(
            dataclasses.replace(f, size=f.size or ACTION_KINDS[f.kind]) for f in action.fields
        )
        return dataclasses.replace(
            raw,
            observations={key: stream.resolved(key) for key, stream in raw.observations.items()},
            action=dataclasses.replace(action, fields=fields, record=record),
            text=text,
        )

    @classmethod
    def load(cls, name: str | Path) -> Contract:
        """Read a contract from a file, or a shipped one by its name.

        Raises:
            UserError: there is no such file, or it has mistakes; also limits that cannot act,
                with which what was recorded and trained stays readable.
        """
        text, where = read_config("contracts", name)
        contract = cls.from_text(text, where)
        limits, idle = contract.action.limits, list[UserError]()
        for limit, value in vars(limits).items():
            cure = contract.action.cure_of_idle(limit)
            if cure and value not in (None, ()):
                what = f"action.limits.{limit}: the action commands nothing that it limits"
                idle.append(UserError(what, where, cure))
        if idle:
            raise UserErrors(idle)
        return contract

    @property
    def period_ns(self) -> int:
        """Time between frames, ns."""
        return round(1e9 / self.rate_hz)

    def sent_early_ns(self, part: ActionField) -> int:
        """How long before its time an action of this field is sent, ns.

        A recorded command is meant for when it took effect, so it is the whole latency. A state
        one frame later is commanded a frame before it is due, so it is what the latency is beyond
        one frame.
        """
        latency_ns = round(part.actuation_latency_s * 1e9)
        derived = self.action.record == "next_state"
        return max(0, latency_ns - self.period_ns) if derived else latency_ns

    @property
    def action_dim(self) -> int:
        """Da, the size of an action."""
        return sum(part.size for part in self.action.fields)

    @property
    def action_names(self) -> list[str]:
        """One name a component: the joint's, or ``translation.0``, or the field's own."""
        return [name for part in self.action.fields for name in self._component_names(part)]

    def _component_names(self, part: ActionField) -> list[str]:
        state = self.observations.get(part.state)
        if part.kind == "joint_position" and state is not None and state.names:
            return list(state.names)
        return [f"{part.name}.{i}" for i in range(part.size)] if part.size > 1 else [part.name]

    @functools.cached_property
    def topics(self) -> dict[str, list[Stream]]:
        """Observed topic → the arrays read from it."""
        found: dict[str, list[Stream]] = {}
        for stream in self.observations.values():
            found.setdefault(stream.topic, []).append(stream)
        return found

    @functools.cached_property
    def recorded_topics(self) -> dict[str, str]:
        """Every topic that a demonstration must hold → its message type."""
        streams = [*self.observations.values(), *self.action.commands]
        return {stream.topic: stream.type for stream in streams}

    @functools.cached_property
    def hash(self) -> str:
        """A fingerprint of the meaning, whatever the text's layout and comments."""
        meaning = _meaning(dataclasses.replace(self, text=""))
        meaning["order"] = list(self.observations)
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: Contract) -> str:
        """The first keys in which two contracts differ; empty when they mean the same."""
        ours, theirs = (
            _flat(dataclasses.asdict(dataclasses.replace(c, text=""))) for c in (self, other)
        )
        keys = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
        order = (
            []
            if list(self.observations) == list(other.observations)
            else ["order of observations"]
        )
        return ", ".join((keys + order)[:4])

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        if self.anchor not in self.observations:
            yield Problem(
                "anchor",
                f"'{self.anchor}' is no observation",
                did_you_mean(self.anchor, self.observations),
            )
        elif self.observations[self.anchor].type.endswith("MultiArray"):
            yield Problem(
                "anchor", "its messages have no stamp", "anchor frames to a stamped stream"
            )
        types: dict[str, str] = {}
        for key, stream in [
            *self.observations.items(),
            *((c.topic, c) for c in self.action.commands),
        ]:
            if types.setdefault(stream.topic, stream.type) != stream.type:
                yield Problem(
                    f"observations.{key}.type",
                    f"{stream.topic} is {types[stream.topic]} elsewhere",
                    "",
                )
        for key, stream in self.observations.items():
            latency_s = self.topics[stream.topic][0].observation_latency_s
            if stream.observation_latency_s != latency_s:
                yield Problem(
                    f"observations.{key}.observation_latency_s",
                    f"{stream.topic} has {latency_s:g} elsewhere",
                    "a message has one age: give all its streams the same",
                )
        for i, part in enumerate(self.action.fields):
            yield from self._state_problems(i, part)

    def _state_problems(self, i: int, part: ActionField) -> Iterator[Problem]:
        key = f"action.fields.{i}.state"
        if not part.state:
            if self.action.record == "next_state":
                yield Problem(
                    key,
                    "is missing, and record is next_state",
                    "name the observation it is derived from",
                )
            return
        stream = self.observations.get(part.state)
        if stream is None:
            yield Problem(
                key,
                f"'{part.state}' is no observation",
                did_you_mean(part.state, self.observations),
            )
            return
        needed = 4 if part.kind in ROTATION_KINDS else part.size or 3
        needed = 3 if part.kind in ("delta_position", "position") else needed
        shape = stream.resolved("").shape
        if part.kind != "binary" and shape and shape != (needed,):
            yield _misfit(i, part, shape, needed)
        if part.kind == "binary" and part.threshold is None and self.action.record == "next_state":
            yield Problem(
                f"action.fields.{i}.threshold",
                "is missing",
                "say below which state the gripper is closed",
            )


def _misfit(i: int, part: ActionField, shape: tuple[int, ...], needed: int) -> Problem:
    """A state that does not have as many values as the action's field."""
    has = "is an image" if len(shape) > 1 else f"has {shape[0]} values"
    what = f"'{part.state}' {has}, {part.name} needs {needed}"
    if part.kind != "joint_position":
        return Problem(f"action.fields.{i}.state", what, "name a pose's position or orientation")
    if len(shape) > 1:
        return Problem(f"action.fields.{i}.state", what, "name the joints' positions")
    return Problem(f"action.fields.{i}.size", what, f"set size: {shape[0]}")


def _meaning(value: Any) -> Any:
    """As `dataclasses.asdict`, without the later keys that are not used."""
    if dataclasses.is_dataclass(value):
        found = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {
            f.name: _meaning(v)
            for f, v in found.items()
            if not (f.metadata.get("later") and v == f.default)
        }
    if isinstance(value, dict):
        return {key: _meaning(child) for key, child in value.items()}
    return [_meaning(child) for child in value] if isinstance(value, tuple) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, child in value.items():
        found.update(_flat(child, f"{prefix}.{key}" if prefix else str(key)))
    return found
