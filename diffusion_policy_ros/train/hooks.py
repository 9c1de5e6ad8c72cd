"""What is measured every n updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import TrainingSettings
from diffusion_policy_ros.policy.validation import validate
from diffusion_policy_ros.train.batches import VALIDATION, torch_generator


class Hook(NamedTuple):
    """Measures the averaged policy now and then, in the first of several processes.

    Attributes:
        names: of its numbers, as loss.csv and loggers have them.
        every: updates between, and once after the last; 0 for only that.
        measure: policy -> its numbers.
    """

    names: Sequence[str]
    every: int
    measure: Callable[[DiffusionPolicy], Sequence[float]]


def due(update: int, every: int) -> bool:
    """Whether something that happens every so many updates happens after this one."""
    return every > 0 and update % every == 0


def validation_hook(windows: WindowDataset | None, settings: TrainingSettings) -> Iterator[Hook]:
    """Validates on held-out windows, where there are any."""
    if windows is not None:
        names = ("val_loss", "val_action_error")
        most, seed = settings.val_windows, settings.seed

        def measure(policy: DiffusionPolicy) -> tuple[float, float]:
            return validate(policy, windows, most, torch_generator(seed, VALIDATION))

        yield Hook(names, settings.val_every, measure)
