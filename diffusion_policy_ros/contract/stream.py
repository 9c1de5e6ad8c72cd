"""One array read from one topic."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from diffusion_policy_ros.contract.fields import known_size, misled, parsed, without_picks
from diffusion_policy_ros.contract.meaning import cell
from diffusion_policy_ros.contract.messages import (
    ANY,
    DEPTH_ENCODINGS,
    MESSAGE_TYPES,
    NAMED,
    QUANTITIES,
    TF,
    TF_MESSAGE,
    TYPE_NAME,
    Encoding,
    MessageType,
    Quantity,
)
from diffusion_policy_ros.errors import did_you_mean
from diffusion_policy_ros.strict_yaml import Problem

OF_A_TOPIC = ("observation_latency_s", "static", "time", "qos")
"""Keys that must be the same of all streams of a topic."""
OF_TF = ("tf", "field", "quantity", "max_age_s", "qos", "observation_latency_s")
"""Keys that act on what comes from tf."""
TOPIC = re.compile(r"(~?/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
"""What ROS takes for a topic's name."""


@dataclass(frozen=True)
class Tf:
    """Two frames of the tf tree.

    Attributes:
        parent: the frame that it is told in.
        child: the frame that is told.
    """

    parent: str
    child: str

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        if not self.parent or not self.child or self.parent == self.child:
            yield Problem("child", "tf needs two frames", "name a parent and another child")


@dataclass(frozen=True)
class Stream:
    """One array read from one topic.

    Attributes:
        topic: the ROS topic, absolute or relative to the node's namespace.
        type: the message type, as in ``sensor_msgs/msg/Image``; any that has numbers.
        tf: instead of a topic: ``{parent: base_link, child: tool0}``, where the child is in the
            parent (``field: translation``, the default) or how it is turned (``rotation``), from
            ``/tf`` and ``/tf_static``, interpolated at the frame's time. Of the other keys only
            ``max_age_s``, ``qos``, ``quantity`` and ``observation_latency_s`` act on it. A player
            does not read tf: the state of a field that it moves is of a topic.
        definition: the type's ``.msg`` file, where neither the bag nor ROS knows it.
        shape: (height, width, channels) of an image after resizing; otherwise (size,), derived
            where possible.
        field: which part of the message: a path, as ``pose.position``, ``axes[1]``,
            ``o_t_ee[12:15]``, or ``position[name=finger]``, the value whose name is in ``name``.
        names: joint names to pick, in this order, whatever the message's order.
        quantity: what the values measure, in SI units; known of the usual messages.
        near: the smallest depth that a picture of depth tells, m; what is nearer is unknown.
        far: the largest, m. With both, the picture is one of depth, in 254 steps; 0 is unknown.
        encoding: what an Image must be encoded as; anything else is refused rather than guessed.
            Of a CompressedImage only depth's: 16UC1 (png) or 32FC1 (compressedDepth).
        rotate: how far a picture is turned clockwise before all else, degrees.
        flip: how it is mirrored then: ``horizontal`` swaps left and right.
        source_size: (height, width) that images must arrive with; any when empty and ``resize`` is
            not none.
        crop: (top, left, height, width) cut out of what is upright, before resizing.
        resize: how an image gets to its shape: ``area`` averages, ``none`` demands the exact size.
        scale: what one unit of the message is in SI units; one number, or one for each component.
        max_age_s: a frame is refused when the newest message is older than this.
        frame_id: the tf frame that its messages must be in; that of the action's field that it
            measures or commands where nothing is given, unless that is the default ``base``.
        static: a latched message that holds until another one comes: a goal, a calibration. It is
            kept over resets, has no age, and is asked for from before the subscription.
        time: which time a message has: its ``header`` stamp, or that of its ``receipt``, for
            drivers whose stamps are of no use. One for all streams of a topic, as ``static``,
            ``qos`` and ``observation_latency_s``.
        qos: what reliability is asked for; where not given, the most that all publishers offer.
        hold_s: of a recorded command: how long one holds when no other follows, as of a gripper
            that is told on the press of a button.
        combine: of recorded commands: which of those between two frames is the action, or what
            they make together; ``mean`` or ``sum`` of velocities that come faster than frames.
        observation_latency_s: how much older than its stamp a measurement is; taken off the stamp
            wherever one is read.
        name: the array's key; filled in.
    """

    topic: str = cell("")
    type: str = cell("")
    shape: tuple[int, ...] = ()
    field: str = cell("")
    names: tuple[str, ...] = ()
    quantity: Quantity = ""
    near: float = dataclasses.field(default=0.0, metadata={"min": 0.0})
    far: float = dataclasses.field(default=0.0, metadata={"min": 0.0})
    encoding: Encoding = cell("rgb8")
    rotate: Literal["0", "90", "180", "270"] = cell("0")
    flip: Literal["", "horizontal", "vertical"] = cell("")
    source_size: tuple[int, ...] = cell(())
    crop: tuple[int, ...] = ()
    resize: Literal["area", "bilinear", "none"] = "area"
    scale: tuple[float, ...] = cell(())
    max_age_s: float = cell(0.15, 0.001, 3600.0)
    frame_id: str = cell("")
    static: bool = cell(False)
    time: Literal["header", "receipt"] = cell("header")
    qos: Literal["", "reliable", "best_effort"] = cell("")
    hold_s: float = cell(0.0, 0.0, 1e6)
    combine: Literal["first", "last", "mean", "sum"] = cell("first")
    observation_latency_s: float = cell(0.0, 0.0, 10.0)
    definition: str = cell("")
    tf: Tf | None = cell(None)
    name: str = dataclasses.field(default="", metadata={"derived": True})

    @property
    def message(self) -> MessageType:
        """The message type's entry in `MESSAGE_TYPES`, or what is known of any other."""
        return MESSAGE_TYPES.get(self.type, ANY)

    @functools.cached_property
    def is_image(self) -> bool:
        """Whether it becomes a uint8 (H, W, C) array rather than a float32 vector."""
        return self.message.image

    @functools.cached_property
    def is_depth(self) -> bool:
        """Whether it becomes a picture of depth."""
        return self.is_image and (self.encoding in DEPTH_ENCODINGS or self.far > 0)

    @functools.cached_property
    def size(self) -> int:
        """Number of values."""
        return int(functools.reduce(lambda a, b: a * b, self.shape, 1))

    @property
    def goes_by_stamp(self) -> bool:
        """Whether its header's stamp says when a message is of; what is static is of any time."""
        return self.time == "header" and not self.static

    @property
    def latency_ns(self) -> int:
        """``observation_latency_s`` in whole ns."""
        return round(self.observation_latency_s * 1e9)

    def resolved(self, name: str) -> Stream:
        """The same with name, default field and derivable shape filled in."""
        if self.tf is not None and not self.topic:
            return dataclasses.replace(self, topic=TF, type=TF_MESSAGE).resolved(name)
        field_name = self.field or next(iter(self.message.fields), "")
        size = known_size(field_name, self.message.fields) or len(self.names)
        shape = self.shape or ((size,) if size else ())
        filled = dataclasses.replace(self, name=name, field=field_name, shape=shape)
        return dataclasses.replace(filled, quantity=self.quantity or _quantity(filled))

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        if self.tf is not None:
            yield from self._tf_problems()
            return
        for name in ("topic", "type"):
            if not getattr(self, name):
                yield Problem(name, "is missing", f"add '{name}:' here, or tf:")
        if not self.topic or not self.type:
            return
        if self.type == TF_MESSAGE:
            yield Problem("type", "its transforms are of several frames", "name two with tf:")
        if not TOPIC.fullmatch(self.topic):
            yield Problem(
                "topic", f"'{self.topic}' is no topic name", "write it as /camera/image_raw"
            )
        message = self.message
        if not TYPE_NAME.fullmatch(self.type):
            what = f"'{self.type}' is no message type"
            yield Problem("type", what, did_you_mean(self.type, MESSAGE_TYPES))
        elif problem := self._field_problem():
            yield problem
        else:
            yield from self._image_problems() if message.image else self._vector_problems(message)

    def _tf_problems(self) -> Iterator[Problem]:
        for key in dataclasses.fields(self):
            if key.name not in OF_TF and getattr(self, key.name) != key.default:
                yield Problem(key.name, "tf says that, or has none", "remove it")
        if self.field not in ("", "translation", "rotation"):
            cure = did_you_mean(self.field, ["translation", "rotation"])
            yield Problem("field", f"a transform has no '{self.field}'", cure)

    def _field_problem(self) -> Problem | None:
        """What is wrong with the path, as far as the message's definition need not be known."""
        known = self.message.fields
        if not self.field:
            near = did_you_mean(self.type, MESSAGE_TYPES)
            cure = near if near.startswith("did") else "write field: with its path in the message"
            what = f"what to read of {self.type} is not said"
            return None if known else Problem("type", what, cure)
        if not parsed(self.field):
            cure = "write names with dots, [2], [0:3] or [name=finger]"
            return Problem("field", f"'{self.field}' is no path into a message", cure)
        names = without_picks(self.field)
        if known and not any(_along(names, field) for field in known):
            what = f"{self.type} has no '{self.field}'"
            return Problem("field", what, did_you_mean(self.field, known))
        if known and (wrong := misled(self.field, known)):
            return Problem("field", *wrong)
        if self.names and any(step.picks for step in parsed(self.field)):
            return Problem("field", "names pick the values, too", f"write {names}, or no names")
        return None

    def _image_problems(self) -> Iterator[Problem]:
        if len(self.shape) != 3 or min(self.shape) < 1 or self.shape[-1] not in (1, 3):
            yield Problem(
                "shape", f"{list(self.shape)} is no image shape", "write [height, width, 3]"
            )
        if self.crop and (len(self.crop) != 4 or min(self.crop) < 0 or min(self.crop[2:]) < 1):
            yield Problem(
                "crop", f"{list(self.crop)} is no crop", "write [top, left, height, width]"
            )
        elif self.source_size and (len(self.source_size) != 2 or min(self.source_size) < 1):
            yield Problem(
                "source_size", f"{list(self.source_size)} is no size", "write [height, width]"
            )
        elif self.crop and self.source_size:
            top, left, height, width = self.crop
            rows, columns = self.source_size[:: 1 if self.rotate in ("0", "180") else -1]
            if top + height > rows or left + width > columns:
                what = f"{list(self.crop)} is beyond a picture of {list(self.source_size)}"
                yield Problem("crop", what, "write [top, left, height, width] within source_size")
        if self.names or (self.scale and not self.is_depth):
            yield Problem("names" if self.names else "scale", "an image has none", "remove it")
        if self.is_depth:
            yield from self._depth_problems()

    def _depth_problems(self) -> Iterator[Problem]:
        if not 0 <= self.near < self.far:
            cure = "give the range that the arm works in, as near: 0.2 and far: 1.5 (m)"
            yield Problem("far" if self.far else "encoding", "depth needs near and far", cure)
        if self.encoding not in (*DEPTH_ENCODINGS, "mono16"):
            yield Problem("encoding", f"{self.encoding} is no depth", "use 16UC1 or 32FC1")
        elif self.encoding != "32FC1" and len(self.scale) != 1:
            yield Problem("scale", "depth in whole numbers needs one", "write [0.001] for mm")
        if self.shape[-1:] != (1,):
            cure = f"write {[*self.shape[:2], 1]}"
            yield Problem("shape", "depth has one channel", cure)

    def _vector_problems(self, message: MessageType) -> Iterator[Problem]:
        size = known_size(self.field or next(iter(message.fields)), message.fields)
        certain = size and self.type in MESSAGE_TYPES
        if certain and self.shape and self.shape != (size,):
            yield Problem(
                "shape",
                f"{list(self.shape)} does not fit the field",
                f"write [{size}] or leave it out",
            )
        if not size and not self.names and (len(self.shape) != 1 or self.shape[0] < 1):
            yield Problem("shape", "the size is not known", "give names: [...] or shape: [n]")
        if self.names and self.type not in NAMED:
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
        if self.combine in ("mean", "sum") and _quantity(self.resolved("")) == "orientation":
            yield Problem("combine", f"quaternions have no {self.combine}", "use last")
        usual = {"crop": (), "source_size": (), "rotate": "0", "flip": "", "near": 0.0, "far": 0.0}
        for name, default in usual.items():
            if getattr(self, name) != default:
                yield Problem(name, "only images have one", "remove it")


def _along(path: str, field: str) -> bool:
    """Whether a path leads to a field, through it, or into it."""
    return f"{path}.".startswith(f"{field}.") or f"{field}.".startswith(f"{path}.")


def _quantity(stream: Stream) -> Quantity:
    """What a usual message's field measures; nothing of others."""
    if stream.type == "sensor_msgs/msg/JointState":
        return typing.cast(Quantity, f"joint_{without_picks(stream.field)}")
    if stream.type == "geometry_msgs/msg/AccelStamped":
        return "linear_acceleration" if stream.field.endswith("linear") else ""
    found = QUANTITIES.get(stream.field.rpartition(".")[2], "")
    return found if stream.shape == ((4,) if found == "orientation" else (3,)) else ""
