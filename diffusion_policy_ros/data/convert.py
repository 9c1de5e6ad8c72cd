"""Bags into a dataset: the frame rule, actions, idle ends, and nothing half-written.

Messages go through `observe.history.History` in the order of their log time, as they went through the node's. New
frames are written into shards of their own beside the old ones; when all are whole they are renamed into place, and
then ``dataset.yaml`` is replaced. Whatever interrupts this leaves the old dataset or the new one; what it left behind
goes with the next conversion.
"""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import shutil
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.actions import Commands, idle_ends, next_state_actions
from diffusion_policy_ros.data.bags import Bag, bag_files, is_bag, open_bag
from diffusion_policy_ros.data.dataset import FORMAT, INDEX, SHARDS, Episode, Index
from diffusion_policy_ros.data.shards import ACTION, STAMP, ShardWriter, columns
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.history import Frame, History, Refused, Reset

MAX_SHARDS = 16
"""Shards of one conversion, whatever the number of bags and processes: files stay few, and the result the same."""
MIN_FRAMES = 2
BUILDING, LOCK = ".building-", ".lock"
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14


@dataclass
class BagReport:
    """What became of one bag.

    Attributes:
        bag: its path.
        status: kept, rejected, or present: the dataset has it already.
        hash: its content.
        reason: why it was rejected.
        episodes: (first row in its shard, frames) of each.
        frames: frames that the bag gave, before idle ends were trimmed.
        trimmed: idle frames left out, at starts and ends.
        refused: why frames were refused or had no action → how many.
        gaps: how often frames did not follow each other.
        resets: why history was dropped, in order.
        notes: what is odd about the bag.
        success: what the recorder said.
        shard: the shard that its frames are in.
        shard_rows: rows of that shard after this bag.
    """

    bag: str
    status: Literal["kept", "rejected", "present"] = "rejected"
    hash: str = ""
    reason: str = ""
    episodes: list[tuple[int, int]] = field(default_factory=list)
    frames: int = 0
    trimmed: tuple[int, int] = (0, 0)
    refused: dict[str, int] = field(default_factory=dict)
    gaps: int = 0
    resets: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    success: bool | None = None
    shard: str = ""
    shard_rows: int = 0

    def lines(self) -> Iterator[str]:
        """Say it in one line, and one more for each thing that was odd."""
        name = Path(self.bag).name
        if self.status == "present":
            yield f"present   {name}: already in the dataset"
            return
        if self.status == "rejected":
            yield f"rejected  {name}: {self.reason}"
        else:
            kept = sum(frames for _, frames in self.episodes)
            idle = f", {sum(self.trimmed)} idle frames trimmed" if any(self.trimmed) else ""
            plural = "" if len(self.episodes) == 1 else "s"
            yield f"kept      {name}: {kept} frames in {len(self.episodes)} episode{plural}{idle}"
        yield from (f"          {note}" for note in self.notes)
        yield from (f"          {reset}" for reset in self.resets)
        if self.gaps:
            yield f"          {self.gaps} gap{'s' * (self.gaps > 1)} without frames"
        for reason, count in self.refused.items():
            yield f"          {count} frame{'s' * (count > 1)} refused: {reason}"


@dataclass
class Report:
    """What became of a conversion.

    Attributes:
        dataset: the folder.
        bags: one report a bag, in the order of the bags.
        episodes: episodes in the dataset, those from before included.
        frames: their frames.
    """

    dataset: Path
    bags: list[BagReport]
    episodes: int
    frames: int


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        keep_idle: leave motionless ends in.
        skip_failed: reject bags whose recorder noted that the episode failed.
    """

    keep_idle: bool = False
    skip_failed: bool = False


class _Batch(NamedTuple):
    """The bags that go into one shard."""

    shard: str
    folder: Path
    bags: list[tuple[Path, str]]


Progress = Callable[[BagReport, int, int], None]
"""Called with each finished bag's report, how many are finished, and how many there are."""


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
        UserError: nothing could be converted, or the dataset is another robot's. The dataset is as it was.
    """
    out = Path(out)
    columns(contract)
    paths = expand(bags)
    with _exclusive(out) as building:
        index = _index_of(out, contract)
        reports, batches = _plan(paths, {episode.hash for episode in index.episodes}, building)
        for report in chain(list(reports.values()), _run(batches, contract, options, jobs)):
            reports[report.bag] = report
            if progress is not None:
                progress(report, len(reports), len(paths))
        ordered = [reports[str(path)] for path in paths]
        if any(report.status == "kept" for report in ordered):
            index = _with(index, ordered)
            _commit(out, building, index)
        elif not index.episodes:
            _fail(ordered)
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

    Of large files the size and 64 evenly spread blocks are read: two recordings differ in every stamp, and reading
    all of a large one twice would double the time that it takes.
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


# --------------------------------------------------------------------------------------------- one bag


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
        _Conversion(bag, contract, shard, options, report).run()
        report.status = "kept"
    except UserError as error:
        shard.truncate(before)
        report.reason = str(error)
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
        self.refused: dict[str, list[Any]] = {}
        self._images = [k for k, stream in contract.observations.items() if stream.is_image]
        self._vectors = [k for k, stream in contract.observations.items() if not stream.is_image]
        self._row = shard.rows

    def run(self) -> None:
        """Convert it.

        Raises:
            UserError: nothing of it can be used, and why.
        """
        names = resolve_topics(self.bag, self.contract)
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
        if not self.report.episodes:
            raise UserError(self._why_nothing())

    def _read(self, topics: dict[str, str]) -> None:
        """Push every message through the frame rule; images go into the shard at once."""
        history = History(self.contract, n_obs_steps=1)
        observed, commanded, log_ns = self.contract.topics, self.commands.topics, 0
        for recorded, log_ns, msg in self.bag.messages(topics):
            topic = topics[recorded]
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
            self._keep(segment.first_row, start, stop, states, actions)

    def _actions(self, times: Array, states: dict[str, Array], life: int) -> tuple[Array, Array]:
        if self.contract.action.commands:
            return self.commands.actions(times, life)
        actions = np.zeros((len(times), self.contract.action_dim), np.float32)
        actions[:-1] = next_state_actions(self.contract, states)
        return actions, np.arange(len(times)) < len(times) - 1

    def _keep(
        self, row: int, start: int, stop: int, states: dict[str, Array], actions: Array
    ) -> None:
        part = slice(start, stop)
        if not self.options.keep_idle:
            idle = idle_ends(self.contract, {k: v[part] for k, v in states.items()}, actions[part])
            trimmed = self.report.trimmed
            self.report.trimmed = (trimmed[0] + idle.start, trimmed[1] + idle.end)
            start, stop = start + idle.start, stop - idle.end
        if stop - start >= MIN_FRAMES:
            self.report.episodes.append((row + start, stop - start))

    def _why_nothing(self) -> str:
        if sum(self.report.trimmed) > self.report.frames / 2:
            return (
                f"the arm does not move in its {self.report.frames} frames; --keep-idle keeps them"
            )
        reason = next(iter(self.commands.refused), "")
        return f"no {MIN_FRAMES} frames in a row with an action" + (
            f": {reason}" if reason else ""
        )


def resolve_topics(bag: Bag, contract: Contract) -> dict[str, str]:
    """The contract's topics → the bag's, where a relative one was recorded below a namespace.

    Raises:
        UserError: a topic is not in the bag, or of another type.
    """
    found: dict[str, str] = {}
    for topic, kind in contract.recorded_topics.items():
        fitting = [
            t for t in bag.topics if t == topic or (topic[0] != "/" and t.endswith(f"/{topic}"))
        ]
        if not fitting or not any(bag.topics[t][1] for t in fitting):
            what = (
                "has no messages"
                if fitting
                else f"is not in the bag, which has {', '.join(bag.topics)[:200]}"
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


# --------------------------------------------------------------------------------------------- many bags


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
            reports[str(path)] = BagReport(str(path), reason=str(error))
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


# --------------------------------------------------------------------------------------------- the folder


@contextmanager
def _exclusive(out: Path) -> Iterator[Path]:
    """Hold a dataset's folder alone; gives a folder to build in, which is gone afterwards.

    Raises:
        UserError: the folder holds something else, or another conversion holds it.
    """
    _refuse_foreign(out)
    is_new = not out.exists()
    try:
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", str(out), "choose another folder"
        ) from None
    building = out / f"{BUILDING}{uuid.uuid4().hex[:8]}"
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "another conversion writes into it", str(out), "wait until it has ended"
            ) from None
        try:
            for leftover in out.glob(f"{BUILDING}*"):
                shutil.rmtree(leftover)
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
            if is_new and not (out / INDEX).exists():
                shutil.rmtree(out, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    """Nothing is written into a folder that holds anything but a dataset."""
    if not out.exists() or (out / INDEX).is_file():
        return
    ours = (LOCK, SHARDS, f".{INDEX}")
    foreign = not out.is_dir() or [
        p for p in out.iterdir() if p.name not in ours and not p.name.startswith(BUILDING)
    ]
    if foreign or (any(out.iterdir()) and not (out / LOCK).exists()):
        raise UserError(
            "there is something else already", str(out), "choose another folder with --out"
        )


def _index_of(out: Path, contract: Contract) -> Index:
    """The dataset as it is, without shards that an interruption left behind.

    Raises:
        UserError: it is damaged, or another robot's.
    """
    index = Index(FORMAT, contract.text, contract.hash, {}, ())
    if (out / INDEX).exists():
        index = Index.load(out)
        theirs = Contract.from_text(index.contract, str(out / INDEX))
        if theirs.hash != contract.hash:
            what = f"was made with another contract; they differ in {theirs.difference(contract)}"
            raise UserError(
                what, str(out), "choose another folder with --out, or the dataset's contract"
            )
    for shard in (out / SHARDS).iterdir():
        if shard.name not in index.shards:
            shutil.rmtree(shard)
    return index


def _with(index: Index, reports: list[BagReport]) -> Index:
    """The index with what was kept."""
    kept = [report for report in reports if report.status == "kept"]
    shards = {
        name: max(r.shard_rows for r in kept if r.shard == name)
        for name in {r.shard: 0 for r in kept}
    }
    episodes = [
        Episode(Path(report.bag).name, report.hash, report.shard, start, frames, report.success)
        for report in kept
        for start, frames in report.episodes
    ]
    return replace(index, shards={**index.shards, **shards}, episodes=(*index.episodes, *episodes))


def _commit(out: Path, building: Path, index: Index) -> None:
    """Rename new shards into place, then replace the index: the moment at which the dataset is the new one."""
    for shard in building.iterdir():
        if shard.name in index.shards:
            shard.rename(out / SHARDS / shard.name)
    index.save(out)


def _fail(reports: list[BagReport]) -> None:
    """Nothing was kept, and the dataset would be empty.

    Raises:
        UserError: always, with the first bag's reason.
    """
    first, more = reports[0], len(reports) - 1
    others = f"; {more} more bag{'s were' if more > 1 else ' was'} rejected" if more else ""
    raise UserError(f"{first.reason}{others}", first.bag)
