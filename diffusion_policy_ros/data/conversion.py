"""One bag into a shard: the frame rule, actions, idle ends, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data import remarks
from diffusion_policy_ros.data.actions import Commands, next_state_actions, short_way
from diffusion_policy_ros.data.bags import Bag, open_bag, refuse_unfinished
from diffusion_policy_ros.data.comparison import Comparison
from diffusion_policy_ros.data.definitions import name_types_of
from diffusion_policy_ros.data.idle import departures, idle_ends
from diffusion_policy_ros.data.parts import Parts, refuse_grown
from diffusion_policy_ros.data.pictures import Images, as_they_came, keeps_bytes
from diffusion_policy_ros.data.recorded_as import cell_of, other_cell, resolve_topics
from diffusion_policy_ros.data.reports import BagReport
from diffusion_policy_ros.data.shards import ACTION, STAMP, ShardWriter
from diffusion_policy_ros.errors import UserError, names_said
from diffusion_policy_ros.observe.codecs import Array, stamp_ns
from diffusion_policy_ros.observe.history import Frame, History, Refused, Reset
from diffusion_policy_ros.observe.receipt import ReceiptClock

MIN_FRAMES = 2
LONGEST_S = 1e6
"""Of a recording, twelve days: no time in one is later."""
SPANS = 5
"""Spans of idle frames that are told of a bag."""


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        keep_idle: leave motionless ends in.
        skip_failed: reject bags whose recorder noted that the episode failed.
        max_gap_frames: gaps of up to so many missing frames are bridged: vectors interpolated,
            pictures repeated; the report says how many.
        split_topic: a message on it begins another episode.
        split_times: as do these times, s from a bag's first frame.
        split_still_s: as does setting out after having stood for so long, s; 0 for never.
        own_cells: read a bag as the contract in it says, where that means the same.
        images: how pictures are kept: as they came or as jpeg where they are large, or raw, or
            as png, which loses nothing, or as video.
    """

    keep_idle: bool = False
    skip_failed: bool = False
    own_cells: bool = False
    max_gap_frames: int = 0
    split_topic: str = ""
    split_times: tuple[float, ...] = ()
    split_still_s: float = 0.0
    images: Images = "auto"

    def __post_init__(self) -> None:
        """Refuse times that no recording has.

        Raises:
            UserError: one is no number of seconds.
        """
        given = ("--split-times", self.split_times), ("--split-still", (self.split_still_s,))
        for option, times in given:
            for seconds in times:
                if not 0 <= seconds <= LONGEST_S:
                    cure = f"give seconds, from 0 to {LONGEST_S:g}"
                    raise UserError(f"{seconds:g} is no such time", option, cure)


@dataclass
class _Segment:
    """Frames without a gap: vectors in memory, images already in the shard."""

    first_row: int
    life: int
    times: list[int] = field(default_factory=list)
    vectors: list[dict[str, Array]] = field(default_factory=list)


def convert_bag(
    path: Path,
    contract: Contract,
    shard: ShardWriter,
    options: Options,
    parts: Parts,
) -> BagReport:
    """Append one bag's frames to a shard; a rejected bag leaves the shard as it was.

    Args:
        path: the bag.
        contract: the robot.
        shard: is appended to.
        options: how to convert.
        parts: what the dataset may have of it already, see `parts.py`.
    """
    report = BagReport(str(path))
    before = shard.begin()
    try:
        bag = open_bag(path)
        refuse_unfinished(bag)
        name_types_of(contract, bag.defined)
        report.notes = [*bag.notes, *bag.remarks]
        report.success, report.task = _success(bag), bag.metadata.get("task", "").strip()
        if options.skip_failed and report.success is False:
            raise UserError("its recorder noted that the episode failed")
        read_as = cell_of(bag, contract) if options.own_cells else contract
        report.notes += filter(None, [other_cell(bag, read_as)])
        conversion = _Conversion(bag, read_as, shard, options, report)
        conversion.run()
        refuse_grown(conversion.written, parts)
        report.status = "kept"
    except UserError as error:
        shard.truncate(before)
        report.reason = str(error).removeprefix(f"{path}: ")
    return report


def _success(bag: Bag) -> bool | None:
    return {"true": True, "false": False}.get(bag.metadata.get("success", "").lower())


class _Conversion:
    """One bag on its way into a shard."""

    def __init__(
        self, bag: Bag, contract: Contract, shard: ShardWriter, options: Options, report: BagReport
    ) -> None:
        self.bag, self.contract, self.shard = bag, contract, shard
        self.options, self.report = options, report
        self.commands = Commands(contract)
        self.segments: list[_Segment] = []
        self.life = 0
        self.refused: Counter[str] = Counter()
        self.comparison = Comparison(contract)
        self._anchor = contract.observations[contract.anchor]
        self._last_ns: dict[str, int] = {}
        self._stamped: dict[str, bool] = {}
        self._frames: dict[str, str] = {}
        self._anchor_ns: list[int] = []
        self._apart_ns: dict[str, int] = {}
        self._idle: list[tuple[int, int]] = []
        self._images = {
            key: keeps_bytes(stream, options.images)
            for key, stream in contract.observations.items()
            if stream.is_image
        }
        self._vectors = [k for k, stream in contract.observations.items() if not stream.is_image]
        self._row = shard.rows
        self._history = History(contract, n_obs_steps=1)
        self._marks: list[int] = []
        self._bridged = 0
        self._last: Frame | None = None
        self._pictures: dict[str, Array | list[bytes]] = {}
        self._unknown: list[str] = []
        self.written: list[dict[str, Array]] = []

    def run(self) -> None:
        """Convert it.

        Raises:
            UserError: nothing of it can be used, and why.
        """
        names = resolve_topics(self.bag, self.contract.recorded_topics)
        if self.options.split_topic not in ("", *self.bag.topics):
            what = f"{self.options.split_topic}, at which to split, is not in the bag"
            raise UserError(what, "", f"it has {names_said(self.bag.topics)}")
        self._read({recorded: topic for topic, recorded in names.items()})
        self.report.refused = remarks.by_kind(self.refused)
        self.report.frames = sum(len(segment.times) for segment in self.segments)
        self.report.gaps = max(0, len(self.segments) - 1 - len(self.report.resets))
        self._refuse_unstamped()
        if not self.segments:
            self._refuse_apart()
            reason = remarks.most_refused(self.report.refused) or "its messages make no frame"
            raise UserError(f"not a single frame: {reason}")
        first_ns = self.segments[0].times[0]
        self._marks += [first_ns + round(s * 1e9) for s in self.options.split_times]
        for segment in self.segments:
            self._finish(segment)
        self.report.refused |= remarks.by_kind(self.commands.refused)
        rate = remarks.rate(self._anchor_ns, self.contract)
        if not self.report.episodes:
            self._refuse_apart()
            raise UserError(rate if "above" in rate else self._why_nothing())
        bridged = f"{self._bridged} missing frames bridged" if self._bridged else ""
        said = (
            rate,
            bridged,
            *remarks.silent(self._last_ns, self.contract),
            *remarks.frames(self._frames, self.contract),
            *remarks.sampled(self.commands.counts, self.report.frames, self.contract),
            *self._unknown,
            self._idle_said(),
        )
        self.report.notes += filter(None, said)
        self.report.notes += self.comparison.remarks()
        zero = [topic for topic, count in self.commands.unstamped.items() if count]
        self.report.notes += [f"{t} has stamps of zero: those of receipt are taken" for t in zero]

    def _read(self, topics: dict[str, str]) -> None:
        """Push every message through the frame rule; images go into the shard at once."""
        history, clock = self._history, ReceiptClock(self.contract)
        observed, commanded, log_ns = self.contract.topics, self.commands.topics, 0
        split, anchor, stamped = self.options.split_topic, self._anchor.topic, self._stamped
        for recorded, log_ns, msg in self.bag.messages({*topics, *filter(None, [split])}):
            if recorded == split:
                self._marks.append(stamp_ns(msg) or clock.at(log_ns))
            topic = topics.get(recorded)
            if topic is None:
                continue
            self._last_ns[topic] = log_ns
            if topic == anchor or topic == clock.leader or not stamped.get(topic):
                self._note_stamp(topic, msg, log_ns, clock)
            received_ns = clock.at(log_ns)
            if topic in observed:
                for event in history.push(topic, msg, log_ns, received_ns):
                    self._take(event)
            if topic in commanded:
                self.commands.push(topic, msg, received_ns, self.life)
        for event in history.poll(log_ns + round(self.contract.settle_s * 1e9)):
            self._take(event)

    def _note_stamp(self, topic: str, msg: Any, log_ns: int, clock: ReceiptClock) -> None:
        """What the stamps of the anchor, and the first ones of other topics, tell of a bag."""
        stamp = stamp_ns(msg)
        clock.note(topic, stamp, log_ns)
        if stamp:
            self._apart_ns.setdefault(topic, stamp - log_ns)
        if topic == self._anchor.topic:
            own = stamp if self._anchor.time == "header" else None
            self._anchor_ns.append(clock.at(log_ns) if own is None else own)
        if stamp is not None and topic not in self._frames:
            self._frames[topic] = msg.header.frame_id.removeprefix("/")
        self._stamped[topic] = self._stamped.get(topic, False) or stamp != 0

    def _take(self, event: Frame | Refused | Reset) -> None:
        if isinstance(event, Refused):
            self.refused[event.reason] += 1
            return
        if isinstance(event, Reset):
            self.report.resets.append(event.reason)
            self.life += 1
            return
        if not self.segments:
            self._unknown += remarks.depth(event.arrays, self.contract)
        between = list(self._between(event)) if event.first else []
        if (event.first and not between) or not self.segments:
            self.segments.append(_Segment(self._row, self.life))
        for frame in (*between, event):
            if frame is event:  # those that are missing before it repeat what was stored last
                self._pictures = {key: self._picture(key, event) for key in self._images}
            segment = self.segments[-1]
            segment.times.append(frame.time_ns)
            segment.vectors.append({key: frame.arrays[key] for key in self._vectors})
            self.shard.append(self._pictures)
            self._row += 1
        self._bridged += len(between)
        self._last = event

    def _picture(self, key: str, frame: Frame) -> Array | list[bytes]:
        """A frame's picture: as it came where it is kept so, else its pixels."""
        if not self._images[key]:
            return frame.arrays[key][None]
        message = self._history.message(key, frame)
        came = as_they_came(self.contract.observations[key], message)
        return frame.arrays[key][None] if came is None else [came]

    def _between(self, after: Frame) -> Iterator[Frame]:
        """The frames that are missing before one, where they are few enough to be bridged.

        They have no pictures: those of the frame before are repeated as they were stored.
        """
        before, period = self._last, self.contract.period_ns
        fields = self.contract.action.fields
        if before is None or self.segments[-1].life != self.life:
            return
        missing = round((after.time_ns - before.time_ns) / period) - 1
        for i in range(missing if missing <= self.options.max_gap_frames else 0):
            share = (i + 1) / (missing + 1)
            arrays = {}
            for key in self._vectors:
                turn = self.contract.observations[key].quantity == "orientation"
                wrap = next((part.wrap for part in fields if part.state == key), False)
                arrays[key] = _mixed(before.arrays[key], after.arrays[key], share, turn, wrap)
            time_ns = before.time_ns + round(share * (after.time_ns - before.time_ns))
            yield Frame(time_ns, arrays, {}, first=False)

    def _finish(self, segment: _Segment) -> None:
        """Write a segment's vectors and actions, and note the episodes in it."""
        times = np.array(segment.times, dtype=np.int64)
        states = {key: np.stack([v[key] for v in segment.vectors]) for key in self._vectors}
        actions, valid = self._actions(times, states, segment.life)
        self.written.append({**states, ACTION: actions, STAMP: times})
        self.shard.append(self.written[-1])
        self.comparison.add({k: v[valid] for k, v in states.items()}, actions[valid])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], valid, [False]]).astype(np.int8)))
        marks = np.searchsorted(times, np.array(self._marks, dtype=np.int64)).tolist()
        if self.options.split_still_s:
            still = round(self.options.split_still_s * self.contract.rate_hz)
            marks += departures(self.contract, states, actions, max(still, MIN_FRAMES))
        for start, stop in edges.reshape(-1, 2).tolist():
            cuts = sorted({start, stop, *(mark for mark in marks if start < mark < stop)})
            for first, last in pairwise(cuts):
                self._keep(segment, first, last, states, actions)

    def _actions(self, times: Array, states: dict[str, Array], life: int) -> tuple[Array, Array]:
        if self.contract.action.commands:
            return self.commands.actions(times, life, states)
        actions = np.zeros((len(times), self.contract.action_dim), np.float32)
        actions[:-1] = next_state_actions(self.contract, states)
        return actions, np.arange(len(times)) < len(times) - 1

    def _keep(
        self,
        segment: _Segment,
        start: int,
        stop: int,
        states: dict[str, Array],
        actions: Array,
    ) -> None:
        part = slice(start, stop)
        if not self.options.keep_idle:
            idle = idle_ends(self.contract, {k: v[part] for k, v in states.items()}, actions[part])
            trimmed = self.report.trimmed
            self.report.trimmed = (trimmed[0] + idle.start, trimmed[1] + idle.end)
            ends = (start, idle.start), (stop - idle.end, idle.end)
            self._idle += [(segment.times[at], frames) for at, frames in ends if frames]
            start, stop = start + idle.start, stop - idle.end
        if stop - start >= MIN_FRAMES:
            self.report.episodes.append((segment.first_row + start, stop - start))

    def _refuse_unstamped(self) -> None:
        """Stamps that a driver leaves at zero make no frame.

        Raises:
            UserError: the topic, and the cure.
        """
        for topic, streams in self.contract.topics.items():
            if streams[0].goes_by_stamp and not self._stamped.get(topic, True):
                what = f"all stamps of {topic} are zero"
                raise UserError(what, "", "give its streams time: receipt, or mend its driver")

    def _refuse_apart(self) -> None:
        """Stamps of two clocks are why there is no frame, or none with a command.

        Raises:
            UserError: the topic whose clock is not the others', and the cure.
        """
        what = remarks.other_clock(self._apart_ns, self.contract)
        if what:
            raise UserError(what, "", "give its streams time: receipt, or mend its driver")

    def _idle_said(self) -> str:
        """Where idle frames were left out, in seconds from the first frame."""
        spans, first_ns = self._idle, self.segments[0].times[0]
        said = [
            f"{(ns - first_ns) / 1e9:.1f} s ({frames / self.contract.rate_hz:.1f} s long)"
            for ns, frames in spans[:SPANS]
        ]
        more = [f"{len(spans) - SPANS} more"] if len(spans) > SPANS else []
        return f"left out, for nothing moved, from {', '.join(said + more)}" if spans else ""

    def _why_nothing(self) -> str:
        if sum(self.report.trimmed) > self.report.frames / 2:
            return (
                f"the arm does not move in its {self.report.frames} frames; --keep-idle keeps them"
            )
        reason = remarks.most_refused(remarks.by_kind(self.commands.refused))
        return f"no {MIN_FRAMES} frames in a row with an action" + (
            f": {reason}" if reason else ""
        )


def _mixed(
    before: Array, after: Array, share: float, turn: bool, wrap: bool | tuple[bool, ...]
) -> Array:
    """Between two vectors; of quaternions, and of continuous joints, the short way."""
    if turn and float(before @ after) < 0:
        after = -after
    mixed = before + np.float32(share) * short_way(wrap, after - before)
    return np.asarray(mixed / np.linalg.norm(mixed) if turn else mixed)
