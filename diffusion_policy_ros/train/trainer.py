"""Training, from a dataset to a checkpoint; read it from top to bottom.

    RUN/recipe.yaml                  what was asked for, every key written out
    RUN/loss.csv, RUN/loss.png       how it went
    RUN/checkpoints/update_001000/   see policy/checkpoint.py

Everything random is a function of the seed and the number of the update: which windows make the
batch, where crops lie, which noise is added. So an interrupted run that is resumed computes just
what it would have computed in one go, and nothing of the past is kept but weights and moments.
What people see of it is in progress.py, where else numbers go in loggers.py, how several processes
train together in distributed.py.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy_ros.data.dataset import Dataset, WindowDataset
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import (
    TrainingState,
    load_exactly,
    load_policy,
    load_training_state,
    run_checkpoints,
    save_checkpoint,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import ACTION
from diffusion_policy_ros.policy.objective import masked_mean
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings
from diffusion_policy_ros.train.batches import Batch, read_ahead
from diffusion_policy_ros.train.distributed import Peers, peers
from diffusion_policy_ros.train.loggers import open_loggers
from diffusion_policy_ros.train.progress import (
    Bystander,
    Progress,
    Say,
    Watcher,
    farewell,
    interruption,
    introduction,
)

RECIPE = "recipe.yaml"
VALIDATION_BATCH = 64
SAMPLED_WINDOWS = 64  # of a validation, for the action error

# What may change when a run is resumed: how long, how watched, where.
FREE_ON_RESUME = (
    "updates",
    "decay_updates",
    "val_every",
    "val_windows",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "batch_shares",
    "threads",
    "device",
    "gradient_accumulation",
    "compile",
    "early_stop",
    "tensorboard",
    "wandb_project",
)

# Streams of random numbers that must not coincide.
_SPLIT, _ORDER, _NOISE, _VALIDATION = range(4)


def train(
    dataset_path: str | Path,
    recipe: Recipe,
    out: str | Path,
    resume: bool = False,
    progress: Progress = "auto",
    *,
    say: Say = print,
    stop_after: int | None = None,
) -> Path:
    """Train a policy; started by torchrun, together with the other processes.

    Args:
        dataset_path: a dataset, as `diffusion-policy convert` writes it.
        recipe: what to train, and how.
        out: the run's directory; all processes must see the same.
        resume: go on with the run that is there, exactly as if it had not been interrupted.
        progress: a bar, plain lines, neither, or what suits the terminal.
        say: where lines for people go.
        stop_after: stop at this update as Ctrl-C would.

    Returns:
        The newest checkpoint.

    Raises:
        UserError: the run exists or, with resume, does not; dataset, contract and recipe do not
            fit; the loss is not finite.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    out, settings = Path(out), recipe.training
    newest = _claim(out, recipe, resume)
    data = open_data(dataset_path, recipe)
    with _threads(settings), peers(settings.device, settings.batch_size) as group:
        say = say if group.first else _hush
        learner = Learner(recipe, data, group.device, group)
        if newest is not None:
            learner.restore(newest, data)
        for line in introduction(learner.policy, data.training, data.validation, group.count):
            say(line)
        group.wait()  # all have seen the run as it was
        with _watcher(learner, out, progress, say) as watcher:
            _loop(learner, data, watcher, out, stop_after)
        group.wait()  # all is written
    if learner.finished:
        checkpoint = learner.best_checkpoint(out)
        lines = farewell(out, checkpoint, learner.policy, learner.update, learner.seconds)
    else:
        lines = interruption(out, out / RECIPE, data.training, learner.update)
    for line in lines if group.first else ():
        say(line)
    if not learner.finished and stop_after is None:
        raise KeyboardInterrupt
    return run_checkpoints(out)[-1]


def _hush(line: str) -> None:
    """Say nothing."""


def _watcher(
    learner: Learner, out: Path, progress: Progress, say: Say
) -> AbstractContextManager[Watcher | Bystander]:
    """Who shows and writes the losses; in all processes but the first nobody does."""
    if not learner.group.first:
        return Bystander()
    _prepare_run(out, learner.recipe)
    loggers = open_loggers(out, learner.recipe, learner.update)
    return Watcher(out, learner.recipe.training, learner.update, progress, say, loggers)


def _loop(
    learner: Learner,
    data: Data,
    watcher: Watcher | Bystander,
    out: Path,
    stop_after: int | None,
) -> None:
    """Train until done or asked to stop; leaves a checkpoint either way."""
    settings, group, stopping = learner.recipe.training, learner.group, False
    ahead = data.batches(settings, learner.update, group)
    with _stop_requests(patient=group.several) as stop_requested, ahead as batches:
        while not (learner.finished or stopping):
            loss, validation = learner.learn(next(batches)), None
            if learner.update == settings.updates or _due(learner.update, settings.val_every):
                validation = learner.check(data.validation)
            watcher.saw(learner.update, learner.seconds, loss, validation)
            # Asking the others takes time, so not at each update.
            asking = not group.several or _due(learner.update, settings.log_every)
            stopping = asking and group.any(stop_requested())
            stopping = stopping or learner.update == stop_after
            due = _due(learner.update, settings.checkpoint_every) or learner.just_improved
            if group.first and (learner.finished or stopping or due):
                learner.save(out, data, watcher.card_lines())


def checkpoint_path(out: Path, update: int) -> Path:
    """Where a run's checkpoint of an update is."""
    return out / "checkpoints" / f"update_{update:06d}"


def _due(update: int, every: int) -> bool:
    return every > 0 and update % every == 0


# --- Before the first update ---------------------------------------------------------------------


def _claim(out: Path, recipe: Recipe, resume: bool) -> Path | None:
    """The checkpoint to go on from; None for a new run. Refuses what would overwrite a run."""
    occupied = out.is_dir() and any(out.iterdir())
    if not resume:
        if occupied or (out.exists() and not out.is_dir()):
            raise UserError("already exists", str(out), "add --resume, or choose another --out")
        return None
    if not occupied:
        raise UserError("no run to resume", str(out), "leave out --resume to begin one")
    if not (out / RECIPE).is_file():
        raise UserError("is no run", str(out), f"choose a directory with {RECIPE}")
    _check_same_recipe(Recipe.load(out / RECIPE), recipe, out)
    found = run_checkpoints(out)
    return found[-1] if found else None


def _check_same_recipe(before: Recipe, now: Recipe, out: Path) -> None:
    def fixed(recipe: Recipe) -> dict[str, Any]:
        training = dataclasses.asdict(recipe.training)
        for name in FREE_ON_RESUME:
            del training[name]
        return {**dataclasses.asdict(recipe.policy), **training}

    ours, theirs = fixed(before), fixed(now)
    changed = [name for name in ours if ours[name] != theirs[name]]
    if changed:
        what = f"this run was begun with another {', '.join(changed)}"
        cure = f"resume with --config {out / RECIPE}, or choose another --out"
        raise UserError(what, str(out), cure)


class Data(NamedTuple):
    """A dataset, split by episodes.

    Attributes:
        training: windows to learn from.
        validation: windows of held-out episodes; None where there are too few episodes.
        fingerprint: of the episodes and their order; a resumed run must find the same.
    """

    training: WindowDataset
    validation: WindowDataset | None
    fingerprint: str

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
    """Open a dataset and hold out its validation episodes, chosen by the seed.

    Raises:
        UserError: there is no such dataset, or it is damaged.
    """
    policy, settings = recipe.policy, recipe.training
    episodes = Dataset(path).episodes
    order = _numpy_generator(settings.seed, _SPLIT).permutation(len(episodes)).tolist()
    held = round(settings.validation_fraction * len(episodes))
    if settings.validation_fraction > 0:
        held = min(max(held, 1), len(episodes) - 1)

    def windows(chosen: list[int]) -> WindowDataset:
        seen = policy.training_obs_steps
        return WindowDataset(path, policy.n_obs_steps, policy.horizon, sorted(chosen), seen)

    text = json.dumps([[e.bag, e.hash, e.start, e.frames] for e in episodes])
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    validation = windows(order[:held]) if held else None
    return Data(windows(order[held:]), validation, fingerprint)


def _prepare_run(out: Path, recipe: Recipe) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / RECIPE).write_text(recipe.to_text(), encoding="utf-8")
    runs, name = out.absolute().parent, out.absolute().name
    if runs.name == "runs":
        draft = runs / f".latest-{os.getpid()}"
        draft.symlink_to(name)
        draft.replace(runs / "latest")


# --- What is a function of the seed and the update only ------------------------------------------


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
    return _numpy_generator(seed, _ORDER, epoch).permutation(windows)


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


# --- The learner ---------------------------------------------------------------------------------


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
        self.policy.set_statistics(data.training.statistics())
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
            self._weights,
            lr=settings.lr,
            betas=(beta1, beta2),
            weight_decay=settings.weight_decay,
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
            group["lr"] = learning_rate(settings, self.update)
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
        draws = self.policy.draw(count, torch_generator(settings.seed, _NOISE, self.update))
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
        generator = torch_generator(settings.seed, _VALIDATION)
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
        keys = self.average.contract.observations
        seen = {key: batch[key][:, : policy.n_obs_steps] for key in keys}
        guess = normalize(self.average.sample(seen, generator=generator))[:, policy.executed]
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
        save_checkpoint(name, self.average, state=state, notes=trained + notes)
        keep = self.recipe.training.keep_checkpoints
        for old in run_checkpoints(out)[:-keep] if keep else []:
            if old != self.best_checkpoint(out):
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


# --- The process ---------------------------------------------------------------------------------


@contextmanager
def _threads(settings: TrainingSettings) -> Iterator[None]:
    """Give torch the recipe's threads, or each share its part of those that torch would take."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or max(1, before // settings.batch_shares))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stop_requests(patient: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop after the running update, so that what is saved is whole.

    A second one stops at once, unless patient: torchrun hands on what the terminal sent already.
    Outside the main thread, signals are left to whoever has them.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and not patient:
            raise KeyboardInterrupt
        asked.set()

    in_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
