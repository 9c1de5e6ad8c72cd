"""A message that is decoded only when somebody looks into it, recorded or just come.

A camera at 30 Hz and a pose at 500 Hz make 530 messages a second, of which 20 Hz frames use 40.
What the frame rule needs of all the others is the stamp, and that stands in a fixed place of the
bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from diffusion_policy_ros.errors import UserError

_LITTLE, _BIG = struct.Struct("<iI"), struct.Struct(">iI")
_LITTLE_U32, _BIG_U32 = struct.Struct("<I"), struct.Struct(">I")
ENCAPSULATION = 4
"""Bytes of the CDR encapsulation; the second says whether what follows is little-endian."""


class SerializedMessage:
    """Serialized bytes that look like the message; decoded at the first look at an attribute.

    Args:
        decode: bytes → its fields; raises UserError for bytes that are no message of the type.
        raw: CDR with its encapsulation.
    """

    header: Any = None

    def __init__(self, decode: Callable[[memoryview], dict[str, Any]], raw: memoryview) -> None:
        self._decode, self._raw = decode, raw

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there yet: after this, fields are plain attributes.
        if name.startswith("_"):
            raise AttributeError(name)
        fields = self._decode(self._raw)
        self.__dict__.update(fields)
        if name not in fields:
            raise AttributeError(name)
        return fields[name]


class StampedMessage(SerializedMessage):
    """A type that begins with a ``std_msgs/Header``: its stamp is read without decoding."""

    @property
    def header(self) -> Header:
        """The header, of which the stamp is read."""
        raw = self._raw
        try:
            sec, nanosec = (_LITTLE if raw[1] & 1 else _BIG).unpack_from(raw, ENCAPSULATION)
        except (struct.error, IndexError):
            raise _headless(raw) from None
        return Header(sec, nanosec, raw)


class Header:
    """A header that is its own stamp."""

    __slots__ = ("_raw", "nanosec", "sec")

    def __init__(self, sec: int, nanosec: int, raw: memoryview) -> None:
        self.sec, self.nanosec, self._raw = sec, nanosec, raw

    @property
    def stamp(self) -> Header:
        """What has ``sec`` and ``nanosec``."""
        return self

    @property
    def frame_id(self) -> str:
        """The tf frame."""
        start, raw = ENCAPSULATION + 12, self._raw
        try:
            (length,) = (_LITTLE_U32 if raw[1] & 1 else _BIG_U32).unpack_from(raw, start - 4)
        except struct.error:
            raise _headless(raw) from None
        return bytes(raw[start : start + length]).rstrip(b"\0").decode("utf-8", "replace")


def _headless(raw: memoryview) -> UserError:
    return UserError(f"a message of {len(raw)} bytes has no header", "", "it is damaged")
