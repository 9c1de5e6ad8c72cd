"""A dataset's batches: which windows make each, and how it is read ahead of its turn."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy_ros.data.dataset import Dataset, WindowDataset
from diffusion_policy_ros.data.index import HELD_OUT, TRAIN
from diffusion_policy_ros.data.selection import select
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.frames import Frames
from diffusion_policy_ros.policy.recipe import DataSettings, Recipe, TrainingSettings
from diffusion_policy_ros.policy.tasks import check_task
from diffusion_policy_ros.train.distributed import Peers

# Streams of random numbers that must not coincide.
SPLIT, ORDER, NOISE, VALIDATION = range(4)


class Batch(NamedTuple):
    """What a process learns from in one update.

    Attributes:
        arrays: key -> (B, ...) tensors, on the device.
        where: which windows of the whole batch these are.
        padding: (whole batch, H), see WindowDataset.padding.
    """

    arrays: Mapping[str, Tensor]
    where: slice
    padding: NDArray[np.bool_]


Arrays = Mapping[str, NDArray[Any]]
Read = Callable[[int], tuple[Arrays, NDArray[np.bool_]]]  # number -> arrays, padding


@contextmanager
def read_ahead(
    read: Read, update: int, where: slice, device: torch.device, readers: int = 1
) -> Iterator[Iterator[Batch]]:
    """The batches of `update` and those after it, from what `read` gives.

    Each of the readers has a batch of its own in the making, so that as many lie ready or are on
    their way; they are handed out in order.
    """
    upload = _pinned_upload(device) if device.type == "cuda" else _plain_upload(device)

    def prepare(number: int) -> tuple[Batch, Arrived]:
        arrays, padding = read(number)
        there, arrived = upload({key: torch.from_numpy(value) for key, value in arrays.items()})
        return Batch(there, where, padding), arrived

    def generate() -> Iterator[Batch]:
        ahead = deque(pool.submit(prepare, update + i) for i in range(readers))
        for number in itertools.count(update + readers):
            batch, arrived = ahead.popleft().result()
            ahead.append(pool.submit(prepare, number))
            arrived(batch.arrays)
            yield batch

    pool = ThreadPoolExecutor(readers)
    try:
        yield generate()
    finally:
        pool.shutdown(cancel_futures=True)


Arrived = Callable[[Mapping[str, Tensor]], None]  # to be called before they are used
Upload = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], Arrived]]


def _plain_upload(device: torch.device) -> Upload:
    def upload(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arrived]:
        return {key: value.to(device) for key, value in tensors.items()}, lambda _: None

    return upload


def _pinned_upload(device: torch.device) -> Upload:
    """From page-locked memory, on a stream of its own: the GPU copies while it computes."""
    copying = torch.cuda.Stream(device)

    def upload(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arrived]:
        done = torch.cuda.Event()
        with torch.cuda.stream(copying):
            there = {
                key: value.pin_memory().to(device, non_blocking=True)
                for key, value in tensors.items()
            }
            done.record(copying)

        def arrived(used: Mapping[str, Tensor]) -> None:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(done)
            for tensor in used.values():
                tensor.record_stream(computing)  # its memory is not given away before that is done

        return there, arrived

    return upload


def _numpy_generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def torch_generator(seed: int, *stream: int) -> torch.Generator:
    """A generator of its own for each seed and stream of numbers."""
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def batch_indices(
    settings: TrainingSettings,
    windows: int,
    update: int,
    shares: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """The windows of batch `update` (from 0): epochs of shuffled windows, one after another.

    Args:
        settings: seed and size.
        windows: how many there are.
        update: the batch's number.
        shares: (windows,) share of draws of the windows up to each, the last is 1. An epoch then
            has each window as often as its share says, to within one (systematic resampling).
    """
    places = update * settings.batch_size + np.arange(settings.batch_size)
    epochs, within = places // windows, places % windows
    found = np.empty(settings.batch_size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        drawn = _epoch_order(settings.seed, windows, epoch)[within[epochs == epoch]]
        if shares is not None:
            start = _numpy_generator(settings.seed, ORDER, epoch, 1).random()
            drawn = np.searchsorted(shares, (drawn + start) / windows, side="right")
        found[epochs == epoch] = np.minimum(drawn, windows - 1)
    return found


@functools.lru_cache(maxsize=2)  # the epoch that is ending and the one that begins
def _epoch_order(seed: int, windows: int, epoch: int) -> NDArray[np.int64]:
    return _numpy_generator(seed, ORDER, epoch).permutation(windows)


class Data(NamedTuple):
    """A dataset, split by demonstrations.

    Attributes:
        training: windows to learn from.
        validation: windows of held-out demonstrations; None where there are too few.
        fingerprint: of the episodes and what is done with them; a resumed run must find the same.
        failed: episodes that are left out because the recorder said that they failed.
        left_out: episodes that the recipe did not choose.
        shares: how often windows are drawn, see batch_indices; None for all alike.
    """

    training: WindowDataset
    validation: WindowDataset | None
    fingerprint: str
    failed: int = 0
    left_out: int = 0
    shares: NDArray[np.float64] | None = None

    @property
    def roles(self) -> dict[str, str]:
        """Hash of each recording -> "trained" or "held out"."""
        held = () if self.validation is None else self.validation.episodes
        return {e.hash: "trained" for e in self.training.episodes} | {
            e.hash: "held out" for e in held
        }

    def batches(
        self, settings: TrainingSettings, update: int, group: Peers | None = None
    ) -> AbstractContextManager[Iterator[Batch]]:
        """This process' part of the batches from `update` on, each read ahead of its turn."""
        group = group or Peers()
        where = group.part(settings.batch_size)

        def read(number: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
            indices = batch_indices(settings, len(self.training), number, self.shares)
            return self.training.batch(indices[where]), self.training.padding(indices)

        return read_ahead(read, update, where, group.device, settings.readers)


def open_data(path: str | Path | None, recipe: Recipe) -> Data:
    """Open what is learned from, and hold out its validation demonstrations.

    All episodes of a recording, which a gap has cut, go the same way: as its episodes' split says,
    else by the seed; and only by the split where that holds some out.

    Args:
        path: a dataset; the recipe's own where none is given.
        recipe: which episodes, how many are held out, and what windows are.

    Raises:
        UserError: there is no such dataset, it is damaged, does not tell what the recipe sees, or
            nothing of it was chosen.
    """
    policy, settings = recipe.policy, recipe.training
    sources = recipe.data if path is None else (DataSettings(str(path)),)
    if not sources:
        raise UserError("no dataset", "train", "name one with --dataset, or in the recipe's data")
    dataset = Dataset([source.path for source in sources])
    frames = Frames(dataset.contract, policy, policy.n_obs_steps)
    chosen = _chosen(dataset, sources)
    groups = _demonstrations(dataset, chosen, settings)
    for number in _members(groups, range(len(groups))) if policy.tasks else ():
        episode = dataset.episodes[number]
        check_task(episode.task, policy.tasks, f"episode {number} ({episode.source})")
    training, held = _split(dataset, groups, settings)

    def windows(numbers: list[int]) -> WindowDataset:
        return WindowDataset(
            dataset,
            policy.n_obs_steps,
            policy.horizon,
            sorted(numbers),
            policy.training_obs_steps,
            settings.pad_after,
            see=frames.to_network if frames.changes_any else None,
        )

    learned = windows(_members(groups, training))
    weights = np.array([e.weight for e in dataset.episodes])
    weights *= np.array([sources[origin].weight for origin in dataset.origin])
    return Data(
        learned,
        windows(_members(groups, held)) if held else None,
        _fingerprint(dataset, groups, held, weights, [source.where for source in sources]),
        len(chosen) - sum(map(len, groups)),
        len(dataset.episodes) - len(chosen),
        _shares(learned, weights),
    )


def _members(groups: Sequence[Sequence[int]], places: Iterable[int]) -> list[int]:
    return [number for place in places for number in groups[place]]


def _chosen(dataset: Dataset, sources: Sequence[DataSettings]) -> list[int]:
    """The episodes that each dataset's `where` chooses."""
    found: list[int] = []
    for place, source in enumerate(sources):
        mine = [n for n, origin in enumerate(dataset.origin) if origin == place]
        episodes = [dataset.episodes[n] for n in mine]
        found += [mine[i] for i in select(episodes, source.where, source.path)]
    return found


def _demonstrations(
    dataset: Dataset, chosen: Sequence[int], settings: TrainingSettings
) -> list[list[int]]:
    """The numbers of each recording's episodes, those that failed left out."""
    found: dict[str, list[int]] = {}
    for number in chosen:
        episode = dataset.episodes[number]
        if settings.include_failed or episode.success is not False:
            found.setdefault(episode.hash, []).append(number)
    if not found:
        what = f"all {len(chosen)} episodes are marked as failed"
        cure = "record some that succeed, or set training.include_failed=true"
        raise UserError(what, str(dataset.path), cure)
    return list(found.values())


def _split(
    dataset: Dataset, groups: Sequence[Sequence[int]], settings: TrainingSettings
) -> tuple[list[int], list[int]]:
    """Which groups are learned from, and which are held out."""
    said = [{dataset.episodes[number].split for number in group} for group in groups]
    held = [place for place, splits in enumerate(said) if HELD_OUT in splits]
    free = [place for place, splits in enumerate(said) if not splits & {HELD_OUT, TRAIN}]
    if held:
        training = [place for place in range(len(groups)) if place not in held]
        if not training:
            what = "all episodes that were chosen are held out"
            raise UserError(what, str(dataset.path), "diffusion-policy data split DATASET train")
        return training, held
    order = _numpy_generator(settings.seed, SPLIT).permutation(len(free)).tolist()
    count = round(settings.validation_fraction * len(groups))
    if settings.validation_fraction > 0:
        count = max(count, 1)
    held = [free[place] for place in order[: min(count, len(groups) - 1)]]
    return [place for place in range(len(groups)) if place not in held], held


def _shares(windows: WindowDataset, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """How often windows are drawn; None where all are alike."""
    of_episodes = weights[windows.numbers]
    if (of_episodes == of_episodes[0]).all() and of_episodes[0] > 0:
        return None
    total = np.cumsum(of_episodes[windows.episode_of])
    if total[-1] <= 0:
        what = "all episodes have the weight 0"
        raise UserError(what, str(windows.dataset.path), "give some of them more")
    return np.asarray(total / total[-1])


def _fingerprint(
    dataset: Dataset,
    groups: Sequence[Sequence[int]],
    held: Sequence[int],
    weights: NDArray[np.float64],
    where: Sequence[str],
) -> str:
    """Of the episodes, and of how they are used where older versions used them otherwise."""
    episodes, used = dataset.episodes, sum(map(len, groups))
    seen: list[Any] = [[e.source, e.hash, e.start, e.frames] for e in episodes]
    cut = sorted(held) if used > len(groups) else []
    if cut or used < len(episodes):
        seen.append([used, *cut])
    if any(where) or any(e.split in (HELD_OUT, TRAIN) for e in episodes):
        seen.append(
            ["held out", _members(groups, held), "of", _members(groups, range(len(groups)))]
        )
    if (weights != 1).any():
        seen.append(["weights", *weights.tolist()])
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
