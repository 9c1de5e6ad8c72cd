"""A dataset's batches: which windows make each, and how it is read ahead of its turn."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy_ros.data.dataset import Dataset, Episode, WindowDataset
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.frames import Frames
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings
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
    read: Read, update: int, where: slice, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """The batches of `update` and those after it, from what `read` gives."""
    upload = _pinned_upload(device) if device.type == "cuda" else _plain_upload(device)

    def prepare(number: int) -> tuple[Batch, Arrived]:
        arrays, padding = read(number)
        there, arrived = upload({key: torch.from_numpy(value) for key, value in arrays.items()})
        return Batch(there, where, padding), arrived

    def generate() -> Iterator[Batch]:
        number, ahead = update, reader.submit(prepare, update)
        while True:
            batch, arrived = ahead.result()
            number += 1
            ahead = reader.submit(prepare, number)
            arrived(batch.arrays)
            yield batch

    with ThreadPoolExecutor(1) as reader:
        yield generate()


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


def batch_indices(settings: TrainingSettings, windows: int, update: int) -> NDArray[np.int64]:
    """The windows of batch `update` (from 0): epochs of shuffled windows, one after another."""
    places = update * settings.batch_size + np.arange(settings.batch_size)
    epochs, within = places // windows, places % windows
    found = np.empty(settings.batch_size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        order = _epoch_order(settings.seed, windows, epoch)
        found[epochs == epoch] = order[within[epochs == epoch]]
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
    """

    training: WindowDataset
    validation: WindowDataset | None
    fingerprint: str
    failed: int = 0

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
            indices = batch_indices(settings, len(self.training), number)
            return self.training.batch(indices[where]), self.training.padding(indices)

        return read_ahead(read, update, where, group.device)


def open_data(path: str | Path, recipe: Recipe) -> Data:
    """Open a dataset and hold out its validation demonstrations, chosen by the seed.

    All episodes of a recording, which a gap has cut, go the same way.

    Raises:
        UserError: there is no such dataset, it is damaged, does not tell what the recipe sees, or
            all of it failed.
    """
    policy, settings = recipe.policy, recipe.training
    dataset = Dataset(path)
    frames = Frames(dataset.contract, policy, policy.n_obs_steps)
    groups = _demonstrations(dataset, settings)
    order = _numpy_generator(settings.seed, SPLIT).permutation(len(groups)).tolist()
    held = round(settings.validation_fraction * len(groups))
    if settings.validation_fraction > 0:
        held = min(max(held, 1), len(groups) - 1)

    def windows(chosen: list[int]) -> WindowDataset:
        return WindowDataset(
            path,
            policy.n_obs_steps,
            policy.horizon,
            sorted(number for group in chosen for number in groups[group]),
            policy.training_obs_steps,
            settings.pad_after,
            see=frames.to_network if frames.changes_any else None,
        )

    validation, used = windows(order[:held]) if held else None, sum(map(len, groups))
    cut = sorted(order[:held]) if used > len(groups) else []
    fingerprint = _fingerprint(dataset.episodes, cut, used)
    return Data(windows(order[held:]), validation, fingerprint, len(dataset.episodes) - used)


def _demonstrations(dataset: Dataset, settings: TrainingSettings) -> list[list[int]]:
    """The numbers of each recording's episodes, those that failed left out."""
    found: dict[str, list[int]] = {}
    for number, episode in enumerate(dataset.episodes):
        if settings.include_failed or episode.success is not False:
            found.setdefault(episode.hash, []).append(number)
    if not found:
        what = f"all {len(dataset.episodes)} episodes are marked as failed"
        cure = "record some that succeed, or set training.include_failed=true"
        raise UserError(what, str(dataset.path), cure)
    return list(found.values())


def _fingerprint(episodes: Sequence[Episode], held: Sequence[int], used: int) -> str:
    """Of the episodes, and of how they are used where older versions used them otherwise."""
    seen: list[Any] = [[e.source, e.hash, e.start, e.frames] for e in episodes]
    if held or used < len(episodes):
        seen.append([used, *held])
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
