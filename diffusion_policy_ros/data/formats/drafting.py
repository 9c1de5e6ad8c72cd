"""Draft a contract from what a foreign dataset tells of itself, for a person to check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusion_policy_ros.data.draft import unused
from diffusion_policy_ros.data.formats.demonstrations import Column, Foreign
from diffusion_policy_ros.data.formats.naming import plain
from diffusion_policy_ros.errors import UserError

USUAL_SIZE, SMALL = 96, 128
"""The size that pictures are averaged to, and the largest that are left as they are."""


def draft(foreign: Foreign) -> str:
    """The YAML of a contract that passes the check and matches the dataset.

    Raises:
        UserError: it has no vector and no picture, or no action.
    """
    observed = {n: c for n, c in foreign.columns.items() if not re.match(r"actions?$|next\.", n)}
    action = next(
        (foreign.columns[n] for n in ("action", "actions") if n in foreign.columns), None
    )
    if not observed or action is None:
        what = f"has no {'action' if observed else 'observation'}"
        raise UserError(what, foreign.where, "write a contract, with record: next_state")
    rate = foreign.rate_hz
    name = re.sub(r"\W+", "_", Path(foreign.where).resolve().name).strip("_").lower()
    lines = [
        f"# Drafted from {Path(foreign.where).name}, which says neither topics nor units. Check",
        "# every line that ends in a question mark, then run",
        "#   diffusion-policy contract check FILE",
        f"name: {name or 'my_robot'}",
        f"rate_hz: {rate or 10:g}" + ("" if rate else "  # how many frames a second?"),
    ]
    streams = _streams(observed)
    pictures = [key for key, (stream, _) in streams.items() if "Image" in stream]
    lines += [f"anchor: {(pictures or list(streams))[0]}", "observations:"]
    lines += [f"  {key}: {stream}  # {asked}" for key, (stream, asked) in streams.items()]
    return "\n".join([*lines, *_action(action, observed, streams)]) + "\n"


def _streams(columns: dict[str, Column]) -> dict[str, tuple[str, str]]:
    """Key → stream in one line, and what to check of it; in the columns' order."""
    found: dict[str, tuple[str, str]] = {}
    for name, column in columns.items():
        slug = re.sub(r"\W+", "_", plain(name)).strip("_") or "state"
        key = unused(f"{slug}_image" if column.is_image else slug, found)
        # Of a type with stamps, for frames are anchored to one.
        said = "type: sensor_msgs/msg/JointState, field: position"
        if column.is_image:
            topic = f"{_topic(key.removesuffix('_image'))}/image_raw"
            found[key] = _picture(topic, column.shape), "topic? encoding? size?"
        elif column.names:
            joints = [re.sub(r"\.(pos|position)$", "", n) for n in column.names]
            asked = "topic? joints? degrees need scale: [0.0174533]"
            found[key] = f"{{topic: /joint_states, {said}, names: {_flow(joints)}}}", asked
        else:
            stream = f"{{topic: {_topic(key)}, {said}, shape: [{column.shape[0]}]}}"
            found[key] = stream, "topic? type? units?"
    return found


def _topic(key: str) -> str:
    """ROS takes neither other letters than English ones nor a number at the front."""
    name = re.sub(r"\W", "_", key, flags=re.ASCII)
    return f"/{name}" if name[0].isalpha() else f"/observed_{name}"


def _picture(topic: str, shape: Sequence[int]) -> str:
    height, width = shape[:2] if len(shape) == 3 and shape[2] in (1, 3) else (0, 0)
    said = f"topic: {topic}, type: sensor_msgs/msg/Image"
    if 0 < height <= SMALL and 0 < width <= SMALL:
        return f"{{{said}, shape: [{height}, {width}, 3], resize: none}}"
    side, crop = min(height, width), ""
    if height != width:
        crop = f", crop: [{(height - side) // 2}, {(width - side) // 2}, {side}, {side}]"
    size = f"source_size: [{height}, {width}]{crop}, " if side else ""
    return f"{{{said}, {size}resize: area, shape: [{USUAL_SIZE}, {USUAL_SIZE}, 3]}}"


def _action(action: Column, observed: dict[str, Column], streams: dict[str, Any]) -> Iterator[str]:
    """Joints, where the action's names are those of observed joints; else plain numbers."""
    size = action.shape[0]
    yield "action:"
    yield "  fields:"
    same = [k for k, c in zip(streams, observed.values(), strict=True) if c.names == action.names]
    if action.names and same:
        joints = [re.sub(r"\.(pos|position)$", "", n) for n in action.names]
        yield f"    - {{name: joints, kind: joint_position, size: {size}, state: {same[0]}}}"
        yield "  record:"
        said = f"type: sensor_msgs/msg/JointState, field: position, names: {_flow(joints)}"
        yield f"    - {{topic: /joint_commands, {said}}}  # topic? degrees?"
        return
    fields: list[str] = []
    for name in action.names or [f"action_{i}" for i in range(size)]:
        fields.append(unused(re.sub(r"[^A-Za-z0-9_]+", "_", name), fields))
        yield f"    - {{name: {_word(fields[-1])}, kind: scalar}}  # kind?"
    yield "  record:"
    said = f"type: std_msgs/msg/Float64MultiArray, shape: [{size}]"
    yield f"    - {{topic: /command, {said}}}  # topic?"


def _flow(names: Sequence[str]) -> str:
    return f"[{', '.join(map(_word, names))}]"


def _word(name: str) -> str:
    plain_word = re.fullmatch(r"[A-Za-z_][\w./-]*", name)
    reserved = name.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return name if plain_word and not reserved else json.dumps(name)
