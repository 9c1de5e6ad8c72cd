"""What is learned from: which episodes, which of their windows make each batch, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy_ros.data.dataset import Dataset, WindowDataset
from diffusion_policy_ros.data.loader import batch_indices, prefetch
from diffusion_policy_ros.data.split import Split, split
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.frames import Frames
from diffusion_policy_ros.policy.recipe import DataSettings, Recipe, TrainingSettings
from diffusion_policy_ros.policy.tasks import check_task
from diffusion_policy_ros.train.distributed import Peers

# A seed's streams of random numbers must not coincide.
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


class Data(NamedTuple):
    """What is learned from, and what is validated on.

    Attributes:
        training: windows to learn from.
        validation: windows of held-out demonstrations; None where there are too few.
        split: which episodes these are of.
        shares: how often windows are drawn, see batch_indices; None for all alike.
    """

    training: WindowDataset
    validation: WindowDataset | None
    split: Split
    shares: NDArray[np.float64] | None = None

    def batches(
        self, settings: TrainingSettings, update: int, group: Peers | None = None
    ) -> AbstractContextManager[Iterator[Batch]]:
        """This process' part of the batches from `update` on, each read ahead of its turn."""
        group = group or Peers()
        where = group.part(settings.batch_size)

        def read(number: int) -> Batch:
            indices = self.indices(settings, number)
            arrays = self.training.batch(indices[where])
            return Batch(upload(arrays, group.device), where, self.training.padding(indices))

        return prefetch(read, update, settings.readers)

    def indices(self, settings: TrainingSettings, update: int) -> NDArray[np.int64]:
        """The windows of an update's whole batch."""
        seed, windows = (settings.seed, ORDER), len(self.training)
        return batch_indices(windows, settings.batch_size, update, seed, self.shares)


def open_data(path: str | Path | None, recipe: Recipe) -> Data:
    """Open what is learned from, and hold out its validation demonstrations.

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
    weights = np.array([episode.weight for episode in dataset.episodes])
    weights *= np.array([sources[origin].weight for origin in dataset.origin])
    found = split(
        dataset,
        [source.where for source in sources],
        weights.tolist(),
        settings.validation_fraction,
        np.random.default_rng([settings.seed, SPLIT]),
        settings.include_failed,
        bool(policy.tasks),
    )
    for number in (*found.training, *found.held_out) if policy.tasks else ():
        episode = dataset.episodes[number]
        line = dataset.lines[number]
        check_task(episode.task, policy.tasks, f"episode {line} ({episode.source})")
    frames = Frames(dataset.contract, policy, policy.n_obs_steps)

    def windows(numbers: list[int]) -> WindowDataset:
        return WindowDataset(
            dataset,
            policy.n_obs_steps,
            policy.horizon,
            numbers,
            policy.training_obs_steps,
            settings.pad_after,
            see=frames.to_network if frames.changes_any else None,
        )

    learned = windows(found.training)
    held = windows(found.held_out) if found.held_out else None
    return Data(learned, held, found, _shares(learned, weights))


def _shares(windows: WindowDataset, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """How often windows are drawn, by the weights of episodes; None where all are alike."""
    of_episodes = weights[windows.numbers]
    if (of_episodes == of_episodes[0]).all() and of_episodes[0] > 0:
        return None
    total = np.cumsum(of_episodes[windows.episode_of])
    if total[-1] <= 0:
        what = "all episodes have the weight 0"
        raise UserError(what, str(windows.dataset.path), "give some of them more")
    return np.asarray(total / total[-1])


def upload(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """To the device; to a GPU from page-locked memory, so that nobody waits for the copy."""
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    if device.type == "cuda":
        tensors = {key: value.pin_memory() for key, value in tensors.items()}
    return {key: value.to(device, non_blocking=True) for key, value in tensors.items()}


def torch_generator(seed: int, *stream: int) -> torch.Generator:
    """A generator of its own for each seed and stream of numbers."""
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
