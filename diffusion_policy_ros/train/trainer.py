"""Training, from a dataset to a checkpoint; read it from top to bottom.

    RUN/recipe.yaml                  what was asked for, every key written out
    RUN/view_CAMERA.png              what is seen of each camera, and how it varies
    RUN/loss.csv, RUN/loss.png       how it went
    RUN/checkpoints/update_001000/   see policy/checkpoint.py

Everything random is a function of the seed and the number of the update: which windows make the
batch, where crops lie, which noise is added. So an interrupted run that is resumed computes just
what it would have computed in one go, and nothing of the past is kept but weights and moments.
What learns is in learner.py, which windows it sees and when in batches.py, what people see of it
in progress.py, where else numbers go in loggers.py, how several processes train together in
distributed.py.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import run_checkpoints
from diffusion_policy_ros.policy.contact_sheet import write_contact_sheets
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings
from diffusion_policy_ros.train.batches import Data, open_data
from diffusion_policy_ros.train.distributed import peers
from diffusion_policy_ros.train.learner import Learner
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
    "readers",
    "threads",
    "device",
    "gradient_accumulation",
    "compile",
    "early_stop",
    "tensorboard",
    "wandb_project",
)


def train(
    dataset_path: str | Path | None,
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
        dataset_path: a dataset, as `diffusion-policy convert` writes it; none for the recipe's.
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
        for line in learner.begin() if newest is None else ():
            say(line)
        for line in introduction(learner.policy, data, out, group.count):
            say(line)
        group.wait()  # all have seen the run as it was
        with _watcher(learner, data, out, progress, say) as watcher:
            _loop(learner, data, watcher, out, stop_after)
        group.wait()  # all is written
    if learner.finished:
        checkpoint = learner.best_checkpoint(out)
        lines = farewell(out, checkpoint, learner.policy, learner.update, learner.seconds)
    else:
        named = None if dataset_path is None else data.training.dataset.path
        lines = interruption(out, out / RECIPE, named, learner.update)
    for line in lines if group.first else ():
        say(line)
    if not learner.finished and stop_after is None:
        raise KeyboardInterrupt
    return run_checkpoints(out)[-1]


def _hush(line: str) -> None:
    """Say nothing."""


def _watcher(
    learner: Learner, data: Data, out: Path, progress: Progress, say: Say
) -> AbstractContextManager[Watcher | Bystander]:
    """Who shows and writes the losses; in all processes but the first nobody does."""
    if not learner.group.first:
        return Bystander()
    _prepare_run(out, learner.recipe)
    list(write_contact_sheets(learner.policy.encoder, data.training.batch([0]), out))
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


def _prepare_run(out: Path, recipe: Recipe) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / RECIPE).write_text(recipe.to_text(), encoding="utf-8")
    runs, name = out.absolute().parent, out.absolute().name
    if runs.name == "runs":
        draft = runs / f".latest-{os.getpid()}"
        draft.symlink_to(name)
        draft.replace(runs / "latest")


# --- The process ---------------------------------------------------------------------------------


@contextmanager
def _threads(settings: TrainingSettings) -> Iterator[None]:
    """Give torch the recipe's threads, or each share its part of those that torch would take.

    Never more than there are cores, wherever the recipe was written: they would only wait.
    """
    before, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32 or settings.precision == "tf32"
    wanted = settings.threads or max(1, before // settings.batch_shares)
    torch.set_num_threads(min(wanted, os.cpu_count() or wanted))
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cuda.matmul.allow_tf32 = tf32


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
