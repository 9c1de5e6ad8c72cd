"""LeRobot's datasets: read v3.0 and v2.1, images or video; write v3.0.

Needs pyarrow and av alone, not LeRobot: ``pip install 'diffusion_policy_ros[lerobot]'``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.data.formats.demonstrations import (
    Choice,
    Column,
    Demonstration,
    Writing,
    Written,
)
from diffusion_policy_ros.data.formats.lerobot_layout import (
    OWN,
    EpisodeEntry,
    Layout,
    damage_named,
    read_parquet,
)
from diffusion_policy_ros.data.formats.matching import SUCCESS
from diffusion_policy_ros.data.formats.video import TOLERANCE_S, Film
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.observe.codecs import Array

_AGAIN = "get the dataset again"


class LeRobot:
    """A LeRobot dataset that is open for reading; see `Foreign`.

    Args:
        path: its folder.
        choice: which episodes.

    Raises:
        UserError: it is missing, damaged or of another version; or a choice leaves nothing.
    """

    def __init__(self, path: str | Path, choice: Choice) -> None:
        needed("pyarrow", "lerobot")
        self.layout = Layout.load(Path(path))
        features = self.layout.features
        if any(feature.dtype == "video" for feature in features.values()):
            needed("av", "lerobot")
        self.where, self.rate_hz = str(path), float(self.layout.fps)
        self.contract = self.layout.contract
        self.columns = {
            name: Column(feature.shape or (1,), feature.is_image, feature.names)
            for name, feature in features.items()
            if name not in OWN and _is_readable(feature.dtype, feature.shape, feature.is_depth)
        }
        self._last: tuple[Path, frozenset[str], Any] | None = None
        self._parts = dict(self._by_task(self._chosen(choice), choice.tasks))
        self.names = list(self._parts)

    def _chosen(self, choice: Choice) -> Iterator[EpisodeEntry]:
        known = {entry.number for entry in self.layout.episodes}
        for number in choice.episodes:
            if number not in known:
                cure = f"choose from 0 to {max(known)}"
                raise UserError(f"has no episode {number}", self.where, cure)
        tasks = {task for entry in self.layout.episodes for task in entry.tasks}
        for task in choice.tasks:
            if task not in tasks:
                raise UserError(f"has no task '{task}'", self.where, did_you_mean(task, tasks))
        found = [
            entry
            for entry in self.layout.episodes
            if (not choice.episodes or entry.number in choice.episodes)
            and (not choice.tasks or set(entry.tasks) & set(choice.tasks))
        ]
        if not found:
            raise UserError("no episode is left", self.where, "choose other --episodes or --task")
        yield from found

    def _by_task(
        self, entries: Iterable[EpisodeEntry], tasks: Sequence[str]
    ) -> Iterator[tuple[str, tuple[EpisodeEntry, slice]]]:
        """Name → an episode and its frames; one in which the task changes is several."""
        for entry in entries:
            name = f"episode_{entry.number}"
            whole = slice(0, entry.frames)
            runs = self._runs(entry) if len(entry.tasks) > 1 else []
            if len(runs) < 2:
                yield name, (entry, whole)
                continue
            for start, stop, task in runs:
                if not tasks or task in tasks:
                    yield f"{name}_from_{start}", (entry, slice(start, stop))

    def _runs(self, entry: EpisodeEntry) -> list[tuple[int, int, str]]:
        """First frame, the one behind the last, and task, of each stretch of one task; none of
        an episode that cannot be read, which is told when it is.
        """
        try:
            with damage_named(str(entry.data)):
                rows = self._rows(entry, ())
                self._tasks(rows, entry)
                numbers = np.asarray(rows.column("task_index").to_numpy())
        except UserError:
            return []
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), entry.frames]
        return [(a, b, self.layout.tasks[int(numbers[a])]) for a, b in pairwise(edges)]

    def read(self, name: str, columns: Collection[str]) -> Demonstration:
        """An episode, or what of it is of one task; see `Foreign`."""
        entry, part = self._parts[name]
        with damage_named(str(entry.data)):
            return self._read(entry, part, columns)

    def _read(self, entry: EpisodeEntry, part: slice, columns: Collection[str]) -> Demonstration:
        rows = self._rows(entry, columns)
        times, success = self._times(rows, entry)[part], _success(rows)
        rows = rows.slice(part.start, part.stop - part.start)
        vectors = {
            column: _vectors(rows, column, self.columns[column].shape, entry)
            for column in columns
            if not self.columns[column].is_image
        }
        images: dict[str, Any] = {}
        for column in (c for c in columns if self.columns[c].is_image):
            said = f"{column} of episode {entry.number}"
            if column in entry.clips:
                clip = entry.clips[column]
                images[column] = Film(clip.file, (clip.start_s + times).tolist(), said)
            else:
                images[column] = _Stored(rows.column(column), said)
        tasks = self._tasks(rows, entry)
        return Demonstration(vectors, images, "; ".join(tasks), success)

    def _rows(self, entry: EpisodeEntry, columns: Collection[str]) -> Any:
        """An episode's rows; a file's are kept until another one is asked for.

        Raises:
            UserError: they are not as many, or not those that the index says.
        """
        stored = {c for c in columns if self.layout.features[c].dtype != "video"}
        extra = {SUCCESS} & self.layout.features.keys()
        wanted = frozenset({*stored, *extra, *OWN})
        if self._last is None or self._last[:2] != (entry.data, wanted):
            self._last = (entry.data, wanted, read_parquet(entry.data, sorted(wanted)))
        table = self._last[2]
        numbers = np.asarray(table.column("episode_index").to_numpy())
        places = np.flatnonzero(numbers == entry.number)
        first = int(places[0]) if len(places) else 0
        rows = table.slice(first, len(places))
        index, frame = (np.asarray(rows.column(c).to_numpy()) for c in ("index", "frame_index"))
        count = np.arange(entry.frames)
        whole = len(places) == entry.frames and bool((places == first + count).all())
        if whole and entry.first is not None:
            whole = bool((index == entry.first + count).all())
        if not whole or not (frame == count).all():
            what = f"episode {entry.number} has {entry.frames} frames by meta/episodes"
            what += f", {entry.data} has {len(places)} rows of it, or others"
            raise UserError(what, "", _AGAIN)
        return rows

    def _times(self, rows: Any, entry: EpisodeEntry) -> Array:
        """Seconds since the episode's start: on the grid that fps says.

        Raises:
            UserError: they are not.
        """
        times = np.asarray(rows.column("timestamp").to_numpy(), dtype=np.float64)
        grid = np.arange(len(times)) / self.layout.fps
        # float32 tells an hour to a quarter of a millisecond.
        off = np.abs(times - grid) > TOLERANCE_S + 1e-6 * grid
        if off.any():
            at = int(off.argmax())
            what = f"frame {at} of episode {entry.number} is at {times[at]:.4f} s"
            what += f", fps {self.layout.fps} says {grid[at]:.4f} s"
            cure = "correct fps in meta/info.json, or leave the episode out with --episodes"
            raise UserError(what, "", cure)
        return np.asarray(grid)

    def _tasks(self, rows: Any, entry: EpisodeEntry) -> list[str]:
        numbers = dict.fromkeys(np.asarray(rows.column("task_index").to_numpy()).tolist())
        lost = [number for number in numbers if number not in self.layout.tasks]
        if lost:
            what = f"episode {entry.number} has task_index {lost[0]}, which meta/tasks has not"
            raise UserError(what, "", _AGAIN)
        return [self.layout.tasks[number] for number in numbers]


def _is_readable(dtype: str, shape: Sequence[int], is_depth: bool) -> bool:
    """Whether a feature is a vector of numbers, or a picture in colours."""
    if dtype in ("video", "image"):
        return not is_depth
    return len(shape) <= 1 and dtype not in ("string", "audio")


def _vectors(rows: Any, name: str, shape: Sequence[int], entry: EpisodeEntry) -> Array:
    """A column as (frames, n)."""
    column, size = rows.column(name).combine_chunks(), shape[0]
    try:
        flat = column.flatten() if hasattr(column, "flatten") and _is_list(column) else column
        values = np.asarray(flat.to_numpy(zero_copy_only=False))
        return values.reshape(len(rows), size)
    except (ValueError, TypeError):
        what = f"{name} of episode {entry.number} is not {size} numbers a frame"
        raise UserError(what, "", _AGAIN) from None


def _is_list(column: Any) -> bool:
    types = needed("pyarrow", "lerobot").types
    kind = column.type
    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


@dataclass(frozen=True)
class _Stored:
    """Pictures as PNG or JPEG bytes in a column."""

    column: Any
    said: str

    def __iter__(self) -> Iterator[bytes]:
        for frame, entry in enumerate(self.column):
            data = entry.as_py()
            if not isinstance(data, dict) or not data.get("bytes"):
                raise UserError(f"{self.said} has no picture of frame {frame}", "", _AGAIN)
            yield data["bytes"]


def _success(rows: Any) -> bool | None:
    if SUCCESS not in rows.column_names:
        return None
    return bool(np.any(np.asarray(rows.column(SUCCESS).to_pylist(), dtype=bool)))


def read(path: str | Path, choice: Choice) -> LeRobot:
    """Open a dataset.

    Raises:
        UserError: it is missing, damaged or of another version; or a choice leaves nothing.
    """
    return LeRobot(path, choice)


def check(contract: Contract, options: Writing) -> int:
    """The frames a second; see `lerobot_write.check`."""
    from diffusion_policy_ros.data.formats import lerobot_write

    return lerobot_write.check(contract, options)


def write(dataset: str | Path, out: str | Path, options: Writing) -> Written:
    """Write a dataset of ours as v3.0; see `lerobot_write.write`."""
    from diffusion_policy_ros.data.formats import lerobot_write

    return lerobot_write.write(dataset, out, options)
