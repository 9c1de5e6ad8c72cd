"""Definitions of installed message types, for bags of types that are not ROS 2's own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from diffusion_policy_ros.data.definitions import name_type
from diffusion_policy_ros.ros.message_types import is_installed, message_class

BASES = {
    "boolean": "bool",
    "octet": "byte",
    "float": "float32",
    "double": "float64",
    "char": "char",
}
"""Names in a message's class → those in a ``.msg`` file, where they differ."""
_SEQUENCE = re.compile(r"sequence<(.+?)(?:, (\d+))?>")
_ARRAY = re.compile(r"(.+)\[(\d+)\]")


def name_installed(types: Iterable[str]) -> None:
    """Let bags be written and read of installed types; what is not installed has to be known."""
    for name in filter(is_installed, types):
        name_type(name, definition(name))


def definition(name: str) -> str:
    """A type's ``.msg`` text, with those of the types that it consists of."""
    parts: dict[str, str] = {}
    _collect(name, parts)
    texts = [
        text if i == 0 else f"MSG: {key}\n{text}" for i, (key, text) in enumerate(parts.items())
    ]
    return ("=" * 80 + "\n").join(texts)


def _collect(name: str, parts: dict[str, str]) -> None:
    lines, inner = [], list[str]()
    parts[name] = ""
    for field, kind in message_class(name).get_fields_and_field_types().items():
        base, suffix = _split(kind)
        if "/" in base:
            package, _, last = base.rpartition("/")
            inner.append(f"{package.partition('/')[0]}/msg/{last}")
        lines.append(f"{BASES.get(base, base)}{suffix} {field}\n")
    parts[name] = "".join(lines)
    for other in inner:
        if other not in parts:
            _collect(other, parts)


def _split(kind: str) -> tuple[str, str]:
    """What a field is of, and the brackets behind it."""
    if found := _SEQUENCE.fullmatch(kind):
        return found[1], f"[<={found[2]}]" if found[2] else "[]"
    if found := _ARRAY.fullmatch(kind):
        return found[1], f"[{found[2]}]"
    return re.sub(r"string<(\d+)>", r"string<=\1", kind), ""
