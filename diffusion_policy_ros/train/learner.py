"""What learns: the weights, their averages, the optimiser, and what is kept of them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy import pretrained
from diffusion_policy_ros.policy.checkpoint import (
    TrainingState,
    load_exactly,
    load_policy,
    load_training_state,
    save_checkpoint,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy, Draws
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings
from diffusion_policy_ros.policy.run import Ranking, checkpoint_path, keep_checkpoints
from diffusion_policy_ros.train.batches import NOISE, Batch, Data, torch_generator
from diffusion_policy_ros.train.distributed import Peers

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def learning_rate(settings: TrainingSettings, update: int) -> float:
    """Of update `update` (from 0): a linear rise, then half a cosine down to nearly 0."""
    if update < settings.warmup_updates:
        return settings.lr * (update + 1) / settings.warmup_updates
    length = settings.updates if settings.decay_updates is None else settings.decay_updates
    left = max(length - settings.warmup_updates, 1)
    done = min((update - settings.warmup_updates) / left, 1.0)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def ema_decay(settings: TrainingSettings, update: int) -> float:
    """Of the averaged weights after update `update` (from 0): young averages forget quickly."""
    return min(settings.ema_decay, (1 + update) / (10 + update))


def decay_groups(
    weights: Mapping[str, Tensor], settings: TrainingSettings
) -> list[dict[str, object]]:
    """AdamW's groups of parameters: matrices and kernels are decayed, as GPT's and the reference's
    Transformer's are; biases, norms and learned positions are not.

    Args:
        weights: name in the policy -> parameter.
        settings: how much, and how much those of the encoders.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, weight in weights.items():
        decay, lr = settings.weight_decay, settings.lr
        if name.startswith("encoder."):
            own = settings.encoder_weight_decay, settings.encoder_lr
            decay, lr = (u if o is None else o for u, o in zip((decay, lr), own, strict=True))
        is_matrix = weight.ndim > 1 and name.endswith("weight")
        groups.setdefault((decay if is_matrix else 0.0, lr / settings.lr), []).append(weight)
    return [
        {"params": params, "weight_decay": decay, "lr_share": share}
        for (decay, share), params in groups.items()
    ]


class Part(NamedTuple):
    """Of a batch, what is computed at once: windows, random numbers, share of the loss."""

    arrays: dict[str, Tensor]
    draws: Draws
    weight: float


class Learner:
    """A policy, its averaged copy and its optimiser.

    Attributes:
        recipe: what is trained.
        data: what on.
        group: the processes that train together.
        policy, weights: what is being trained, and those of its weights that learn.
        average: the policy with averaged weights, which validates and is saved.
        ranking: which updates were best.
        update: updates done.
        seconds: spent on them, over all sittings.
    """

    def __init__(self, recipe: Recipe, data: Data, group: Peers | None = None) -> None:
        self.recipe, self.data, self.group = recipe, data, group or Peers()
        self.update, self.seconds = 0, 0.0
        settings, device = recipe.training, self.group.device
        self.ranking = Ranking(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.policy, self.average = (
                DiffusionPolicy(recipe, data.training.contract) for _ in range(2)
            )
        self.policy.set_statistics(data.training.statistics(images=False))
        self.average.load_state_dict(self.policy.state_dict())
        self.policy.to(device).train()
        self.average.to(device).eval()
        averages = dict(self.average.requires_grad_(False).named_parameters())
        trained = self.policy.named_parameters()
        self._learned = {name: weight for name, weight in trained if weight.requires_grad}
        self.weights: list[Tensor] = list(self._learned.values())
        self._averages: list[Tensor] = [averages[name] for name in self._learned]
        self.optimizer = torch.optim.AdamW(
            decay_groups(self._learned, settings),
            lr=settings.lr,
            betas=(settings.betas[0], settings.betas[1]),
            fused=device.type in ("cpu", "cuda"),
        )
        if settings.compile:
            self.policy.compile_networks()
        # Several processes exchange gradients while the rest of them is computed.
        several = self.group.several
        self._network: Any = (
            DistributedDataParallel(self.policy, broadcast_buffers=False)
            if several
            else self.policy
        )
        side_by_side = device.type == "cpu" and settings.batch_shares > 1 and not several
        self._pool = ThreadPoolExecutor(settings.batch_shares) if side_by_side else None

    def close(self) -> None:
        """Let go of the other processes; to be done before they part."""
        self._network = self.policy

    @property
    def finished(self) -> bool:
        """Whether all updates are done, or nothing improves any more."""
        return self.update >= self.recipe.training.updates or self.ranking.patience_is_over

    def learn(self, batch: Batch) -> Tensor:
        """One update; its loss, a scalar that has not been waited for on a GPU."""
        begun, settings = time.perf_counter(), self.recipe.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.update) * group["lr_share"]
        loss = self.backward(batch)
        if settings.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.weights, settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            decay = ema_decay(settings, self.update)
            torch._foreach_lerp_(self._averages, self.weights, 1.0 - decay)
        self.update += 1
        self.seconds += time.perf_counter() - begun
        return loss

    def backward(self, batch: Batch) -> Tensor:
        """Set the gradients of the whole batch's loss, which it returns, part by part."""
        parts = list(self._parts(batch))
        if self._pool is None or len(parts) == 1:
            losses = [self._accumulate(part, part is parts[-1]) for part in parts]
        else:
            losses, gradients = map(
                list, zip(*self._pool.map(self._gradients, parts), strict=True)
            )
            for weight, *found in zip(self.weights, *gradients, strict=True):
                weight.grad = functools.reduce(torch.add, found)  # always in this order
        return self.group.sum(torch.stack(losses).sum())

    def _parts(self, batch: Batch) -> Iterator[Part]:
        settings, count = self.recipe.training, len(batch.padding)
        draws = self.policy.draw(count, torch_generator(settings.seed, NOISE, self.update))
        draws = draws.pinned() if self.policy.device.type == "cuda" else draws
        counting = np.ones(count)  # how much of the batch's mean is each window's
        if settings.mask_padding:
            counting = (~batch.padding[:, self.recipe.policy.predicted]).sum(1)
        mine, number = batch.where, settings.batch_shares * settings.gradient_accumulation
        ends = [(mine.stop - mine.start) * i // number for i in range(number + 1)]
        for start, stop in [(a, b) for a, b in pairwise(ends) if b > a]:
            arrays = {key: value[start:stop] for key, value in batch.arrays.items()}
            where = slice(mine.start + start, mine.start + stop)
            weight = float(counting[where].sum() / max(counting.sum(), 1))
            yield Part(arrays, draws.part(where), weight)

    def _gradients(self, part: Part) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = self._loss(part)
        return loss.detach(), torch.autograd.grad(loss, self.weights)

    def _accumulate(self, part: Part, last: bool) -> Tensor:
        """Add a part's gradients to the weights'; after the last, those of all processes."""
        with self._network.no_sync() if self.group.several and not last else nullcontext():
            loss = self._loss(part)
            (loss * self.group.count).backward()  # of which the processes take the mean
        return loss.detach()

    def _loss(self, part: Part) -> Tensor:
        mixed = self.recipe.training.precision == "bfloat16"
        with torch.autocast(self.group.device.type, torch.bfloat16, enabled=mixed):
            loss: Tensor = self._network(part.arrays, part.draws) * part.weight
        return loss

    def begin(self) -> list[str]:
        """Take over the weights that others trained, as the recipe asks; says which.

        Raises:
            UserError: a file is missing, or does not fit.
        """
        said = list(pretrained.begin(self.policy))
        self.average.load_state_dict(self.policy.state_dict())
        return said

    def save(self, out: Path, notes: str) -> None:
        """Write a checkpoint of this update and remove those that need not be kept."""
        training = self.data.training
        values = {
            "update": self.update,
            "seconds": self.seconds,
            "dataset": str(training.dataset.path),
            "fingerprint": self.data.split.fingerprints[0],
            "best": self.ranking.best,
            "stale": self.ranking.stale,
        }
        trained = (
            f"- Trained for {self.update} updates on {len(training.episodes)} episodes, "
            f"{len(training)} windows\n- At the end: {notes}\n"
        )
        tensors = {f"weights/{name}": value for name, value in self.policy.state_dict().items()}
        for name, weight in self._learned.items():
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = self.optimizer.state[weight][moment]
        save_checkpoint(
            checkpoint_path(out, self.update),
            self.average,
            state=TrainingState(tensors, values),
            episodes=self.data.split.roles,
            notes=trained,
        )
        keep_checkpoints(out, self.recipe.training.keep_checkpoints, self.ranking.kept)

    def restore(self, checkpoint: Path) -> list[str]:
        """Go on from a checkpoint of this run; there is nothing to say of it.

        Raises:
            UserError: it is damaged, or the dataset is another one.
        """
        state = load_training_state(checkpoint)
        values = state.values
        if values["fingerprint"] not in self.data.split.fingerprints:
            what = f"this run was begun with other episodes ({values['dataset']})"
            cure = "give that dataset as it was, or begin another run with training.init_from"
            raise UserError(what, str(checkpoint), cure)
        averaged = load_policy(checkpoint, contract=self.data.training.contract)
        self.average.load_state_dict(averaged.state_dict())
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        load_exactly(self.policy, parts["weights"], str(checkpoint))
        # Laid out in memory like their weights: the fused optimiser takes that for granted.
        for name, weight in self._learned.items():
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(values["update"]), device=weight.device),
                **{m: torch.empty_like(weight).copy_(parts[m][name]).detach() for m in MOMENTS},
            }
        self.update, self.seconds = int(values["update"]), float(values["seconds"])
        self.ranking.restore(values)
        self.ranking.leave_out_removed(checkpoint.parent.parent)
        return []
