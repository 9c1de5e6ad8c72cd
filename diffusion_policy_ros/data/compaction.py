"""Datasets written anew: without what was dropped or trimmed, or several as one.

Pictures go as they are stored, without a loss. As in every conversion new shards are written
beside the old ones, and the index is replaced when they are whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.edits import EDITS
from diffusion_policy_ros.data.index import Episode, Index
from diffusion_policy_ros.data.pictures import Images, storage
from diffusion_policy_ros.data.selection import select
from diffusion_policy_ros.data.shards import STAMP, Rows, ShardWriter
from diffusion_policy_ros.data.store import (
    SHARD_FRAMES,
    commit,
    exclusive,
    index_of,
    name_of,
    remove_leftovers,
    spans_of,
)
from diffusion_policy_ros.data.video import check_codec
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array


@dataclass(frozen=True)
class Written:
    """What a dataset holds now.

    Attributes:
        episodes: how many.
        frames: of all of them.
        bytes: on the disk.
        bytes_before: of the same dataset, or of all that were merged.
    """

    episodes: int
    frames: int
    bytes: int
    bytes_before: int


def compact(folder: Path, images: Images | None = None) -> Written:
    """Remove what is dropped or trimmed for good; edits cannot be undone any more.

    Args:
        folder: the dataset.
        images: how to keep pictures from now on; as they are by default.

    Raises:
        UserError: nothing would be left, the disk is full, or it is damaged. It is as it was.
    """
    with exclusive(folder) as building:
        before, dataset = size_of(folder), Dataset(folder)
        index = Index.load(folder)
        remove_leftovers(folder, index)
        everything = range(len(dataset.episodes))
        shards, episodes = _write(dataset, everything, building, images, index.shards)
        index = replace(index, shards=shards, episodes=episodes)
        commit(folder, building, index)
        (folder / EDITS).unlink(missing_ok=True)
        remove_leftovers(folder, index)
    return _written(folder, index, before)


def merge(
    sources: Sequence[Path], out: Path, where: str = "", images: Images | None = None
) -> Written:
    """Write several datasets of one meaning as one, or add them to one.

    A stretch of a recording that is in several of them is taken once.

    Args:
        sources: the datasets.
        out: the folder; made if it is missing.
        where: which episodes, see `selection`.
        images: how to keep pictures; as they are by default.

    Raises:
        UserError: their meanings differ, nothing fits, or the disk is full. Nothing is written.
    """
    if out.resolve() in [source.resolve() for source in sources]:
        raise UserError("is merged into itself", str(out), "choose another folder with --out")
    dataset = Dataset(sources)
    numbers = select(dataset.episodes, where, ", ".join(map(str, sources)))
    with exclusive(out, may_begin=True) as building:
        index = index_of(out, dataset.contract)
        fresh = list(_once(dataset, numbers, spans_of(out, index)))
        if not fresh:
            raise UserError("has all of them already", str(out), "choose others with --where")
        shards, episodes = _write(dataset, fresh, building, images, index.shards)
        index = replace(
            index, shards={**index.shards, **shards}, episodes=(*index.episodes, *episodes)
        )
        commit(out, building, index)
    return _written(out, index, sum(size_of(source) for source in sources))


def size_of(folder: Path) -> int:
    """Bytes of a dataset's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _written(folder: Path, index: Index, before: int) -> Written:
    frames = sum(episode.frames for episode in index.episodes)
    return Written(len(index.episodes), frames, size_of(folder), before)


def _once(
    dataset: Dataset, numbers: Sequence[int], known: Sequence[tuple[str, int, int]]
) -> Iterator[int]:
    """Episodes of which no dataset before has a frame: recordings may be there in part."""
    taken: dict[str, list[tuple[int, int, int]]] = {}
    for recording, first, last in known:
        taken.setdefault(recording, []).append((-1, first, last))
    for number in numbers:
        episode, origin = dataset.episodes[number], dataset.origin[number]
        row = dataset.first_row(number)
        rows = np.array([row, row + episode.frames - 1])
        first, last = dataset.rows[STAMP].take(rows).tolist()
        others = taken.setdefault(episode.hash, [])
        if not any(o != origin and a <= last and first <= b for o, a, b in others):
            others.append((origin, first, last))
            yield number


def _write(
    dataset: Dataset,
    numbers: Sequence[int],
    building: Path,
    images: Images | None,
    taken: dict[str, int],
) -> tuple[dict[str, int], tuple[Episode, ...]]:
    """Copy episodes into new shards; which these are, and the episodes' new lines."""
    if images is not None:
        check_codec(dataset.contract, images)
    shards: dict[str, int] = {}
    episodes: list[Episode] = []
    for kept, group in _groups(dataset, numbers, images):
        shard = ShardWriter(building / "next", dataset.contract, kept)
        places = [_copy(dataset, number, shard, kept) for number in group]
        shard.close()
        lines = [dataset.episodes[number] for number in group]
        name = name_of(f"{e.hash}:{e.start}:{e.shard}:{e.frames}:{kept}" for e in lines)
        if name in taken or name in shards:
            name = name_of([name, str(len(shards))])
        (building / "next").rename(building / name)
        shards[name] = shard.rows
        episodes += [
            replace(line, shard=name, start=start)
            for line, start in zip(lines, places, strict=True)
        ]
    return shards, tuple(episodes)


def _groups(
    dataset: Dataset, numbers: Sequence[int], images: Images | None
) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Episodes that go into one shard: pictures kept alike, and not too many frames."""
    group: list[int] = []
    kept: dict[str, str] = {}
    frames = 0
    for number in numbers:
        now = _kept(dataset, number, images)
        if group and (now != kept or frames >= SHARD_FRAMES):
            yield kept, group
            group, frames = [], 0
        kept = now
        group.append(number)
        frames += dataset.episodes[number].frames
    if group:
        yield kept, group


def _kept(dataset: Dataset, number: int, images: Images | None) -> dict[str, str]:
    """How an episode's pictures are to be kept: key → raw, jpeg, png or video."""
    first = dataset.first_row(number)
    cameras = {k: s for k, s in dataset.contract.observations.items() if s.is_image}
    if images is not None:
        return {key: storage(stream, images) for key, stream in cameras.items()}
    return {key: dataset.rows[key].how(first) for key in cameras}


def _copy(dataset: Dataset, number: int, shard: ShardWriter, kept: dict[str, str]) -> int:
    """Add an episode's rows; the one that it begins at.

    Where a clip begins before it the rows from there on come along.
    """
    start = first = dataset.first_row(number)
    clips = [dataset.rows[key] for key, how in kept.items() if how == "video"]
    while (earlier := min((column.begins(first) for column in clips), default=first)) < first:
        first = earlier
    begin, stop = shard.begin(), start + dataset.episodes[number].frames
    for key, column in dataset.rows.items():
        if key not in kept:
            shard.append({key: column.take(np.arange(first, stop))})
            continue
        for row in range(first, stop):
            shard.append({key: [_stored(column, row, kept[key])]})
    return begin + start - first


def _stored(column: Rows, row: int, how: str) -> Array | bytes:
    """A picture as it is stored, or decoded where it is a part of a video and becomes none."""
    if column.how(row) == "video" != how:
        return np.asarray(column.take(np.array([row]))[0])
    return column.kept(row)
