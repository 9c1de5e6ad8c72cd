"""Bags into a dataset: the frame rule, actions, idle ends, and nothing half-written.

Messages go through `observe.history.History` in the order of their log time, as they went through
the node's: `conversion.py`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import bag_files, is_bag
from diffusion_policy_ros.data.conversion import Options, convert_bag
from diffusion_policy_ros.data.parts import Parts, parts_of
from diffusion_policy_ros.data.reports import (
    BagReport,
    Progress,
    Report,
    fail_empty,
    report_of,
    with_reports,
)
from diffusion_policy_ros.data.shards import ShardWriter, columns
from diffusion_policy_ros.data.store import MAX_SHARDS, commit, exclusive, index_of
from diffusion_policy_ros.data.video import check_codec
from diffusion_policy_ros.data.workers import end_with_parent
from diffusion_policy_ros.errors import UserError

USUAL = Options()
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14


class _Batch(NamedTuple):
    """The bags that go into one shard."""

    shard: str
    folder: Path
    bags: list[tuple[Path, str, Parts]]


def convert(
    bags: Iterable[str | Path],
    contract: Contract,
    out: str | Path,
    jobs: int = 1,
    progress: Progress | None = None,
    options: Options = USUAL,
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
    check_codec(contract, options.images)
    paths = expand(bags)
    with exclusive(out, may_begin=True) as building:
        index = index_of(out, contract)
        reports, fresh = _fresh(paths, {episode.hash for episode in index.episodes})
        parts = parts_of(out, index, contract, {path.name for path in fresh.values()})
        batches = _batches(fresh, parts, building)
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
    return report_of(out, ordered, index)


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


def _fresh(paths: Sequence[Path], known: set[str]) -> tuple[dict[str, BagReport], dict[str, Path]]:
    """What is to be said of bags that are not new, and those that are: fingerprint → bag."""
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
    return reports, fresh


def _batches(
    fresh: Mapping[str, Path], parts: Mapping[str, Parts], building: Path
) -> list[_Batch]:
    """Which shard each bag goes into; the same for any number of processes."""
    size = max(1, -(-len(fresh) // MAX_SHARDS))
    marked = [(path, mark, parts.get(path.name, {})) for mark, path in fresh.items()]
    batches = []
    for start in range(0, len(marked), size):
        bags = marked[start : start + size]
        name = hashlib.blake2b(
            "".join(mark for _, mark, _ in bags).encode(), digest_size=6
        ).hexdigest()
        batches.append(_Batch(name, building / name, bags))
    return batches


def _run_batch(batch: _Batch, contract: Contract, options: Options) -> Iterator[BagReport]:
    """Make one shard."""
    shard = ShardWriter(batch.folder, contract, options.images)
    for path, mark, parts in batch.bags:
        report = convert_bag(path, contract, shard, options, parts)
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
    end_with_parent()
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


__all__ = ["Options", "convert", "expand", "fingerprint"]
