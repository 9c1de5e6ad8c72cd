"""What is measured every n updates, and which checkpoints are best by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import ACTION
from diffusion_policy_ros.policy.objective import masked_mean
from diffusion_policy_ros.policy.recipe import TrainingSettings
from diffusion_policy_ros.train.batches import VALIDATION, torch_generator

VALIDATION_BATCH = 64
SAMPLED_WINDOWS = 64  # of a validation, for the action error
LARGER_IS_BETTER = ("success",)


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
        yield Hook(names, settings.val_every, lambda policy: validate(policy, windows, settings))


@torch.inference_mode()
def validate(
    policy: DiffusionPolicy, windows: WindowDataset, settings: TrainingSettings
) -> tuple[float, float]:
    """Loss and error of sampled actions on held-out windows.

    Windows and noise are the same each time, so that the numbers can be compared. The action error
    is the mean distance of the executed actions, normalised.
    """
    count = min(len(windows), settings.val_windows)
    chosen = np.linspace(0, len(windows) - 1, count).round().astype(np.int64)
    generator, total = torch_generator(settings.seed, VALIDATION), 0.0
    for start in range(0, count, VALIDATION_BATCH):
        batch = windows.batch(chosen[start : start + VALIDATION_BATCH])
        total += float(policy.loss(batch, generator)) * len(batch[ACTION])
    few = chosen[np.linspace(0, count - 1, min(count, SAMPLED_WINDOWS)).round().astype(int)]
    return total / count, _action_error(policy, windows.batch(few), generator)


def _action_error(
    policy: DiffusionPolicy, batch: Mapping[str, NDArray[Any]], generator: torch.Generator
) -> float:
    settings, device = policy.recipe.policy, policy.device
    ahead = slice(settings.n_obs_steps - 1, settings.n_obs_steps - 1 + settings.n_action_steps)
    normalize = policy.normalizer[ACTION].normalize
    truth = normalize(torch.as_tensor(batch[ACTION]).to(device))
    seen = {key: batch[key][:, : settings.n_obs_steps] for key in policy.frames.seen.observations}
    guess = normalize(policy.sample_seen(seen, generator=generator))[:, settings.executed]
    is_pad = torch.as_tensor(batch["action_is_pad"]).to(device)
    return float(masked_mean((guess - truth[:, ahead]).abs(), is_pad[:, ahead]))


@dataclass
class Ranking:
    """Which checkpoints are best by the recipe's metric.

    Attributes:
        best: (score, update), the smallest score first; as many as are kept, and one at least.
        stale: measurements since the first of them.
    """

    settings: TrainingSettings
    best: list[tuple[float, int]] = field(default_factory=list)
    stale: int = 0

    @property
    def kept(self) -> list[int]:
        """Updates whose checkpoints are kept for being good, the best first."""
        count = max(self.settings.keep_best, self.settings.early_stop > 0)
        return [update for _, update in self.best[:count]]

    @property
    def patience_is_over(self) -> bool:
        """Whether training ends because nothing improves any more."""
        return 0 < self.settings.early_stop <= self.stale

    def note(self, update: int, numbers: Mapping[str, float]) -> bool:
        """Take in what was measured; whether this update's checkpoint is now to be kept for it."""
        value = numbers.get(self.settings.metric, math.nan)
        if not math.isfinite(value):
            return False
        score = -value if self.settings.metric in LARGER_IS_BETTER else value
        improves = not self.best or score < self.best[0][0]
        self.stale = 0 if improves else self.stale + 1
        self.best = sorted([*self.best, (score, update)])[: max(self.settings.keep_best, 1)]
        return update in self.kept

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over what a checkpoint noted; older ones noted the best action error alone."""
        if values.get("best_update"):
            values = {
                "best": [[values["best_action_error"], values["best_update"]]],
                "stale": values["stale_validations"],
            }
        self.best = [(float(score), int(update)) for score, update in values.get("best", ())]
        self.stale = int(values.get("stale", 0))
