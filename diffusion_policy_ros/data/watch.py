"""A robot's messages beside what a contract says of them, while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.contract.messages import TF, TF_STATIC
from diffusion_policy_ros.data import remarks
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import decode, holds, stamp_ns
from diffusion_policy_ros.observe.history import Frame, History, Refused
from diffusion_policy_ros.observe.receipt import APART_NS
from diffusion_policy_ros.observe.transforms import Transforms

AHEAD_S = -1.0
"""Stamps may be ahead of the clock by so much; the policy node refuses what is more."""
FEW = 0.5
"""Of the frames that were due, fewer than this share made."""


class Finding(NamedTuple):
    """What is to be said of a topic.

    Attributes:
        topic: the topic; empty of the whole.
        what: what is odd.
        cure: what to do.
        wrong: whether the contract and the robot contradict each other.
    """

    topic: str
    what: str
    cure: str
    wrong: bool = True


@dataclass
class _Seen:
    """What came on a topic."""

    stamps: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    frame: str = ""
    good: Counter[str] = field(default_factory=Counter)
    bad: dict[str, UserError] = field(default_factory=dict)

    @property
    def rate_hz(self) -> float:
        """By the usual interval between messages; 0 where that cannot be said."""
        times = self.stamps if len(set(self.stamps)) > 1 else self.received
        steps = np.diff(np.array(times, dtype=np.int64))
        steps = steps[steps > 0]
        return 1e9 / float(np.median(steps)) if len(steps) else 0.0

    @property
    def age_s(self) -> float | None:
        """How old messages are when they come, usually; None where stamps do not say."""
        if not any(self.stamps):
            return None
        both = np.array([self.received, self.stamps], dtype=np.int64)
        return float(np.median(both[0] - both[1])) / 1e9


class Watch:
    """Takes messages as they come, and says in the end what does not fit.

    Args:
        contract: what they should be.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.observed = dict(contract.topics)
        self.commanded: dict[str, list[Stream]] = {}
        for stream in contract.action.commands:
            self.commanded.setdefault(stream.topic, []).append(stream)
        self._seen = {topic: _Seen() for topic in {**self.observed, **self.commanded}}
        self._history, self._made = History(contract, n_obs_steps=1), 0
        self._refused: Counter[str] = Counter()
        self._tree = Transforms()

    def note(self, topic: str, msg: Any, arrival_ns: int, received_ns: int) -> None:
        """Take a message.

        Args:
            topic: as the contract names it.
            msg: of the contract's type.
            arrival_ns: by a clock that never stands still.
            received_ns: by the clock that stamps are of.
        """
        seen = self._seen[topic]
        try:
            stamp = stamp_ns(msg)
            seen.received.append(received_ns)
            if stamp is not None:
                seen.stamps.append(stamp)
                seen.frame = msg.header.frame_id.removeprefix("/")
            if topic in (TF, TF_STATIC):
                self._tree.push(topic, msg)
        except UserError as error:
            seen.bad[""] = error
            return
        for stream in (*self.observed.get(topic, ()), *self.commanded.get(topic, ())):
            if stream.tf is None and holds(stream, msg):
                self._read(seen, stream, msg)
        if topic in self.observed:
            self._count(self._history.push(topic, msg, arrival_ns, received_ns))

    def poll(self, now_ns: int) -> None:
        """Time goes on, by the clock of arrivals."""
        self._count(self._history.poll(now_ns))

    def row(self, topic: str) -> tuple[str, str, str]:
        """Rate, age when they come, and tf frame of what came on a topic, as text."""
        seen = self._seen[topic]
        if not seen.received:
            return ("nothing", "-", "-")
        age_s = seen.age_s
        age = "-" if age_s is None else f"{age_s:.3f} s"
        age = "of another clock" if age_s and abs(age_s) * 1e9 > APART_NS else age
        rate = f"{seen.rate_hz:.1f} Hz" if seen.rate_hz else f"{len(seen.received)} messages"
        return (rate, age, seen.frame or "-")

    def findings(self) -> Iterator[Finding]:
        """What does not fit, topic by topic, then of the whole."""
        for topic, seen in self._seen.items():
            streams = [*self.observed.get(topic, ()), *self.commanded.get(topic, ())]
            if seen.received:
                yield from self._of_messages(topic, seen, streams)
            elif topic in self.observed and topic != TF_STATIC:
                yield Finding(topic, "nothing came", "start its driver, or look at the network")
        yield from self._of_tf()
        yield from self._of_all()

    def _read(self, seen: _Seen, stream: Stream, msg: Any) -> None:
        try:
            decode(stream, msg)
            seen.good[stream.name] += 1
        except UserError as error:
            seen.bad[stream.name] = error

    def _count(self, events: Any) -> None:
        for event in events:
            self._made += isinstance(event, Frame)
            if isinstance(event, Refused):
                self._refused[event.reason] += 1

    def _of_messages(self, topic: str, seen: _Seen, streams: list[Stream]) -> Iterator[Finding]:
        for name, error in seen.bad.items():
            some = "some messages: " if seen.good[name] else ""
            yield Finding(topic, f"{name}: {some}{error.what}", error.cure)
        for stream in streams:
            if stream.names and not {stream.name} & {*seen.good, *seen.bad}:
                what = f"{stream.name}: no message has {', '.join(stream.names)} together"
                yield Finding(topic, what, "mend names:, or start the driver that has them")
        if topic in self.observed and not self.observed[topic][0].static:
            yield from self._of_time(topic, seen, self.observed[topic])

    def _of_time(self, topic: str, seen: _Seen, streams: list[Stream]) -> Iterator[Finding]:
        allowed_s, rate = min(stream.max_age_s for stream in streams), seen.rate_hz
        anchor = self.contract.observations[self.contract.anchor]
        age_s = seen.age_s if streams[0].time == "header" else None
        if streams[0].time == "header" and seen.stamps and age_s is None:
            yield Finding(topic, "all stamps are zero", "write time: receipt, or mend its driver")
        elif age_s is not None and abs(age_s) * 1e9 > APART_NS:
            cure = "of a simulator: --ros-args -p use_sim_time:=true; else write time: receipt"
            yield Finding(topic, "its stamps are of another clock", cure)
        elif age_s is not None and age_s < AHEAD_S:
            yield Finding(topic, f"its stamps are {-age_s:.1f} s ahead", "set the clocks alike")
        if streams[0].topic == anchor.topic:
            said = remarks.rate(seen.stamps or seen.received, self.contract)
            if said:
                what, _, cure = said.partition(": ")
                yield Finding(topic, what, cure, wrong="above" in said)
        elif rate and 1 / rate > allowed_s and streams[0].tf is None:
            what = f"it comes every {1 / rate:.2f} s, and max_age_s is {allowed_s:g}"
            yield Finding(
                topic, what, f"write max_age_s: {2.5 / rate:.2g}, or have it come faster"
            )

    def _of_tf(self) -> Iterator[Finding]:
        received = (self._seen[topic].received for topic in (TF, TF_STATIC) if topic in self._seen)
        now_ns = max((times[-1] for times in received if times), default=0)
        for stream in (*self.contract.observations.values(), *self.contract.action.commands):
            if stream.tf is None or not now_ns:
                continue
            try:
                self._tree.at(stream, self._tree.newest_ns(stream, now_ns) or now_ns)
            except UserError as error:
                yield Finding(TF, f"{stream.name}: {error.what}", error.cure)

    def _of_all(self) -> Iterator[Finding]:
        told = {topic: seen.frame for topic, seen in self._seen.items()}
        for said in remarks.frames(told, self.contract):
            what, _, cure = said.partition(": ")
            yield Finding("", what, cure, wrong=False)
        anchor = self._seen[self.contract.observations[self.contract.anchor].topic]
        if anchor.received and self._made <= FEW * (self._made + sum(self._refused.values())):
            reason = next(iter(self._refused), "no stream has come with the anchor")
            yield Finding("", f"next to no frame could be made: {reason}", "mend that first")

    @property
    def frames(self) -> str:
        """How many frames were made of what came, and how many refused."""
        refused = sum(self._refused.values())
        return f"{self._made} made of what came, {refused} refused"
