"""Draft a contract from what a bag holds, for a person to check."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_policy_ros import strict_yaml
from diffusion_policy_ros.contract import MESSAGE_TYPES, MessageType, Stream
from diffusion_policy_ros.contract.messages import DEPTH_ENCODINGS, TF_MESSAGE
from diffusion_policy_ros.data.survey import Topic
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.observe.codecs import decode, holds
from diffusion_policy_ros.observe.images import ENCODINGS, PNG
from diffusion_policy_ros.observe.paths import field_names

TRAJECTORY, ODOMETRY = "trajectory_msgs/msg/JointTrajectory", "nav_msgs/msg/Odometry"
TWISTS = ("geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped")
FASTEST_HZ = 20.0
APART_S = 1.0
"""Stamps that are farther from those of most topics are of another clock."""
POLICY_SIZES, USUAL_SIZE = (64, 84, 96, 128), 96
"""Image sizes that are left as they are, and the one that others are averaged to."""
COMMAND_WORDS = ("command", "cmd", "action", "teleop", "target", "goal", "setpoint", "leader")
TOOL_WORDS = ("eef", "tool", "tcp", "end_effector", "ee_pose", "flange", "current_pose")
"""What the pose that an arm is commanded by is called."""

CAREFUL = {
    "delta_position": "velocity: 0.25, acceleration: 1.0, lead: 0.05",
    "delta_axis_angle": "angular_velocity: 0.8, angular_acceleration: 4.0, lead_rotation: 0.3",
    "joint_position": "joint_velocity: [0.5], joint_acceleration: [2.0], joint_lead: [0.2]",
}
"""Kind of a drafted action field → limits for a slow, careful arm."""


def draft(bag: Path, topics: dict[str, Topic]) -> str:
    """The YAML of a contract; it passes the check.

    Args:
        bag: where the topics come from, for the name.
        topics: what `survey` found.

    Raises:
        UserError: the bag has nothing to observe, or nothing that can be an action.
    """
    streams: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    late = _of_another_clock(topics)
    for topic in topics.values():
        found, why = (
            ({}, "by its name a command") if is_command(topic.name) else _streams(topic, late)
        )
        left_out += [] if found else [f"{topic.name} ({topic.type}): {why}"]
        for key, stream in found.items():
            streams[unused(key, streams)] = stream
    anchor = _anchor(streams, topics)
    action = list(_action(streams, topics))
    if not anchor or not action:
        what = "nothing with stamps to observe" if not anchor else "nothing that can be an action"
        cure = "record a camera or a state, and a pose, joints or commands"
        raise UserError(f"it has {what}: {'; '.join(left_out) or 'no topics'}", str(bag), cure)
    lines = _lines(bag, streams, left_out, anchor, topics)
    return "\n".join([*lines, "action:", *action]) + "\n"


def _lines(
    bag: Path,
    streams: dict[str, dict[str, Any]],
    left_out: list[str],
    anchor: str,
    topics: dict[str, Topic],
) -> Iterator[str]:
    hz = topics[streams[anchor]["topic"]].rate_hz
    yield f"# Drafted from {bag.name}. Check every line, leave out what is not needed, then run"
    yield "#   diffusion-policy contract check FILE"
    yield f"name: {_slug(bag.stem) or 'my_robot'}"
    yield f"rate_hz: {_rate(hz):g}  # {anchor} comes at {hz:.1f} Hz"
    yield f"anchor: {anchor}"
    yield "observations:"
    for key, stream in streams.items():
        yield f"  {key}: {_flow(stream)}{_aside(stream, topics[stream['topic']])}"
    yield from (f"  # left out: {reason}" for reason in left_out)


def _of_another_clock(topics: dict[str, Topic]) -> set[str]:
    """Topics whose stamps are of no use: zero, or of another clock than most."""
    offsets = {t.name: t.offset_s for t in topics.values() if t.offset_s is not None}
    usual = float(np.median(list(offsets.values()))) if offsets else 0.0
    unset = {t.name for t in topics.values() if t.unset}
    return unset | {name for name, offset in offsets.items() if abs(offset - usual) > APART_S}


def _streams(topic: Topic, late: set[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Key → stream, of what of a topic can be read; and why nothing can."""
    if topic.first is None:
        return {}, "no messages"
    message = MESSAGE_TYPES.get(topic.type)
    if topic.type == TF_MESSAGE:
        return {}, "name two of its frames, as tf: {parent: base_link, child: tool0}"
    if topic.type == TRAJECTORY:
        return {}, "a command" if topic.first.points else "empty"
    if message is None:
        return {}, f"name a field of it by its path, as field: {_example(topic.first)}"
    base: dict[str, Any] = {"topic": topic.name, "type": topic.type}
    if topic.name in late:
        base["time"] = "receipt"
    if topic.rate_hz and 2.5 / topic.rate_hz > 0.15:
        base["max_age_s"] = round(2.5 / topic.rate_hz, 2)
    key = _slug(re.sub(r"/(image_raw|image|compressed|image_rect\w*)(?=/|$)", "", topic.name))
    try:
        found = _of_type(topic, message, key, base)
        for stream in map(_read, found.values()):
            decode(stream, next((m for m in topic.variants if holds(stream, m)), topic.first))
    except (UserErrors, UserError) as error:
        return {}, error.what
    return found, "empty"


def _of_type(
    topic: Topic, message: MessageType, key: str, base: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    if message.image:
        return {f"{key or 'camera'}_image": {**base, **_image(topic)}}
    if topic.type == "sensor_msgs/msg/JointState":
        joints = [_joints(msg) for msg in topic.variants]
        keys = [key if i == 0 else f"{key}_{i + 1}" for i in range(len(joints))]
        return {k: {**base, **found} for k, found in zip(keys, joints, strict=True) if found}
    fields = {f: size for f, size in message.fields.items() if "covariance" not in f}
    found = {}
    for field, size in fields.items():
        count = size or len(getattr(topic.first, field))
        shape = {} if size else {"shape": [count]}
        if count:
            found[f"{key}_{field.rpartition('.')[2]}"] = {**base, "field": field, **shape}
    return found


def _read(stream: dict[str, Any]) -> Stream:
    """A drafted stream as a contract reads it."""
    return strict_yaml.parse(Stream, json.dumps(stream), "draft").resolved("draft")


def _example(msg: Any) -> str:
    return next((name for name in field_names(msg) if name != "header"), "data")


def _joints(msg: Any) -> dict[str, Any]:
    """The joints that have a finite position, or else a velocity."""
    for name in ("position", "velocity"):
        values = getattr(msg, name)
        joints = [j for j, value in zip(msg.name, values, strict=False) if math.isfinite(value)]
        if joints and len(set(joints)) == len(joints):
            return {"field": name, "names": joints}
    return {}


def _image(topic: Topic) -> dict[str, Any]:
    """Encoding, size, and how to get to a size for a policy.

    Raises:
        UserError: it cannot be read.
    """
    msg, channels = topic.first, 3
    found: dict[str, Any] = {}
    try:
        if topic.type == "sensor_msgs/msg/Image":
            width, height, encoding = msg.width, msg.height, msg.encoding
        else:
            data = bytes(msg.data)
            start = data.find(PNG) if PNG in data[:16] else 0
            with Image.open(io.BytesIO(data[start:]), formats=("JPEG", "PNG")) as picture:
                (width, height), deep = picture.size, picture.mode.startswith("I")
            encoding = ("32FC1" if msg.format.startswith("32FC1") else "16UC1") if deep else ""
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"no picture can be read of it ({type(error).__name__})") from None
    if encoding and encoding not in ENCODINGS:
        raise UserError(f"its encoding {encoding[:32]!r} cannot be read")
    found |= {"encoding": encoding} if encoding else {}
    if encoding in DEPTH_ENCODINGS:
        channels = 1
        found |= {} if encoding == "32FC1" else {"scale": [0.001]}
        found |= {"near": 0.1, "far": 2.0}
    if width == height and width in POLICY_SIZES:
        return {**found, "shape": [height, width, channels], "resize": "none"}
    found["source_size"] = [height, width]
    if width != height:
        side = min(width, height)
        found["crop"] = [(height - side) // 2, (width - side) // 2, side, side]
    return {**found, "resize": "area", "shape": [USUAL_SIZE, USUAL_SIZE, channels]}


def _action(streams: dict[str, dict[str, Any]], topics: dict[str, Topic]) -> Iterator[str]:
    """Actions from the state one frame later, the pose's change or where the joints are, unless
    trajectories of these joints were recorded; else what was commanded; nothing where there is
    neither. A base that is told its speed is not moved by its odometry.
    """
    driven = any(is_command(topic.name) and topic.type in TWISTS for topic in topics.values())
    bases = {key for key, s in streams.items() if driven and s.get("type") == ODOMETRY}
    fields = _derived({key: stream for key, stream in streams.items() if key not in bases})
    if fields:
        record = list(_trajectories(topics, streams[fields[0]["state"]].get("names", [])))[:1]
    else:
        record = list(_commanded(topics, fields))
    if not fields:
        return
    yield "  fields:"
    yield from (f"    - {_flow(field)}" for field in fields)
    yield "  record:" if record else "  record: next_state"
    yield from (f"    - {_flow(stream)}" for stream in record)
    yield from _advice([field["kind"] for field in fields])
    yield from _untold(streams, fields)
    for topic in topics.values():
        if is_command(topic.name) and not record:
            yield f"  # or recorded commands, see example_arm.yaml: {topic.name} ({topic.type})"


def _derived(streams: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    likely = sorted(streams, key=lambda key: not any(word in key for word in TOOL_WORDS))
    pose = {
        field: key
        for field in ("position", "orientation", "translation", "rotation")
        for key in reversed(likely)  # of several the tool's, else the first
        if streams[key].get("field", "").endswith(f".{field}")
    }
    position = pose.get("position") or pose.get("translation")
    turn = pose.get("orientation") or pose.get("rotation")
    joints = next(
        (k for k, s in streams.items() if s.get("field") == "position" and "names" in s), ""
    )
    fields: list[dict[str, Any]] = []
    if position:
        fields.append({"name": "translation", "kind": "delta_position", "state": position})
    if turn:
        fields.append({"name": "rotation", "kind": "delta_axis_angle", "state": turn})
    if not fields and joints:
        size = len(streams[joints]["names"])
        fields.append({"name": "joints", "kind": "joint_position", "size": size, "state": joints})
    return fields


def _trajectories(topics: dict[str, Topic], joints: list[str]) -> Iterator[dict[str, Any]]:
    """Recorded commands of just these joints, in whatever order, which the names take care of."""
    for topic in topics.values():
        msg = topic.first if topic.type == TRAJECTORY else None
        if msg is not None and msg.points and sorted(msg.joint_names) == sorted(joints):
            yield {"topic": topic.name, "type": topic.type, "names": joints}


def _commanded(topics: dict[str, Topic], fields: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The recorded streams of commands that need no state; their fields are added."""
    for topic in topics.values():
        if not is_command(topic.name) or topic.first is None:
            continue
        base, name = {"topic": topic.name, "type": topic.type}, _slug(topic.name)
        if topic.type in TWISTS:
            fields.append({"name": name, "kind": "twist"})
            below = "twist." if topic.type.endswith("Stamped") else ""
            yield from ({**base, "field": f"{below}{part}"} for part in ("linear", "angular"))
        elif topic.type.endswith("MultiArray") or topic.type.startswith("std_msgs/msg/Float"):
            size = len(topic.first.data) if topic.type.endswith("MultiArray") else 1
            fields.extend({"name": f"{name}_{i}", "kind": "scalar"} for i in range(size))
            if size:
                yield {**base, **({"shape": [size]} if topic.type.endswith("MultiArray") else {})}
        elif topic.type == "std_msgs/msg/Bool":
            fields.append({"name": name, "kind": "binary", "open_value": 0, "closed_value": 1})
            yield base


def _advice(kinds: list[str]) -> Iterator[str]:
    """What a person has to look at in an action of these kinds."""
    if "joint_position" in kinds:
        yield "  # leave out joints that the arm's controller does not command, such as mimic"
        yield "  # joints and wheels: from the names above, and from size"
    if limits := [CAREFUL[kind] for kind in kinds if kind in CAREFUL]:
        yield f"  # limits: {{{', '.join(limits)}}}"


def _untold(streams: dict[str, dict[str, Any]], fields: list[dict[str, Any]]) -> Iterator[str]:
    """Joints that are seen, but that no field commands: another arm's, a gripper's."""
    if [field["kind"] for field in fields] != ["joint_position"]:
        return
    for key, stream in streams.items():
        if stream.get("field") == "position" and "names" in stream and key != fields[0]["state"]:
            yield f"  # not commanded: {key}; another arm or gripper is a field more"


def _anchor(streams: dict[str, dict[str, Any]], topics: dict[str, Topic]) -> str:
    """The slowest camera; without one, the slowest stream of those that are fast enough."""
    stamped = {k: topics[s["topic"]] for k, s in streams.items() if topics[s["topic"]].stamped}
    images = {k: t for k, t in stamped.items() if MESSAGE_TYPES[t.type].image}
    fast = {k: t for k, t in stamped.items() if t.rate_hz >= 5}
    choice = images or fast or stamped
    return min(choice, key=lambda key: choice[key].rate_hz) if choice else ""


def _rate(rate_hz: float) -> float:
    """A whole fraction of the anchor's rate, so that frames are evenly spaced."""
    whole = float(round(rate_hz)) if rate_hz > 1.5 else round(rate_hz, 1)
    return round(max(0.1, whole / max(1, math.ceil(whole / FASTEST_HZ))), 3)


def is_command(topic: str) -> bool:
    """Whether a topic is commands by its name."""
    return any(word in topic.lower() for word in COMMAND_WORDS)


def _aside(stream: dict[str, Any], topic: Topic) -> str:
    if not topic.stamped:
        return "  # has no stamps: prefer a stamped message"
    if "far" in stream:
        return "  # near and far: what the arm works in, m"
    return "  # the largest square in the middle; move it" if "crop" in stream else ""


def _flow(value: dict[str, Any]) -> str:
    """One line of YAML; words are quoted only where they must be."""
    parts = []
    for key, item in value.items():
        text = (
            json.dumps(item) if not isinstance(item, list) else f"[{', '.join(map(_word, item))}]"
        )
        parts.append(f"{key}: {_word(item) if isinstance(item, str) else text}")
    return "{" + ", ".join(parts) + "}"


def _word(item: Any) -> str:
    plain = isinstance(item, str) and re.fullmatch(r"/?[A-Za-z_][\w./-]*", item)
    reserved = str(item).lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return str(item) if plain and not reserved else json.dumps(item)


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower()


def unused(key: str, taken: Collection[str]) -> str:
    """A name for an observation that none has yet."""
    number = 2
    name = key if key not in ("action", "stamp_ns", "") else f"{key}_state"
    while name in taken:
        name, number = f"{key}_{number}", number + 1
    return name
