"""A dataset on disk, and the windows that training draws from it.

    windows = WindowDataset("dataset", n_obs_steps=2, horizon=16)
    batch = windows.batch(np.arange(64))     # key → (64, 2, …), action (64, 16, Da), …

A directory: ``dataset.yaml`` (contract, one line an episode) and ``shards/NAME/KEY.npy``. Plain
arrays, nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from diffusion_policy_ros import strict_yaml
from diffusion_policy_ros.contract import Contract, same_meaning
from diffusion_policy_ros.data.shards import ACTION, STAMP, Rows, open_shard
from diffusion_policy_ros.data.statistics import QUANTILES, Running, of_pixels, of_vectors
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

INDEX, SHARDS = "dataset.yaml", "shards"
FORMAT = 1
SAMPLED_IMAGES = 512
"""Statistics of images are of this many frames, evenly spread; more would tell the same."""
SEEN_AT_ONCE, SEEN_IN_ALL = 4096, 65536
"""Windows that are seen at once for their statistics, and that quantiles are of at most."""

See = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Episode:
    """A stretch of frames without a gap.

    Attributes:
        bag: the name of the bag that it comes from.
        hash: that bag's content.
        shard: the shard that it stands in.
        start: its first row there.
        frames: its length.
        success: what the recorder said of it; None where it said nothing.
    """

    bag: str
    hash: str
    shard: str
    start: int = dataclasses.field(metadata={"min": 0})
    frames: int = dataclasses.field(metadata={"min": 1})
    success: bool | None = None


@dataclass(frozen=True)
class Index:
    """What ``dataset.yaml`` says.

    Attributes:
        format: version of this layout.
        contract: the contract's text.
        contract_hash: what that text meant when it was written.
        shards: name → rows.
        episodes: in the order of conversion.
    """

    format: int
    contract: str
    contract_hash: str
    shards: dict[str, int]
    episodes: tuple[Episode, ...]

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read a dataset's index.

        Raises:
            UserError: there is none, or it has mistakes.
        """
        path = folder / INDEX
        try:
            text = path.read_text(encoding="utf-8")
        except PermissionError:
            raise UserError("may not be read", str(path), "change its permissions") from None
        except (OSError, UnicodeDecodeError):
            what = "is no dataset" if folder.exists() else "no such dataset"
            cure = "make one: diffusion-policy convert --contract C BAG... --out DATASET"
            raise UserError(what, str(folder), cure) from None
        index = strict_yaml.parse(cls, text, str(path))
        if index.format != FORMAT:
            cure = "convert the bags again, or update the package"
            raise UserError(f"has format {index.format}, known is {FORMAT}", str(path), cure)
        lost = {episode.shard for episode in index.episodes} - index.shards.keys()
        beyond = [
            e.bag for e in index.episodes if e.start + e.frames > index.shards.get(e.shard, 0)
        ]
        if lost or beyond:
            what = f"the episode of {beyond[0]} is not in its shard"
            raise UserError(what, str(path), "copy the dataset again, or convert the bags again")
        return index

    def save(self, folder: Path) -> None:
        """Replace a dataset's index in one step."""
        draft = folder / f".{INDEX}"
        with draft.open("w", encoding="utf-8") as file:
            file.write(self._text())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / INDEX)

    def _text(self) -> str:
        head = {
            "format": self.format,
            "contract_hash": self.contract_hash,
            "contract": _Block(self.contract),
            "shards": self.shards,
        }
        text = yaml.dump(head, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        # JSON is YAML: one line an episode.
        lines = (f"- {json.dumps(dataclasses.asdict(episode))}\n" for episode in self.episodes)
        return f"{text}episodes:\n{''.join(lines)}" if self.episodes else f"{text}episodes: []\n"


class _Block(str):
    """Text that is written as a block, line by line."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


class Dataset:
    """A dataset that is open for reading.

    Attributes:
        path: its folder.
        contract: the robot that it was recorded on.
        episodes: its episodes.

    Raises:
        UserError: it is missing, incomplete or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = Index.load(self.path)
        self.contract = Contract.from_text(index.contract, f"{self.path / INDEX}: contract")
        if not same_meaning(self.contract.hash, index.contract_hash):
            cure = "convert the bags again with the contract that is meant"
            raise UserError("the meaning of its contract was edited", str(self.path / INDEX), cure)
        self.episodes = list(index.episodes)
        if not self.episodes:
            raise UserError(
                "holds no episodes", str(self.path), "convert at least one bag into it"
            )
        shards = [
            open_shard(self.path / SHARDS / name, self.contract, rows)
            for name, rows in index.shards.items()
        ]
        offsets = np.cumsum([0, *index.shards.values()])
        self._offset = dict(zip(index.shards, offsets.tolist(), strict=False))
        self.rows = {key: Rows([shard[key] for shard in shards]) for key in shards[0]}

    def first_row(self, episode: Episode) -> int:
        """Its first row, counted over all shards, as `rows` counts them."""
        return int(self._offset[episode.shard]) + episode.start

    def episode(self, number: int) -> dict[str, Array]:
        """An episode's arrays: key → (frames, ...), with ``action`` and ``stamp_ns``."""
        episode = self.episodes[number]
        start = self.first_row(episode)
        rows = np.arange(start, start + episode.frames)
        return {key: column.take(rows) for key, column in self.rows.items()}


class WindowDataset:
    """Windows of a dataset: `len` of them, one a frame, drawn in batches.

    Window i has a newest observed frame t: observations are t-To+1 … t, actions t-To+1 … t-To+H.
    Both repeat the episode's first and last frame beyond its ends, and never cross into another
    episode; ``action_is_pad`` marks the repeated actions. A window's observations are what
    `History.window` gives at that frame.

    Args:
        path: the dataset's folder.
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

    Raises:
        UserError: the dataset is missing, incomplete or damaged, or has no such episode.
    """

    def __init__(
        self,
        path: str | Path,
        n_obs_steps: int,
        horizon: int,
        episodes: Sequence[int] | None = None,
        seen_steps: int | None = None,
        pad_after: int | None = None,
        see: See | None = None,
    ) -> None:
        if n_obs_steps < 1 or horizon < n_obs_steps:
            what = f"n_obs_steps {n_obs_steps} and horizon {horizon} make no window"
            raise UserError(what, str(path), "use 1 <= n_obs_steps <= horizon")
        self.dataset = Dataset(path)
        self.contract = self.dataset.contract
        self.n_obs_steps, self.horizon, self._see = n_obs_steps, horizon, see
        self.seen_steps = n_obs_steps if seen_steps is None else seen_steps
        self.episodes = [self.dataset.episodes[number] for number in self._checked(episodes)]
        lengths = np.array([episode.frames for episode in self.episodes])
        firsts = np.array([self.dataset.first_row(episode) for episode in self.episodes])
        self._frames = np.repeat(firsts, lengths) + _counted(lengths)
        ahead = horizon - n_obs_steps  # actions after the newest frame's
        cut = 0 if pad_after is None else max(ahead - pad_after, 0)
        self._counts = np.maximum(lengths - cut, 0)  # of each episode's windows
        self._first = np.repeat(firsts, self._counts)
        self._last = np.repeat(firsts + lengths - 1, self._counts)
        self._row = self._first + _counted(self._counts)
        if not len(self._row):
            what = f"its episodes are shorter than {cut + 1} frames"
            raise UserError(what, str(path), "lower horizon, or raise training.pad_after")

    def _checked(self, episodes: Sequence[int] | None) -> Collection[int]:
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
        seen = found if self._see is None else self._see(found)
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
        step = max(1, -(-len(self._frames) // SAMPLED_IMAGES)) if image else 1
        values = column.take(self._frames[::step])
        values = values.reshape(-1, column.shape[-1])
        return of_pixels(values) if image else of_vectors(values)


def _counted(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... of each length, one after another."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


__all__ = ["ACTION", "QUANTILES", "STAMP", "Dataset", "Episode", "Index", "WindowDataset"]
