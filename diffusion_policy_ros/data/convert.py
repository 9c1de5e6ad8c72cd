"""Bags into a dataset: the frame rule, actions, idle ends, and nothing half-written.

Messages go through `observe.history.History` in the order of their log time, as they went through
the node's. How frames become a dataset in one step is in `building.py`.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.actions import Commands, idle_ends, next_state_actions
from diffusion_policy_ros.data.bags import Bag, bag_files, is_bag, open_bag
from diffusion_policy_ros.data.building import (
    MAX_SHARDS,
    BagReport,
    Progress,
    Report,
    commit,
    exclusive,
    fail_empty,
    index_of,
    with_reports,
)
from diffusion_policy_ros.data.shards import ACTION, STAMP, ShardWriter, columns
from diffusion_policy_ros.errors import UserError, names_said
from diffusion_policy_ros.observe.codecs import Array, stamp_ns
from diffusion_policy_ros.observe.history import Frame, History, Refused, Reset

MIN_FRAMES = 2
FASTER = 1.1
"""Frames wanted faster than the anchor comes by this factor are a mistake, not jitter."""
SPANS = 5
"""Spans of idle frames that are told of a bag."""
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        keep_idle: leave motionless ends in.
        skip_failed: reject bags whose recorder noted that the episode failed.
        own_cells: read a bag as the contract in it says, where that means the same.
    """

    keep_idle: bool = False
    skip_failed: bool = False
    own_cells: bool = False


class _Batch(NamedTuple):
    """The bags that go into one shard."""

    shard: str
    folder: Path
    bags: list[tuple[Path, str]]


def convert(
    bags: Iterable[str | Path],
    contract: Contract,
    out: str | Path,
    jobs: int = 1,
    progress: Progress | None = None,
    options: Options = Options(),
) -> Report:
    """Make a dataset of bags, or add bags to one; those that it has already are left alone.

    Args:
        bags: recordings, or directories of recordings.
        contract: the robot.
        out: the dataset's folder; made if it is missing.
        jobs: processes.
        progress: told of each bag when it is done.
        options: how to convert.

    Raises:
        UserError: nothing could be converted, or the dataset is another robot's. It is as it was.
    """
    out = Path(out)
    columns(contract)
    paths = expand(bags)
    with exclusive(out) as building:
        index = index_of(out, contract)
        reports, batches = _plan(paths, {episode.hash for episode in index.episodes}, building)
        for report in chain(list(reports.values()), _run(batches, contract, options, jobs)):
            reports[report.bag] = report
            if progress is not None:
                progress(report, len(reports), len(paths))
        ordered = [reports[str(path)] for path in paths]
        if any(report.status == "kept" for report in ordered):
            index = with_reports(index, ordered)
            commit(out, building, index)
        elif not index.episodes:
            fail_empty(ordered)
    return Report(out, ordered, len(index.episodes), sum(e.frames for e in index.episodes))


def expand(bags: Iterable[str | Path]) -> list[Path]:
    """Bags as they are, directories of bags as the bags in them, sorted; each once.

    Raises:
        UserError: a directory holds no bag, or nothing was given.
    """
    found: dict[Path, None] = {}
    for path in map(Path, bags):
        inner = (
            []
            if is_bag(path) or not path.is_dir()
            else sorted(p for p in path.iterdir() if is_bag(p))
        )
        found.update(dict.fromkeys(inner or [path]))
    if not found:
        raise UserError("no bag was given", "", "name rosbag2 directories or a directory of them")
    return list(found)


def fingerprint(path: Path) -> str:
    """A bag's content in 16 digits, wherever it lies and whatever it is called.

    Of large files the size and 64 evenly spread blocks are read: two recordings differ in every
    stamp, and reading all of a large one twice would double the time that it takes.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in bag_files(path):
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        step = max(_SAMPLE_BYTES, (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
        with file.open("rb") as data:
            for place in range(0, size, step):
                data.seek(place)
                digest.update(data.read(_SAMPLE_BYTES))
    return digest.hexdigest()


# One bag


@dataclass
class _Segment:
    """Frames without a gap: vectors in memory, images already in the shard."""

    first_row: int
    life: int
    times: list[int] = field(default_factory=list)
    vectors: list[dict[str, Array]] = field(default_factory=list)


def convert_bag(path: Path, contract: Contract, shard: ShardWriter, options: Options) -> BagReport:
    """Append one bag's frames to a shard; a rejected bag leaves the shard as it was."""
    report = BagReport(str(path))
    before = shard.rows
    try:
        bag = open_bag(path)
        report.notes = list(bag.notes)
        report.success = _success(bag)
        if options.skip_failed and report.success is False:
            raise UserError("its recorder noted that the episode failed")
        read_as = cell_of(bag, contract) if options.own_cells else contract
        _Conversion(bag, read_as, shard, options, report).run()
        report.status = "kept"
    except UserError as error:
        shard.truncate(before)
        report.reason = str(error).removeprefix(f"{path}: ")
    return report


def cell_of(bag: Bag, contract: Contract) -> Contract:
    """The contract that a bag was recorded with, where it means the same; else the one given.

    So topics, types and encodings may have changed since.
    """
    text = bag.metadata.get("contract", "")
    recorded = Contract.from_text(text, f"{bag.path}: contract") if text else contract
    return recorded if recorded.hash == contract.hash else contract


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
        self.refused: dict[str, list[Any]] = {}
        self._anchor = contract.observations[contract.anchor]
        self._anchor_ns: list[int] = []
        self._idle: list[tuple[int, int]] = []
        self._images = [k for k, stream in contract.observations.items() if stream.is_image]
        self._vectors = [k for k, stream in contract.observations.items() if not stream.is_image]
        self._row = shard.rows

    def run(self) -> None:
        """Convert it.

        Raises:
            UserError: nothing of it can be used, and why.
        """
        names = resolve_topics(self.bag, self.contract.recorded_topics)
        self._read({recorded: topic for topic, recorded in names.items()})
        self.report.refused = {reason: count for count, reason in self.refused.values()}
        self.report.frames = sum(len(segment.times) for segment in self.segments)
        self.report.gaps = max(0, len(self.segments) - 1 - len(self.report.resets))
        if not self.segments:
            reason = next(iter(self.report.refused), "its messages make no frame")
            raise UserError(f"not a single frame: {reason}")
        for segment in self.segments:
            self._finish(segment)
        for reason, count in self.commands.refused.items():
            self.report.refused[reason] = count
        slow = self._slow_anchor()
        if not self.report.episodes:
            raise UserError(slow or self._why_nothing())
        self.report.notes += filter(None, (slow, self._idle_said()))

    def _read(self, topics: dict[str, str]) -> None:
        """Push every message through the frame rule; images go into the shard at once."""
        history = History(self.contract, n_obs_steps=1)
        observed, commanded, log_ns = self.contract.topics, self.commands.topics, 0
        for recorded, log_ns, msg in self.bag.messages(topics):
            topic = topics[recorded]
            if topic == self._anchor.topic:
                stamp = stamp_ns(msg)
                self._anchor_ns.append(log_ns if stamp is None else stamp)
            if topic in observed:
                for event in history.push(topic, msg, log_ns):
                    self._take(event)
            if topic in commanded:
                self.commands.push(topic, msg, log_ns, self.life)
        for event in history.poll(log_ns + round(self.contract.settle_s * 1e9)):
            self._take(event)

    def _take(self, event: Frame | Refused | Reset) -> None:
        if isinstance(event, Refused):
            self.refused.setdefault(event.key, [0, event.reason])[0] += 1
            return
        if isinstance(event, Reset):
            self.report.resets.append(event.reason)
            self.life += 1
            return
        if event.first or not self.segments:
            self.segments.append(_Segment(self._row, self.life))
        segment = self.segments[-1]
        segment.times.append(event.time_ns)
        segment.vectors.append({key: event.arrays[key] for key in self._vectors})
        self.shard.append({key: event.arrays[key][None] for key in self._images})
        self._row += 1

    def _finish(self, segment: _Segment) -> None:
        """Write a segment's vectors and actions, and note the episodes in it."""
        times = np.array(segment.times, dtype=np.int64)
        states = {key: np.stack([v[key] for v in segment.vectors]) for key in self._vectors}
        actions, valid = self._actions(times, states, segment.life)
        self.shard.append({**states, ACTION: actions, STAMP: times})
        edges = np.flatnonzero(np.diff(np.concatenate([[False], valid, [False]]).astype(np.int8)))
        for start, stop in edges.reshape(-1, 2).tolist():
            self._keep(segment, start, stop, states, actions)

    def _actions(self, times: Array, states: dict[str, Array], life: int) -> tuple[Array, Array]:
        if self.contract.action.commands:
            return self.commands.actions(times, life)
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

    def _slow_anchor(self) -> str:
        """That frames are wanted faster than the anchor comes; empty where they are not."""
        intervals = np.diff(np.array(self._anchor_ns, dtype=np.int64))
        intervals = intervals[intervals > 0]
        hz = 1e9 / float(np.median(intervals)) if len(intervals) else math.inf
        wanted = self.contract.rate_hz
        if wanted <= hz * FASTER:
            return ""
        came = f"{hz:.1f} Hz at which {self._anchor.topic} comes"
        return f"rate_hz {wanted:g} is above the {came}: give the contract this rate or less"

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
        reason = next(iter(self.commands.refused), "")
        return f"no {MIN_FRAMES} frames in a row with an action" + (
            f": {reason}" if reason else ""
        )


def resolve_topics(bag: Bag, wanted: Mapping[str, str]) -> dict[str, str]:
    """The contract's topics → the bag's, where a relative one was recorded below a namespace.

    Args:
        bag: the recording.
        wanted: topic → message type, as the contract has them.

    Raises:
        UserError: a topic is not in the bag, or of another type.
    """
    found: dict[str, str] = {}
    for topic, kind in wanted.items():
        fitting = [
            t for t in bag.topics if t == topic or (topic[0] != "/" and t.endswith(f"/{topic}"))
        ]
        if not fitting or not any(bag.topics[t][1] for t in fitting):
            what = (
                "has no messages"
                if fitting
                else f"is not in the bag, which has {names_said(bag.topics)}"
            )
            raise UserError(f"{topic} {what}", "", "record it, or mend the contract")
        if len(fitting) > 1:
            raise UserError(
                f"'{topic}' may be {' or '.join(fitting)}",
                "",
                "write the whole name in the contract",
            )
        recorded = bag.topics[fitting[0]][0]
        if recorded != kind:
            raise UserError(
                f"{topic} is {recorded} in the bag, {kind} in the contract",
                "",
                "mend the contract",
            )
        found[topic] = fitting[0]
    return found


# Many bags


def _plan(
    paths: Sequence[Path], known: set[str], building: Path
) -> tuple[dict[str, BagReport], list[_Batch]]:
    """Which bags are new, and which shard each goes into; the same for any number of processes."""
    reports: dict[str, BagReport] = {}
    fresh: dict[str, Path] = {}
    for path in paths:
        try:
            if not path.exists():
                raise UserError("no such bag", "", "check the path")
            mark = fingerprint(path)
        except (UserError, OSError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            reports[str(path)] = BagReport(str(path), reason=reason)
            continue
        if mark in known or mark in fresh:
            reports[str(path)] = BagReport(str(path), "present", mark)
        else:
            fresh[mark] = path
    size = max(1, -(-len(fresh) // MAX_SHARDS))
    marked = [(path, mark) for mark, path in fresh.items()]
    batches = []
    for start in range(0, len(marked), size):
        bags = marked[start : start + size]
        name = hashlib.blake2b(
            "".join(mark for _, mark in bags).encode(), digest_size=6
        ).hexdigest()
        batches.append(_Batch(name, building / name, bags))
    return reports, batches


def _run_batch(batch: _Batch, contract: Contract, options: Options) -> Iterator[BagReport]:
    """Make one shard."""
    shard = ShardWriter(batch.folder, contract)
    for path, mark in batch.bags:
        report = convert_bag(path, contract, shard, options)
        report.hash, report.shard, report.shard_rows = mark, batch.shard, shard.rows
        yield report
    shard.close()


def _run(
    batches: list[_Batch], contract: Contract, options: Options, jobs: int
) -> Iterator[BagReport]:
    """Make all shards, here or in several processes."""
    jobs = min(max(1, jobs), len(batches))
    if jobs <= 1:
        for batch in batches:
            yield from _run_batch(batch, contract, options)
        return
    context = multiprocessing.get_context("spawn")
    connections: dict[Connection, Any] = {}
    try:
        for number in range(jobs):
            ours, theirs = context.Pipe(duplex=False)
            work = (theirs, batches[number::jobs], contract.text, options)
            process = context.Process(target=_work, args=work, daemon=True)
            process.start()
            theirs.close()
            connections[ours] = process
        yield from _gather(connections)
    finally:
        for process in connections.values():
            process.terminate()
            process.join()


def _gather(connections: dict[Connection, Any]) -> Iterator[BagReport]:
    """What the processes report, as it comes."""
    open_ones = set(connections)
    while open_ones:
        for ready in wait(list(open_ones)):
            assert isinstance(ready, Connection)
            try:
                message = ready.recv()
            except EOFError:
                raise UserError(
                    "a process ended before its work", "", "check the memory; use fewer --jobs"
                ) from None
            if message is None:
                open_ones.discard(ready)
            elif isinstance(message, BaseException):
                raise message
            else:
                yield message


def _work(connection: Connection, batches: list[_Batch], text: str, options: Options) -> None:
    """A process: make shards, report each bag, then None."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends us
    try:
        contract = Contract.from_text(text)
        for batch in batches:
            for report in _run_batch(batch, contract, options):
                connection.send(report)
        connection.send(None)
    except BrokenPipeError:
        pass  # the parent was killed
    except Exception as error:
        connection.send(error)
