"""What learns: the weights, their averages, the optimiser, and what is kept of them."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import (
    TrainingState,
    find_checkpoint,
    load_exactly,
    load_policy,
    load_training_state,
    point_to_best,
    run_checkpoints,
    save_checkpoint,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import ACTION, CONSTANT
from diffusion_policy_ros.policy.objective import masked_mean
from diffusion_policy_ros.policy.pretrained import load_backbone, read_weights
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings
from diffusion_policy_ros.train.batches import NOISE, VALIDATION, Batch, Data, torch_generator
from diffusion_policy_ros.train.distributed import Peers

VALIDATION_BATCH = 64
SAMPLED_WINDOWS = 64  # of a validation, for the action error


def checkpoint_path(out: Path, update: int) -> Path:
    """Where a run's checkpoint of an update is."""
    return out / "checkpoints" / f"update_{update:06d}"


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


def _sums(
    shares: Iterable[tuple[Tensor, tuple[Tensor, ...]]],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses and gradients, added up in the shares' order."""
    losses: list[Tensor] = []
    total: tuple[Tensor, ...] | None = None
    owned = False
    for loss, gradients in shares:
        losses.append(loss)
        if total is None:
            total = gradients
        elif not owned:  # autograd may give one tensor for two weights: first into memory of ours
            total, owned = tuple(torch._foreach_add(total, gradients)), True
        else:
            torch._foreach_add_(total, gradients)
    assert total is not None, "a batch has a share"
    return torch.stack(losses).sum(), total


def _beyond(known: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Iterator[str]:
    """Say which keys of the data reach far beyond what another normaliser was fitted to."""
    for name in (name.removesuffix(".center") for name in data if name.endswith(".center")):
        center, spread = known[f"{name}.center"], known[f"{name}.spread"]
        reach = (data[f"{name}.center"] - center).abs() + data[f"{name}.spread"]
        far = torch.where(spread > 0, reach / spread, torch.where(reach > CONSTANT, math.inf, 0.0))
        times, key = float(far.max()), name.rpartition(".")[2]
        if times > 1.2:
            cure = "training.init_normalizer=dataset takes the new range"
            yield f"warning   {key} reaches {times:.2g} times what it was scaled by; {cure}"


def _shares(windows: int, count: int) -> list[slice]:
    """Cut a batch into parts of nearly the same size."""
    ends = [windows * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(ends) if b > a]


class Learner:
    """A policy, its averaged copy and its optimiser.

    Attributes:
        recipe: what is trained.
        policy: the weights being trained.
        average: the policy with averaged weights, which validates and is saved.
        group: the processes that train together.
        update: updates done.
        seconds: spent on them, over all sittings.
        best_error, best_update: smallest action error of a validation, and when it was.
        stale: validations since then.
    """

    def __init__(
        self, recipe: Recipe, data: Data, device: torch.device, group: Peers | None = None
    ) -> None:
        self.recipe, self.update, self.seconds = recipe, 0, 0.0
        self.best_error, self.best_update, self.stale = math.inf, 0, 0
        self.group = group or Peers(device)
        contract, settings = data.training.contract, recipe.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.policy = DiffusionPolicy(recipe, contract)
            self.average = DiffusionPolicy(recipe, contract)
        self.policy.set_statistics(data.training.statistics(images=False))
        self.average.load_state_dict(self.policy.state_dict())
        self.policy.to(device).train()
        self.average.to(device).eval().requires_grad_(False)
        parameters, averages = (
            self.policy.named_parameters(),
            dict(self.average.named_parameters()),
        )
        self._learned = {name: weight for name, weight in parameters if weight.requires_grad}
        self._weights: list[Tensor] = list(self._learned.values())
        self._averages: list[Tensor] = [averages[name] for name in self._learned]
        beta1, beta2 = settings.betas
        self.optimizer = torch.optim.AdamW(
            decay_groups(self._learned, settings),
            lr=settings.lr,
            betas=(beta1, beta2),
            fused=device.type in ("cpu", "cuda"),
        )
        side_by_side = device.type == "cpu" and settings.batch_shares > 1
        self._pool = ThreadPoolExecutor(settings.batch_shares) if side_by_side else None
        if settings.compile:
            self.policy.compile_networks()

    @property
    def finished(self) -> bool:
        """Whether all updates are done, or no validation improves any more."""
        settings = self.recipe.training
        return self.update >= settings.updates or 0 < settings.early_stop <= self.stale

    @property
    def just_improved(self) -> bool:
        """Whether this update is the best so far and the best is to be kept."""
        return self.recipe.training.early_stop > 0 and self.best_update == self.update > 0

    def learn(self, batch: Batch) -> Tensor:
        """One update; its loss, a scalar that has not been waited for on a GPU."""
        begun, settings = time.perf_counter(), self.recipe.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.update) * group["lr_share"]
        loss = self._backward(batch)
        if settings.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self._weights, settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(
                self._averages, self._weights, 1.0 - ema_decay(settings, self.update)
            )
        self.update += 1
        self.seconds += time.perf_counter() - begun
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        """Set the gradients of the whole batch's loss, its shares computed side by side."""
        settings, count = self.recipe.training, len(batch.padding)
        draws = self.policy.draw(count, torch_generator(settings.seed, NOISE, self.update))
        draws = draws.pinned() if self.policy.device.type == "cuda" else draws
        counting = np.ones(count)  # how much of the batch's mean is each window's
        if settings.mask_padding:
            counting = (~batch.padding[:, self.recipe.policy.predicted]).sum(1)

        def share(here: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
            part = {key: value[here] for key, value in batch.arrays.items()}
            where = slice(batch.where.start + here.start, batch.where.start + here.stop)
            weight = float(counting[where].sum() / max(counting.sum(), 1))
            with self._precision():
                loss = self.policy.loss(part, draws=draws.part(where)) * weight
            return loss.detach(), torch.autograd.grad(loss, self._weights)

        run = map if self._pool is None else self._pool.map
        mine = batch.where.stop - batch.where.start
        parts = _shares(mine, settings.batch_shares * settings.gradient_accumulation)
        loss, gradients = _sums(run(share, parts))
        self.group.add_up([loss, *gradients])
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        return loss

    def _precision(self) -> AbstractContextManager[object]:
        mixed = self.recipe.training.precision == "bfloat16"
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=mixed)

    def check(self, windows: WindowDataset | None) -> tuple[float, float]:
        """Validate in the first process, and note whether it is the best so far."""
        nothing = (math.nan, math.nan)
        found = self.group.from_first(self.validate(windows) if self.group.first else nothing)
        self.group.check_equal(self._weights)
        self.stale += 1
        if found[1] < self.best_error:
            self.best_error, self.best_update, self.stale = found[1], self.update, 0
        return found

    @torch.inference_mode()
    def validate(self, windows: WindowDataset | None) -> tuple[float, float]:
        """Loss and error of sampled actions on held-out windows, of the averaged weights.

        Windows and noise are the same each time, so that the numbers can be compared. The action
        error is the mean distance of the executed actions, normalised. NaN without windows.
        """
        if windows is None:
            return math.nan, math.nan
        settings = self.recipe.training
        count = min(len(windows), settings.val_windows)
        chosen = np.linspace(0, len(windows) - 1, count).round().astype(np.int64)
        generator = torch_generator(settings.seed, VALIDATION)
        losses = []
        for start in range(0, count, VALIDATION_BATCH):
            batch = windows.batch(chosen[start : start + VALIDATION_BATCH])
            loss = float(self.average.loss(batch, generator))
            losses.append(loss * len(batch[ACTION]))
        few = chosen[np.linspace(0, count - 1, min(count, SAMPLED_WINDOWS)).round().astype(int)]
        return sum(losses) / count, self._action_error(windows.batch(few), generator)

    def _action_error(self, batch: dict[str, NDArray[Any]], generator: torch.Generator) -> float:
        policy = self.recipe.policy
        ahead = slice(policy.n_obs_steps - 1, policy.n_obs_steps - 1 + policy.n_action_steps)
        normalize = self.average.normalizer[ACTION].normalize
        device = self.average.device
        truth = normalize(torch.as_tensor(batch[ACTION]).to(device))
        keys = self.average.frames.seen.observations
        seen = {key: batch[key][:, : policy.n_obs_steps] for key in keys}
        guess = normalize(self.average.sample_seen(seen, generator=generator))[:, policy.executed]
        is_pad = torch.as_tensor(batch["action_is_pad"]).to(device)
        return float(masked_mean((guess - truth[:, ahead]).abs(), is_pad[:, ahead]))

    def save(self, out: Path, data: Data, notes: str) -> None:
        """Write a checkpoint of this update and remove those that are too old."""
        values = {
            "update": self.update,
            "seconds": self.seconds,
            "dataset": str(data.training.dataset.path),
            "fingerprint": data.fingerprint,
            "best_action_error": self.best_error if self.best_update else None,
            "best_update": self.best_update,
            "stale_validations": self.stale,
        }
        trained = (
            f"- Trained for {self.update} updates on {len(data.training.episodes)} episodes, "
            f"{len(data.training)} windows\n"
        )
        state = TrainingState(self._state_tensors(), values)
        name = checkpoint_path(out, self.update)
        save_checkpoint(
            name, self.average, state=state, episodes=data.roles, notes=trained + notes
        )
        best = self.best_checkpoint(out)
        point_to_best(out, best if self.recipe.training.early_stop > 0 else None)
        keep = self.recipe.training.keep_checkpoints
        for old in run_checkpoints(out)[:-keep] if keep else []:
            if old != best:
                shutil.rmtree(old)

    def best_checkpoint(self, out: Path) -> Path:
        """Of the smallest action error where training stops by it, else the newest."""
        best = checkpoint_path(out, self.best_update)
        stops = self.recipe.training.early_stop > 0
        return best if stops and best.is_dir() else run_checkpoints(out)[-1]

    def _state_tensors(self) -> dict[str, Tensor]:
        tensors = {f"weights/{name}": value for name, value in self.policy.state_dict().items()}
        for name, weight in self._learned.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}/{name}"] = self.optimizer.state[weight][moment]
        return tensors

    def begin(self) -> Iterator[str]:
        """Take over the weights that others trained, as the recipe asks; says which.

        Raises:
            UserError: a file is missing, or does not fit.
        """
        for key, eye in self.policy.encoder.image_encoders.items():
            if (file := eye.settings.weights) is not None:
                given = read_weights(Path(file), eye.settings.weights_sha256)
                found = load_backbone(eye.backbone, eye.settings.name, given)
                left = f"; not used: {', '.join(found.left)}" if found.left else ""
                yield f"weights   {key}: {found.taken} tensors of {file}{left}"
        self.average.load_state_dict(self.policy.state_dict())
        if self.recipe.training.init_from is not None:
            yield from self.begin_with(Path(self.recipe.training.init_from))

    def begin_with(self, checkpoint: Path) -> Iterator[str]:
        """Take over a checkpoint's averaged weights; says so, and what does not fit.

        Raises:
            UserError: there is none, or it is of another robot or network.
        """
        source, where = find_checkpoint(checkpoint), "training.init_from"
        given = load_policy(source, contract=self.policy.contract).state_dict()
        keeps = self.recipe.training.init_normalizer == "checkpoint"
        state = self.policy.state_dict().items()
        ours = {k: v.clone() for k, v in state if k.startswith("normalizer.")}
        load_exactly(self.policy, given if keeps else given | ours, f"{where}: {source}")
        self.average.load_state_dict(self.policy.state_dict())
        whose = "its statistics" if keeps else "this dataset's statistics"
        yield f"begins    with the weights of {source}, and {whose}"
        yield from _beyond(given, ours) if keeps else ()

    def restore(self, checkpoint: Path, data: Data) -> None:
        """Go on from a checkpoint of this run.

        Raises:
            UserError: it is damaged, or the dataset is another one.
        """
        state = load_training_state(checkpoint)
        if state.values["fingerprint"] != data.fingerprint:
            what = f"this run was begun with other episodes ({state.values['dataset']})"
            raise UserError(what, str(checkpoint), "give that dataset, or begin another run")
        averaged = load_policy(checkpoint, contract=data.training.contract)
        self.average.load_state_dict(averaged.state_dict())
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        load_exactly(self.policy, parts["weights"], str(checkpoint))
        self.update, self.seconds = int(state.values["update"]), float(state.values["seconds"])
        error = state.values.get("best_action_error")
        self.best_error = math.inf if error is None else float(error)
        self.best_update = int(state.values.get("best_update", 0))
        self.stale = int(state.values.get("stale_validations", 0))
        self._restore_moments(parts["exp_avg"], parts["exp_avg_sq"])

    def _restore_moments(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
        # Each laid out in memory like its weight: the fused optimiser takes that for granted.
        for name, weight in self._learned.items():
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(self.update), device=weight.device),
                "exp_avg": torch.empty_like(weight).copy_(first[name]).detach(),
                "exp_avg_sq": torch.empty_like(weight).copy_(second[name]).detach(),
            }
