"""The recent messages of a topic, from which the frame rule takes (`history.py`)."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import holds

Entry = tuple[int, Any, dict[str, bool]]
"""A stamp, a message, and which streams' joints it is known to hold."""


@dataclass
class Recent:
    """The recent messages of one topic, oldest first, not yet decoded.

    Attributes:
        streams: what is read of them.
        keep_ns: how long they are kept.
        latency_ns: of their stamps.
        messages: by stamp.
        static: whether the last one holds for ever.
        by_receipt: whether they count when they were received.
        shared: whether several may publish it, each its own joints.
    """

    streams: list[Stream]
    keep_ns: int
    latency_ns: int
    messages: deque[Entry] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.static: bool = self.streams[0].static
        self.by_receipt = self.streams[0].time == "receipt"
        self.shared = any(stream.names for stream in self.streams)

    @property
    def newest_ns(self) -> int | None:
        """The newest one's stamp; None before the first."""
        return self.messages[-1][0] if self.messages else None

    def push(self, stamp: int, msg: Any) -> None:
        """Take a message that is newer than all before."""
        if self.static:
            self.messages.clear()
        self.messages.append((stamp, msg, {}))
        while self.messages[0][0] < stamp - self.keep_ns:
            self.messages.popleft()

    def insert(self, stamp: int, msg: Any) -> None:
        """Put one of another publisher among those that are newer, but for a duplicate."""
        place = len(self.messages)
        while place and self.messages[place - 1][0] > stamp:
            place -= 1
        before = (self.messages[i] for i in reversed(range(place)))
        same = itertools.takewhile(lambda entry: entry[0] == stamp, before)
        if _names(msg) not in [_names(entry[1]) for entry in same]:
            self.messages.insert(place, (stamp, msg, {}))

    def has_shown(self, time_ns: int) -> bool:
        """Whether nothing older than ``time_ns`` is still to be expected."""
        if self.static:
            return True
        if not self.messages or self.messages[-1][0] < time_ns:
            return False
        return not self.shared or all(self._has_shown(s, time_ns) for s in self.streams)

    def _has_shown(self, stream: Stream, time_ns: int) -> bool:
        for entry in reversed(self.messages):
            if entry[0] < time_ns:
                return False
            if _holds(stream, entry):
                return True
        return False

    def at(self, stream: Stream, time_ns: int) -> Entry | None:
        """The newest message with a stamp at or before ``time_ns`` that holds the stream's joints;
        the newest of all where none does.
        """
        if self.static:
            return self.messages[-1] if self.messages else None
        newest: Entry | None = None
        for entry in reversed(self.messages):
            if entry[0] <= time_ns:
                if not self.shared or _holds(stream, entry):
                    return entry
                newest = newest or entry
        return newest


def _holds(stream: Stream, entry: Entry) -> bool:
    """`holds`, looked into once."""
    _, msg, known = entry
    if stream.name not in known:
        known[stream.name] = holds(stream, msg)
    return known[stream.name]


def _names(msg: Any) -> list[str] | None:
    """The joints that a message tells of; None of one that cannot be read."""
    try:
        return list(msg.name)
    except (UserError, AttributeError):
        return None
