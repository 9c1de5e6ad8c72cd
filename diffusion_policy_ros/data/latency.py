"""How late measurements and motions are, estimated from recordings.

A robot that obeys moves as it was told, only later: the velocity that was commanded and the one
that was measured correlate best when one is moved by `actuation latency + observation latency`.
Likewise two streams that see the same motion are apart by the difference of their observation
latencies. Only sums and differences can be seen, so the earliest stream's stamps are taken for
true: its observation latency is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import ROTATION_KINDS, ActionField, Contract, Stream
from diffusion_policy_ros.contract.check import recorded
from diffusion_policy_ros.data.actions import closed
from diffusion_policy_ros.data.bags import Bag
from diffusion_policy_ros.data.lags import Lag, Track, lag_between
from diffusion_policy_ros.observe.codecs import DecodeError, decode, stamp_ns
from diffusion_policy_ros.observe.receipt import ReceiptClock
from diffusion_policy_ros.policy.rotations import TO_QUATERNION, delta_between

Floats = NDArray[np.float64]

PIXELS = 32
"""Rows and columns of an image that are looked at."""
BETWEEN_S = 10.0
"""Between two recordings, when several are put after each other."""
SAME_CLOCK_S = 60.0
"""Stamps and log times farther apart are of different clocks."""
DIAGNOSTICS = "/diagnostics"


@dataclass(frozen=True)
class FieldLatency:
    """Of a part of the action: its command against the state that follows.

    Attributes:
        field: its name.
        state: the observation that follows it; empty where there is none to compare with.
        lag: from the command to the measured motion.
        actuation_s: the same without the state's observation latency, as far as that is known.
    """

    field: str
    state: str
    lag: Lag
    actuation_s: float | None = None


@dataclass(frozen=True)
class TopicLatency:
    """Of an observed topic: against the stream that the others are compared with.

    Attributes:
        topic: its name.
        stream: the one of its streams that was compared.
        lag: behind the reference.
        observation_s: behind the earliest of all.
        delivery_ms: from stamp to arrival at the recorder: median and 99 %; None where these are
            different clocks.
    """

    topic: str
    stream: str
    lag: Lag
    observation_s: float | None = None
    delivery_ms: tuple[float, float] | None = None


@dataclass(frozen=True)
class Latencies:
    """What recordings say.

    Attributes:
        reference: the observation that the others are compared with; empty where nothing moves.
        fields: one for each part of the action.
        topics: one for each observed topic.
    """

    reference: str
    fields: list[FieldLatency]
    topics: list[TopicLatency]


def estimate(bags: Sequence[Bag], contract: Contract) -> Latencies:
    """Estimate all latencies of a robot from its recordings.

    Args:
        bags: at least one.
        contract: names topics and actions; the latencies in it are not looked at.

    Raises:
        UserError: a bag is damaged.
    """
    seen = _Recordings(bags, contract)
    fields = [_follower(seen, part) for part in contract.action.fields]
    reference = max(fields, key=lambda f: (f.lag.seconds is not None, f.lag.correlation)).state
    reference = reference or next(_vectors(contract), "")
    asked = [topic for topic, streams in contract.topics.items() if not streams[0].static]
    topics = _zeroed([_against(seen, reference, topic) for topic in asked])
    observed = {t.topic: t.observation_s or 0.0 for t in topics}
    return Latencies(reference, [_actuation(f, contract, observed) for f in fields], topics)


def _follower(seen: _Recordings, part: ActionField) -> FieldLatency:
    """The command against its state; where the contract names none, what agrees with it best."""
    command = seen.command(part)
    if command is None:
        why = (
            "no command was recorded: the contract derives actions from states"
            if not seen.contract.action.commands
            else "its command is in several streams"
        )
        return FieldLatency(part.name, part.state, Lag(None, why=why))
    named = {other.state for other in seen.contract.action.fields}
    free = [key for key in _vectors(seen.contract) if key not in named]
    found = [
        FieldLatency(part.name, key, seen.follow(command, key))
        for key in ([part.state] if part.state else free)
    ]
    nothing = FieldLatency(part.name, "", Lag(None, why="no observation measures it"))
    return max(found, key=_certainty, default=nothing)


def _vectors(contract: Contract) -> Iterator[str]:
    """Observations that can be compared: no pictures, and nothing that just stands."""
    return (k for k, s in contract.observations.items() if not (s.is_image or s.static))


def _certainty(found: FieldLatency | TopicLatency) -> tuple[bool, float]:
    return found.lag.seconds is not None, found.lag.correlation


def _against(seen: _Recordings, reference: str, topic: str) -> TopicLatency:
    delivery = seen.delivery_ms(topic)
    keys = [stream.name for stream in seen.contract.topics[topic]]
    if reference in keys:
        return TopicLatency(topic, reference, Lag(0.0, 1.0, 1.0), None, delivery)
    if seen.contract.topics[topic][0].tf:
        return TopicLatency(topic, keys[0], Lag(None, why="tf is not looked at"), None, delivery)
    nothing = Lag(None, why="there is no vector to compare with")
    found = [
        TopicLatency(topic, key, seen.beside(reference, key) if reference else nothing)
        for key in keys
    ]
    return replace(max(found, key=_certainty), delivery_ms=delivery)


def _zeroed(topics: list[TopicLatency]) -> list[TopicLatency]:
    """With the earliest's observation latency zero."""
    known = [t.lag.seconds for t in topics if t.lag.seconds is not None]
    return [
        t
        if t.lag.seconds is None
        else replace(t, observation_s=t.lag.seconds - min(known, default=0.0))
        for t in topics
    ]


def _actuation(
    found: FieldLatency, contract: Contract, observed: dict[str, float]
) -> FieldLatency:
    if found.lag.seconds is None:
        return found
    own = found.lag.seconds - observed[contract.observations[found.state].topic]
    if own < 0:
        why = f"it moves {-own:.3f} s before it is told to: commands are stamped late"
        return replace(found, lag=replace(found.lag, seconds=None, why=why))
    return replace(found, actuation_s=own)


class _Recordings:
    """The messages of the contracted streams, as tracks; one bag after the other."""

    def __init__(self, bags: Sequence[Bag], contract: Contract) -> None:
        self.contract, self._period_s = contract, contract.period_ns / 1e9
        self._wanted: dict[str, list[Stream]] = {}
        for stream in (*contract.observations.values(), *contract.action.commands):
            self._wanted.setdefault(stream.topic, []).append(stream)
        self._found: dict[str, list[tuple[float, Floats]]] = {
            stream.name: [] for streams in self._wanted.values() for stream in streams
        }
        self._delays_s: dict[str, list[float]] = {topic: [] for topic in contract.topics}
        end_s = 0.0
        for bag in bags:
            end_s = self._read(bag, end_s + BETWEEN_S)

    def _read(self, bag: Bag, begin_s: float) -> float:
        """Put a bag's messages from a time on; returns when they end."""
        first_ns, end_s, clock = None, begin_s, ReceiptClock(self.contract)
        for topic, log_ns, msg in bag.messages(self._wanted):
            by_receipt = self._wanted[topic][0].time == "receipt"
            stamp = None if by_receipt else stamp_ns(msg) or None  # commands' are often zero
            clock.note(topic, stamp, log_ns)
            time_ns = clock.at(log_ns) if stamp is None else stamp
            first_ns = time_ns if first_ns is None else first_ns
            if topic in self._delays_s and stamp is not None:
                self._delays_s[topic].append((log_ns - stamp) / 1e9)
            time_s = begin_s + (time_ns - first_ns) / 1e9
            end_s = max(end_s, time_s)
            for stream in self._wanted[topic]:
                self._take(stream, time_s, msg)
        return end_s

    def _take(self, stream: Stream, time_s: float, msg: Any) -> None:
        try:
            value = decode(stream, msg)
        except DecodeError:
            return
        if stream.is_image:
            rows, columns = (max(1, n // PIXELS) for n in value.shape[:2])
            value = value[::rows, ::columns].reshape(-1)
        self._found[stream.name].append((time_s, value.astype(np.float32)))

    def _rows(self, name: str) -> tuple[Floats, Floats]:
        """Increasing times, and values (n, d)."""
        found = sorted(self._found[name], key=lambda entry: entry[0])
        kept = [entry for i, entry in enumerate(found) if not i or entry[0] > found[i - 1][0]]
        return np.array([time_s for time_s, _ in kept]), np.array([value for _, value in kept])

    def delivery_ms(self, topic: str) -> tuple[float, float] | None:
        """Median and 99 %; None without stamps, or with those of another clock."""
        delays = np.array(self._delays_s[topic])
        if not len(delays) or abs(np.median(delays)) > SAME_CLOCK_S:
            return None
        return float(np.median(delays)) * 1e3, float(np.percentile(delays, 99)) * 1e3

    def follow(self, command: Track, key: str) -> Lag:
        """How much later a state does what a command said."""
        if command.holds:
            return lag_between(command.path(), self._state(key).path(), self._period_s)
        state = self._state(key)
        if state.places.shape[1:] != command.places.shape[1:]:
            return Lag(None, why="command and state differ in size")
        return lag_between(command, state, self._period_s)

    def beside(self, reference: str, key: str) -> Lag:
        """How much later an observation sees the motion that another one measures."""
        return lag_between(self._state(reference).path(), self._path(key), self._period_s)

    def _state(self, key: str) -> Track:
        times, values = self._rows(key)
        stream = self.contract.observations[key]
        if stream.quantity == "orientation":
            values = _turned(values)
        return Track(times, values)

    def _path(self, key: str) -> Track:
        """How much an observation has changed in all: so a camera compares with a joint."""
        if not self.contract.observations[key].is_image:
            return self._state(key).path()
        times, values = self._rows(key)
        return Track(times, values).path()

    def command(self, part: ActionField) -> Track | None:
        """Where a part of the action told the robot to be; None where it was not recorded."""
        found = list(recorded(self.contract, part))
        if len(found) != 1:
            return None
        (_, stream, place), told = found[0], self.contract.action.recorded
        source = told[self.contract.action.fields.index(part)]
        times, values = self._rows(stream.name)
        values = values.reshape(len(times), stream.size)[:, place]
        return Track(times, _places(source, values), holds=part.kind == "binary")


def _places(part: ActionField, values: Floats) -> Floats:
    if part.kind == "binary":
        return closed(part, values)
    if part.is_delta or part.role in ("joint_velocity", "twist"):
        return np.cumsum(values, axis=0)
    return _turned(TO_QUATERNION[part.kind](values)) if part.kind in ROTATION_KINDS else values


def _turned(quaternions: Floats) -> Floats:
    """Turns in the base frame, added up: (n, 4) → (n, 3)."""
    if len(quaternions) < 2:
        return np.zeros((len(quaternions), 3))
    steps = delta_between(quaternions[:-1], quaternions[1:])
    return np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])


def node_figures(bags: Iterable[Bag]) -> dict[str, str]:
    """What a policy node's recorded /diagnostics say of time, the newest of them.

    Returns:
        Name → value: the node's latency, its misses, and for each stream the delay from stamp to
        arrival (median over the recordings). Empty without any.
    """
    newest: dict[str, str] = {}
    delays: dict[str, list[float]] = {}
    for bag in bags:
        for _, _, msg in bag.messages([DIAGNOSTICS]):
            for status in msg.status:
                if status.name.endswith(": policy"):
                    newest = {pair.key: pair.value for pair in status.values}
                for key, value in newest.items():
                    if key.endswith(".delay_s"):
                        delays.setdefault(key, []).append(float(value))
    wanted = ("latency_ms_p50", "latency_ms_p99", "chunk_ms_p50", "chunk_ms_p99")
    kept = {name: newest[name] for name in (*wanted, "deadline_misses") if name in newest}
    return kept | {key: f"{np.median(values):.4f}" for key, values in delays.items()}
