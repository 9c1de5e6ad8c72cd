"""A dataset on disk, and the windows that training draws from it.

    windows = WindowDataset("dataset", n_obs_steps=2, horizon=16)
    batch = windows.batch(np.arange(64))     # key → (64, 2, …), action (64, 16, Da), …

A directory: ``dataset.yaml`` (contract, one line an episode) and ``shards/NAME/KEY.npy``, or
``KEY.images`` for pictures that are encoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract, same_meaning
from diffusion_policy_ros.data.index import INDEX, SHARDS, Episode, Index
from diffusion_policy_ros.data.pictures import Files
from diffusion_policy_ros.data.shards import ACTION, STAMP, Rows, open_shard
from diffusion_policy_ros.data.statistics import QUANTILES, Running, of_pixels, of_vectors
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

TASK = "task"
"""What those who see windows are told besides: the episodes' tasks, text (B,)."""
SAMPLED_IMAGES = 512
"""Statistics of images are of this many frames, evenly spread; more would tell the same."""
SEEN_AT_ONCE, SEEN_IN_ALL = 4096, 65536
"""Windows that are seen at once for their statistics, and that quantiles are of at most."""

See = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Dataset:
    """A dataset that is open for reading, or several of one meaning as if they were one.

    Attributes:
        path: its folder; the first one's of several.
        paths: all of them.
        contract: the robot that it was recorded on.
        episodes: its episodes, without those that were dropped.
        origin: for each of them, which of the folders it is in.
        lines: for each of them, its number in that folder's index.

    Raises:
        UserError: it is missing, incomplete or damaged, or they are not of one meaning.
    """

    def __init__(self, path: str | Path | Sequence[str | Path]) -> None:
        several = [path] if isinstance(path, str | Path) else path
        self.paths = [Path(p) for p in several]
        self.path = self.paths[0]
        self.episodes: list[Episode] = []
        self.origin: list[int] = []
        self.lines: list[int] = []
        self._first: list[int] = []
        files, parts, rows = Files(), [], 0
        for number, folder in enumerate(self.paths):
            index, contract = _open_index(folder)
            if number == 0:
                self.contract = contract
            _check_same(self.contract, contract, folder, self.path)
            offset: dict[str, int] = {}
            for name, count in index.shards.items():
                parts.append(open_shard(folder / SHARDS / name, contract, count, files))
                offset[name], rows = rows, rows + count
            lines = [n for n, episode in enumerate(index.episodes) if not episode.dropped]
            kept = [index.episodes[n] for n in lines]
            self.lines += lines
            self.episodes += kept
            self._first += [offset[episode.shard] + episode.start for episode in kept]
            self.origin += [number] * len(kept)
        if not self.episodes:
            cure = "convert at least one bag into it, or keep some: diffusion-policy data keep"
            raise UserError("holds no episodes", str(self.path), cure)
        self.rows = {key: Rows([part[key] for part in parts]) for key in parts[0]}

    def first_row(self, number: int) -> int:
        """An episode's first row, counted over all shards, as `rows` counts them."""
        return self._first[number]

    def episode(self, number: int) -> dict[str, Array]:
        """An episode's arrays: key → (frames, ...), with ``action`` and ``stamp_ns``."""
        start = self.first_row(number)
        rows = np.arange(start, start + self.episodes[number].frames)
        return {key: column.take(rows) for key, column in self.rows.items()}


def _open_index(folder: Path) -> tuple[Index, Contract]:
    index, where = Index.load(folder), str(folder / INDEX)
    contract = Contract.from_text(index.contract, f"{where}: contract")
    if not same_meaning(contract.hash, index.contract_hash):
        cure = "convert the bags again with the contract that is meant"
        raise UserError("the meaning of its contract was edited", where, cure)
    return index, contract


def _check_same(ours: Contract, theirs: Contract, folder: Path, first: Path) -> None:
    if ours.hash != theirs.hash:
        what = f"means something else than {first}; they differ in {ours.difference(theirs)}"
        raise UserError(what, str(folder), "use datasets of one contract's meaning")


class WindowDataset:
    """Windows of a dataset: `len` of them, one a frame, drawn in batches.

    Window i has a newest observed frame t: observations are t-To+1 … t, actions t-To+1 … t-To+H.
    Both repeat the episode's first and last frame beyond its ends, and never cross into another
    episode; ``action_is_pad`` marks the repeated actions. A window's observations are what
    `History.window` gives at that frame.

    Args:
        path: the dataset, or its folder.
        n_obs_steps: To.
        horizon: H.
        episodes: numbers of the episodes to draw from; all by default.
        seen_steps: frames of observations in a window, from its oldest; To by default. Up to H,
            for those who learn to predict observations, too.
        pad_after: repeated actions at a window's end, at most; any by default. What would have
            more is no window.
        see: what a network sees of windows; batches and statistics are of that. It goes by the
            window, and leaves images as they are.

    Attributes:
        contract: the robot that it was recorded on.
        episodes: the episodes that are drawn from.
        numbers: which of the dataset's they are.
        frames: their rows in the dataset, which has those that were dropped or trimmed, too.

    Raises:
        UserError: the dataset is missing, incomplete or damaged, or has no such episode.
    """

    def __init__(
        self,
        path: str | Path | Dataset,
        n_obs_steps: int,
        horizon: int,
        episodes: Sequence[int] | None = None,
        seen_steps: int | None = None,
        pad_after: int | None = None,
        see: See | None = None,
    ) -> None:
        where = path.path if isinstance(path, Dataset) else path
        if n_obs_steps < 1 or horizon < n_obs_steps:
            what = f"n_obs_steps {n_obs_steps} and horizon {horizon} make no window"
            raise UserError(what, str(where), "use 1 <= n_obs_steps <= horizon")
        self.dataset = path if isinstance(path, Dataset) else Dataset(path)
        self.contract = self.dataset.contract
        self.n_obs_steps, self.horizon, self._see = n_obs_steps, horizon, see
        self.seen_steps = n_obs_steps if seen_steps is None else seen_steps
        self.numbers = self._checked(episodes)
        self.episodes = [self.dataset.episodes[number] for number in self.numbers]
        lengths = np.array([episode.frames for episode in self.episodes])
        firsts = np.array([self.dataset.first_row(number) for number in self.numbers])
        self.frames = np.repeat(firsts, lengths) + _counted(lengths)
        ahead = horizon - n_obs_steps  # actions after the newest frame's
        cut = 0 if pad_after is None else max(ahead - pad_after, 0)
        self._counts = np.maximum(lengths - cut, 0)  # of each episode's windows
        self._first = np.repeat(firsts, self._counts)
        self._last = np.repeat(firsts + lengths - 1, self._counts)
        self._row = self._first + _counted(self._counts)
        if not len(self._row):
            what = f"its episodes are shorter than {cut + 1} frames"
            raise UserError(what, str(where), "lower horizon, or raise training.pad_after")

    def _checked(self, episodes: Sequence[int] | None) -> Sequence[int]:
        count = len(self.dataset.episodes)
        if episodes is None:
            return range(count)
        wrong = [number for number in episodes if not 0 <= number < count]
        if wrong or not len(episodes):
            what = f"has no episode {wrong[0]}" if wrong else "no episode was chosen"
            raise UserError(what, str(self.dataset.path), f"choose from 0 to {count - 1}")
        return [int(number) for number in episodes]

    def __len__(self) -> int:
        return len(self._row)

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> dict[str, Array]:
        """Some windows.

        Args:
            indices: (B,) numbers of windows.

        Returns:
            key → (B, To, H, W, C) uint8 or (B, To, n) float32; ``action`` (B, H, Da) float32;
            ``action_is_pad`` (B, H) bool.
        """
        return self._windows(np.asarray(indices), list(self.contract.observations))

    def _windows(self, indices: NDArray[np.integer], keys: Sequence[str]) -> dict[str, Array]:
        rows, padding = self._rows(indices)
        observed = rows[:, : self.seen_steps]
        found = {key: self.dataset.rows[key].take(observed) for key in keys}
        found[ACTION] = self.dataset.rows[ACTION].take(rows)
        if self._see is None:
            return {**found, "action_is_pad": padding}
        seen = self._see({**found, TASK: self._tasks[self.episode_of[indices]]})
        return {**seen, "action_is_pad": padding}

    def padding(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.bool_]:
        """``action_is_pad`` of some windows, without reading them: (B, H)."""
        return self._rows(np.asarray(indices))[1]

    def _rows(self, indices: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Their actions' rows in the dataset, and which of them are repetitions: (B, H) both."""
        wanted = self._row[indices, None] + np.arange(
            1 - self.n_obs_steps, self.horizon - self.n_obs_steps + 1
        )
        rows = np.clip(wanted, self._first[indices, None], self._last[indices, None])
        return rows, rows != wanted

    @functools.cached_property
    def _tasks(self) -> NDArray[np.object_]:
        return np.array([episode.task for episode in self.episodes], dtype=object)

    @functools.cached_property
    def episode_of(self) -> NDArray[np.int64]:
        """(len,) which of `episodes` each window belongs to."""
        return np.repeat(np.arange(len(self.episodes)), self._counts)

    def statistics(self, images: bool = True) -> dict[str, dict[str, Array]]:
        """Statistics of the frames that are drawn from, or with `see` of what is seen of windows.

        Actions beyond an episode's ends do not count.

        Args:
            images: whether of images, too, which no normaliser needs.

        Returns:
            key → ``min``, ``max``, ``mean``, ``std`` (each (n,) of a vector, (C,) of an image in 0
            … 255) and ``quantiles`` (len(QUANTILES), n). Images are sampled: `SAMPLED_IMAGES`.
        """
        streams = self.contract.observations
        vectors = [key for key, stream in streams.items() if not stream.is_image]
        plain = [key for key in streams if images and key not in vectors]
        plain += [*vectors, ACTION] if self._see is None else []
        found = {key: self._describe(self.dataset.rows[key]) for key in plain}
        return found | ({} if self._see is None else self._of_windows(vectors))

    def _of_windows(self, vectors: Sequence[str]) -> dict[str, dict[str, Array]]:
        """Statistics of what is seen of vectors and actions, all windows in turn."""
        sums = {key: Running(-(-len(self) // SEEN_IN_ALL)) for key in (*vectors, ACTION)}
        for start in range(0, len(self), SEEN_AT_ONCE):
            indices = np.arange(start, min(start + SEEN_AT_ONCE, len(self)))
            windows = self._windows(indices, vectors)
            counts = ~windows["action_is_pad"]
            for key in vectors:
                sums[key].add(windows[key].reshape(-1, windows[key].shape[-1]))
            sums[ACTION].add(windows[ACTION][counts])
        return {key: found.statistics() for key, found in sums.items()}

    def _describe(self, column: Rows) -> dict[str, Array]:
        image = len(column.shape) == 3
        step = max(1, -(-len(self.frames) // SAMPLED_IMAGES)) if image else 1
        values = column.take(self.frames[::step])
        values = values.reshape(-1, column.shape[-1])
        return of_pixels(values) if image else of_vectors(values)


def _counted(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... of each length, one after another."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


__all__ = [
    "ACTION",
    "INDEX",
    "QUANTILES",
    "STAMP",
    "Dataset",
    "Episode",
    "Index",
    "WindowDataset",
]
