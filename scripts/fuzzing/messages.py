"""Single messages: of each type that a contract may name, damaged, as bags and nodes read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

from diffusion_policy_ros.contract import MESSAGE_TYPES, Stream
from diffusion_policy_ros.data.definitions import maker
from diffusion_policy_ros.data.mcap_file import Schema
from diffusion_policy_ros.observe.codecs import decode, stamp_ns
from fuzzing.bags import recorded
from fuzzing.damage import Source, damaged


def make_messages(_root: Path) -> list[tuple[str, bytes]]:
    """(type, bytes) of each type."""
    return sorted({kind: data for _, kind, _, data in recorded()}.items()) + _other_messages()


def _other_messages() -> list[tuple[str, bytes]]:
    """One of each other type that a contract may name."""
    store, found = get_typestore(Stores.ROS2_JAZZY), []
    known = {kind for _, kind, _, _ in recorded()}
    for kind in sorted(MESSAGE_TYPES.keys() - known):
        found.append((kind, bytes(store.serialize_cdr(_filled(store, kind), kind))))
    return found


def _filled(store: Any, kind: str) -> Any:
    """A message with something in every field."""
    plain = {"string": "base", "bool": True, "float64": 0.5, "float32": 0.5}
    arrays = {"float64": np.float64, "float32": np.float32, "uint8": np.uint8, "int32": np.int32}
    values = {}
    for name, (node, of) in store.fielddefs[kind][1]:
        if node.name == "BASE":
            values[name] = plain.get(of[0], 1)
        elif node.name == "NAME":
            values[name] = _filled(store, of)
        else:
            part = of[0][1]
            inner = part[0] if isinstance(part, tuple) else part
            dtype = arrays.get(inner)
            count = of[1] if node.name == "ARRAY" else 7
            values[name] = np.ones(count, dtype) if dtype else [_filled(store, part)]
    return store.types[kind](**values)


def damage_message(
    base: list[tuple[str, bytes]], source: Source, number: int, _folder: Path
) -> tuple[str, bytes, Source]:
    """One after the other, damaged."""
    kind, data = base[number % len(base)]
    return kind, damaged(data, source), source


def read_recorded(given: tuple[str, bytes, Source]) -> Any:
    """As a bag's message."""
    kind, data, source = given
    return _seen(kind, maker(kind, Schema("", "", ""))(memoryview(data)), source)


def read_live(given: tuple[str, bytes, Source]) -> Any:
    """As a node's message; needs rclpy."""
    from diffusion_policy_ros.ros.message_types import reader

    kind, data, source = given
    return _seen(kind, reader(kind)(memoryview(data)), source)


def _seen(kind: str, message: Any, source: Source) -> Any:
    """Through the stream that it is a message of, whatever the contract says of it."""
    stamp = stamp_ns(message)
    about = MESSAGE_TYPES[kind]
    field = source.choice(list(about.fields))
    shape = (8, 8, 3) if about.image else (about.fields[field] or 7,)
    if kind == "sensor_msgs/msg/JointState":
        shape = (2,)
    stream = Stream("/topic", kind, shape, "" if about.image else field, name="stream")
    return stamp, decode(stream, message).shape
