"""The frame rule and the sliding window.

Time is the header stamp, never the time of receipt. A frame is due at the first anchor message
whose stamp reaches the next point of the ``1 / rate_hz`` grid, and has that stamp as its time.
Every other stream contributes its newest message with a stamp at or before the frame's time among
those that arrived before the frame closed. A frame closes when every stream has shown a stamp at
or after its time, or ``settle_s`` after the anchor arrived.

A stamp here is when something was measured: the header's, less the stream's
``observation_latency_s``. It is taken off in `History.push` and nowhere else on the way of
observations, so that frames, chunks and the actions of a dataset all have the corrected time.

Several nodes may publish a topic whose streams name joints, as an arm's and a gripper's driver do:
each stream takes the newest message that holds its joints. A static stream is what was last heard
of it, whenever that was.

The converter pushes recorded messages through this class in recorded arrival order, the node
pushes live ones: so the same messages in the same order give the same windows. Nothing here reads
a clock.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.contract.messages import TF, TF_STATIC
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array, DecodeError, decode, holds, stamp_ns
from diffusion_policy_ros.observe.recent import Recent
from diffusion_policy_ros.observe.transforms import Transforms

EARLY = 0.25
"""How much of a period an anchor may come before its grid point: cameras jitter."""
FOLLOW = 0.1
"""How much of an anchor's offset the grid takes over: a 20.1 Hz camera then loses no frame."""
GAP = 1.5
"""Periods without a frame after which the window starts anew."""
KEEP_NS = 1_000_000_000
"""How long messages are kept beyond ``max_age_s``: streams arrive with different delays."""


@dataclass(frozen=True)
class Frame:
    """One synchronised set of observations.

    Attributes:
        time_ns: the anchor's stamp.
        arrays: observation key → uint8 (H, W, C) or float32 (n,).
        ages_ns: observation key → how much older than the frame its message is.
        first: whether the window starts anew here.
        arrived_ns: when the anchor arrived.
    """

    time_ns: int
    arrays: dict[str, Array]
    ages_ns: dict[str, int]
    first: bool
    arrived_ns: int = 0


class Refused(NamedTuple):
    """A frame that could not be made: of which stream, and why."""

    time_ns: int
    key: str
    reason: str


class Reset(NamedTuple):
    """History was dropped: a stamp ran backwards."""

    time_ns: int
    reason: str


Event = Frame | Refused | Reset


class _Pending(NamedTuple):
    time_ns: int
    arrival_ns: int


class History:
    """Makes frames of messages, and windows of frames.

    Args:
        contract: the robot.
        n_obs_steps: To, the frames of a window.

    Attributes:
        known_ns: times of frames of another run, which a replay follows: its grid is theirs, as
            of a camera of twice the rate either half of the pictures may be a run's.
    """

    def __init__(self, contract: Contract, n_obs_steps: int) -> None:
        self.contract = contract
        self.known_ns: Collection[int] = ()
        self.frames: deque[Frame] = deque(maxlen=n_obs_steps)
        self._period = contract.period_ns
        self._settle = round(contract.settle_s * 1e9)
        self._anchor = contract.observations[contract.anchor]
        self._topics = {
            topic: Recent(
                streams,
                KEEP_NS + round(max(s.max_age_s for s in streams) * 1e9),
                streams[0].latency_ns,
            )
            for topic, streams in contract.topics.items()
            if streams[0].tf is None
        }
        self._tf_streams = [s for s in contract.observations.values() if s.tf is not None]
        self._tf = Transforms()
        self.reset()

    def reset(self) -> None:
        """Forget everything but what is static, as at the start."""
        for topic in self._topics.values():
            if not topic.static:
                topic.messages.clear()
        self._tf.clear()
        self.frames.clear()
        self._pending: deque[_Pending] = deque()
        self._ready: dict[str, tuple[Any, Array]] = {}
        self._due_ns: float | None = None
        self._anchor_came = False
        self._last_ns: int | None = None

    def push(
        self, topic: str, msg: Any, arrival_ns: int, received_ns: int | None = None
    ) -> list[Event]:
        """Take a message.

        Args:
            topic: the topic, as the contract names it.
            msg: the message.
            arrival_ns: when it arrived, by the recorder's clock or one that never stands still;
                only differences matter.
            received_ns: the stamp of a message whose type has no header, or whose stamp is of no
                use: when it arrived, by the clock that the others are stamped by; arrival_ns
                where not given.

        Returns:
            What came of it: frames that closed, frames that were refused, a reset.
        """
        events = self.poll(arrival_ns)
        if self._tf_streams and topic in (TF, TF_STATIC):
            self._tf.push(topic, msg)
            return events + self._close(arrival_ns)
        entry = self._topics[topic]
        stamp = None if entry.by_receipt else stamp_ns(msg)
        if stamp is None:
            stamp = arrival_ns if received_ns is None else received_ns
        stamp -= entry.latency_ns
        newest, put = None if entry.static else entry.newest_ns, entry.push
        if newest is not None and stamp <= newest:
            if entry.shared and stamp >= newest - KEEP_NS:
                put = entry.insert  # of a driver of other joints
            elif stamp >= newest - self._period:
                return events  # a duplicate, or two messages that overtook each other
            else:
                self.reset()
                back = (newest - stamp) / 1e9
                reason = f"stamps of {topic} ran {back:.3f} s backwards; started anew"
                events.append(Reset(stamp, reason))
        put(stamp, msg)
        if topic == self._anchor.topic and self._is_due(stamp, msg):
            self._pending.append(_Pending(stamp, arrival_ns))
        return events + self._close(arrival_ns)

    def poll(self, now_ns: int) -> list[Event]:
        """Close frames whose ``settle_s`` has passed by the clock of ``arrival_ns``."""
        settles = self.settles_ns
        return [] if settles is None or now_ns < settles else self._close(now_ns)

    @property
    def settles_ns(self) -> int | None:
        """When to `poll`, for a frame that waits for the other streams; None where none does."""
        return self._pending[0].arrival_ns + self._settle if self._pending else None

    def window(self) -> dict[str, Array] | None:
        """The last To frames, key → (To, ...); one not yet full repeats its first frame."""
        if not self.frames:
            return None
        missing = (self.frames.maxlen or 1) - len(self.frames)
        frames = [self.frames[0]] * missing + list(self.frames)
        return {
            key: np.array([frame.arrays[key] for frame in frames])
            for key in self.contract.observations
        }

    def message(self, key: str, frame: Frame) -> Any:
        """What a frame that has just closed has an observation from; None once it is forgotten."""
        topic = self._topics[self.contract.observations[key].topic]
        wanted = frame.time_ns - frame.ages_ns[key]
        fitting = (msg for stamp, msg, _ in reversed(topic.messages) if stamp == wanted)
        return None if topic.static else next(fitting, None)

    def newest_stamps(self) -> dict[str, int | None]:
        """Topic → stamp of its newest message; None before the first."""
        return {name: topic.newest_ns for name, topic in self._topics.items()}

    def _is_due(self, stamp: int, msg: Any) -> bool:
        """Whether the anchor's stamp reaches the grid's next point; moves the grid on."""
        period = self._period
        offset = 0.0 if self._due_ns is None else stamp - self._due_ns
        if offset < -EARLY * period:
            if stamp not in self.known_ns:
                return False
            self._due_ns, offset = None, 0.0
        if holds(self._anchor, msg):
            self._anchor_came = True
        elif self._anchor_came:
            return False  # of a driver of other joints; before, frames are refused by name
        if self._due_ns is None or offset > GAP * period:
            self._due_ns = float(stamp + period)
            return True
        self._due_ns += period + FOLLOW * offset
        return True

    def _close(self, now_ns: int) -> list[Event]:
        events: list[Event] = []
        while self._pending and self._is_complete(self._pending[0], now_ns):
            events.append(self._make(*self._pending.popleft()))
        if self._pending:
            self._prepare(self._pending[0].time_ns)
        return events

    def _prepare(self, time_ns: int) -> None:
        """Decode what the next frame will have, while it waits for other streams."""
        for topic in self._topics.values():
            if not topic.messages or topic.messages[-1][0] < time_ns:
                continue
            for stream in topic.streams:
                if stream.name in self._ready:
                    continue
                if (found := topic.at(stream, time_ns)) is not None:
                    with contextlib.suppress(DecodeError):
                        self._ready[stream.name] = (found[1], decode(stream, found[1]))

    def _decoded(self, stream: Stream, msg: Any) -> Array:
        prepared, array = self._ready.pop(stream.name, (None, None))
        return decode(stream, msg) if array is None or prepared is not msg else array

    def _is_complete(self, pending: _Pending, now_ns: int) -> bool:
        if now_ns - pending.arrival_ns >= self._settle:
            return True
        for topic in self._topics.values():
            if not topic.has_shown(pending.time_ns):
                return False
        for stream in self._tf_streams:
            wanted = _stamped(stream, pending.time_ns)
            newest = self._tf.newest_ns(stream, wanted)
            if newest is None or newest < wanted:
                return False
        return True

    def _make(self, time_ns: int, arrived_ns: int) -> Event:
        arrays: dict[str, Array] = {}
        ages: dict[str, int] = {}
        for topic in self._topics.values():
            for stream in topic.streams:
                found = topic.at(stream, time_ns)
                late = _too_old(stream, found, time_ns)
                if late or found is None:
                    return Refused(time_ns, stream.name, late)
                try:
                    arrays[stream.name] = self._decoded(stream, found[1])
                except DecodeError as error:
                    return Refused(time_ns, stream.name, str(error))
                ages[stream.name] = 0 if topic.static else time_ns - found[0]
        for stream in self._tf_streams:
            try:
                value, age = self._tf.at(stream, _stamped(stream, time_ns))
            except UserError as error:
                return Refused(time_ns, stream.name, f"{stream.name} ({stream.topic}): {error}")
            if late := _too_old(stream, (time_ns - age, None), time_ns):
                return Refused(time_ns, stream.name, late)
            arrays[stream.name], ages[stream.name] = value, age
        ordered = {key: arrays[key] for key in self.contract.observations}
        return self._append(time_ns, ordered, ages, arrived_ns)

    def _append(
        self, time_ns: int, arrays: dict[str, Array], ages: dict[str, int], arrived_ns: int
    ) -> Frame:
        first = self._last_ns is None or time_ns - self._last_ns > GAP * self._period
        if first:
            self.frames.clear()
        frame = Frame(time_ns, arrays, ages, first, arrived_ns)
        self.frames.append(frame)
        self._last_ns = time_ns
        return frame


def _stamped(stream: Stream, time_ns: int) -> int:
    """The stamp of a transform that was measured at a time."""
    return time_ns + stream.latency_ns


def _too_old(stream: Stream, found: Sequence[Any] | None, time_ns: int) -> str:
    if found is None:
        return f"{stream.name} ({stream.topic}): no message at or before the frame"
    age = (time_ns - found[0]) / 1e9
    if stream.static or age <= stream.max_age_s:
        return ""
    where, allowed = (
        f"{stream.name} ({stream.topic})",
        f"the contract allows {stream.max_age_s:g} s",
    )
    return f"{where}: newest message is {age:.3f} s old, {allowed}"
