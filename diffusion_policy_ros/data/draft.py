"""Draft a contract from what a bag holds, for a person to check."""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_policy_ros.contract import MESSAGE_TYPES
from diffusion_policy_ros.data.survey import Topic
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.images import ENCODINGS

FASTEST_HZ = 20.0
POLICY_SIZES, USUAL_SIZE = (64, 84, 96, 128), 96
"""Image sizes that are left as they are, and the one that others are averaged to."""
READABLE = f"types that can be read: {', '.join(MESSAGE_TYPES)}"
COMMAND_WORDS = ("command", "cmd", "action", "teleop", "target", "goal", "setpoint", "leader")

CAREFUL = {
    "delta_position": "velocity: 0.25, acceleration: 1.0, lead: 0.05",
    "delta_axis_angle": "angular_velocity: 0.8, angular_acceleration: 4.0, lead_rotation: 0.3",
    "joint_position": "joint_velocity: [0.5], joint_acceleration: [2.0], joint_lead: [0.2]",
}
"""Kind of a drafted action field → limits for a slow, careful arm."""


def draft(bag: Path, topics: dict[str, Topic]) -> str:
    """The YAML of a contract; it passes the check where the bag has a state to act on.

    Args:
        bag: where the topics come from, for the name.
        topics: what `survey` found.
    """
    streams: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    for topic in topics.values():
        found = {} if _is_command(topic) else _streams(topic)
        left_out += [] if found else [_why_not(topic)]
        for key, stream in found.items():
            streams[_unused(key, streams)] = stream
    anchor = _anchor(streams, topics)
    rate = _rate(topics[streams[anchor]["topic"]].rate_hz) if anchor else 10.0
    return "\n".join(_lines(bag, streams, left_out, anchor, rate, topics)) + "\n"


def _lines(
    bag: Path,
    streams: dict[str, dict[str, Any]],
    left_out: list[str],
    anchor: str,
    rate: float,
    topics: dict[str, Topic],
) -> Iterator[str]:
    yield f"# Drafted from {bag.name}. Check every line, leave out what is not needed, then run"
    yield "#   diffusion-policy contract check FILE"
    yield f"name: {_slug(bag.stem) or 'my_robot'}"
    if anchor:
        hz = topics[streams[anchor]["topic"]].rate_hz
        yield f"rate_hz: {rate:g}  # {anchor} comes at {hz:.1f} Hz"
    else:
        yield "rate_hz: 10"
    yield f"anchor: {anchor or 'NAME_AN_OBSERVATION'}"
    yield (
        "observations:" if streams else "observations: {}  # nothing in the bag can be read as one"
    )
    for key, stream in streams.items():
        yield f"  {key}: {_flow(stream)}{_aside(stream, topics[stream['topic']])}"
    yield from (f"  # left out: {reason}" for reason in left_out)
    if any(reason.endswith("cannot be read") for reason in left_out):
        yield from (f"  # {line}" for line in textwrap.wrap(READABLE, 96))
    yield "action:"
    yield from _action(streams)
    yield "  # or recorded commands: record: {topic: ..., type: ...}, see example_arm.yaml"


def _streams(topic: Topic) -> dict[str, dict[str, Any]]:
    """Key → stream, of a topic that the contract can read."""
    message = MESSAGE_TYPES.get(topic.type)
    if message is None or topic.first is None:
        return {}
    base: dict[str, Any] = {"topic": topic.name, "type": topic.type}
    key = _slug(re.sub(r"/(image_raw|image|compressed|image_rect\w*)(?=/|$)", "", topic.name))
    if message.image:
        image = _image(topic)
        return {f"{key or 'camera'}_image": {**base, **image}} if image else {}
    if topic.rate_hz and 2.5 / topic.rate_hz > 0.15:
        base["max_age_s"] = round(2.5 / topic.rate_hz, 2)
    if topic.type == "sensor_msgs/msg/JointState":
        joints = _joints(topic.first)
        return {key: {**base, **joints}} if joints else {}
    if topic.type.endswith("MultiArray"):
        return {key: {**base, "shape": [len(topic.first.data)]}} if len(topic.first.data) else {}
    fields = [f for f, size in message.fields.items() if size]
    return {f"{key}_{f.rpartition('.')[2]}": {**base, "field": f} for f in fields}


def _joints(msg: Any) -> dict[str, Any]:
    """The joints that have a finite position, or else a velocity."""
    for name in ("position", "velocity"):
        values = getattr(msg, name)
        joints = [j for j, value in zip(msg.name, values, strict=False) if math.isfinite(value)]
        if joints and len(set(joints)) == len(joints):
            return {"field": name, "names": joints}
    return {}


def _image(topic: Topic) -> dict[str, Any]:
    """Encoding, size, and how to get to a size for a policy; nothing for what cannot be read."""
    msg = topic.first
    found: dict[str, Any] = {}
    try:
        if topic.type == "sensor_msgs/msg/Image":
            width, height = msg.width, msg.height
            if msg.encoding not in ENCODINGS:
                return {}
            found["encoding"] = msg.encoding
        else:
            width, height = Image.open(io.BytesIO(bytes(msg.data)), formats=("JPEG", "PNG")).size
    except (UserError, OSError, SyntaxError, ValueError):
        return {}
    if width == height and width in POLICY_SIZES:
        return {**found, "shape": [height, width, 3], "resize": "none"}
    found["source_size"] = [height, width]
    if width != height:
        side = min(width, height)
        found["crop"] = [(height - side) // 2, (width - side) // 2, side, side]
    return {**found, "resize": "area", "shape": [USUAL_SIZE, USUAL_SIZE, 3]}


def _action(streams: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Actions from the state one frame later: the pose's change, or where the joints are."""
    pose = {
        field: key
        for field in ("position", "orientation", "translation", "rotation")
        for key, stream in streams.items()
        if stream.get("field", "").endswith(f".{field}")
    }
    position = pose.get("position") or pose.get("translation")
    turn = pose.get("orientation") or pose.get("rotation")
    joints = next((k for k, s in streams.items() if s.get("field") == "position"), "")
    fields: list[dict[str, Any]] = []
    if position:
        fields.append({"name": "translation", "kind": "delta_position", "state": position})
    if turn:
        fields.append({"name": "rotation", "kind": "delta_axis_angle", "state": turn})
    if not fields and joints:
        size = len(streams[joints]["names"])
        fields.append({"name": "joints", "kind": "joint_position", "size": size, "state": joints})
    yield (
        "  fields:" if fields else "  fields: []  # the bag has neither a pose nor joint positions"
    )
    yield from (f"    - {_flow(field)}" for field in fields)
    yield "  record: next_state"
    yield from _advice([field["kind"] for field in fields])


def _advice(kinds: list[str]) -> Iterator[str]:
    """What a person has to look at in an action of these kinds."""
    if "joint_position" in kinds:
        yield "  # leave out joints that the arm's controller does not command, such as mimic"
        yield "  # joints and wheels: from the names above, and from size"
    if limits := [CAREFUL[kind] for kind in kinds if kind in CAREFUL]:
        yield f"  # limits: {{{', '.join(limits)}}}"


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


def _is_command(topic: Topic) -> bool:
    return any(word in topic.name.lower() for word in COMMAND_WORDS)


def _why_not(topic: Topic) -> str:
    if _is_command(topic) and topic.type in MESSAGE_TYPES:
        return f"{topic.name} ({topic.type}), by its name a command: for action.record"
    if topic.type in MESSAGE_TYPES:
        return f"{topic.name} ({topic.type}): empty, or of an encoding that cannot be read"
    return f"{topic.name}: {topic.type} cannot be read"


def _aside(stream: dict[str, Any], topic: Topic) -> str:
    if not topic.stamped:
        return "  # has no stamps: prefer a stamped message"
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


def _unused(key: str, taken: dict[str, Any]) -> str:
    number = 2
    name = key if key not in ("action", "stamp_ns", "") else f"{key}_state"
    while name in taken:
        name, number = f"{key}_{number}", number + 1
    return name
