"""Training, from a dataset to a checkpoint; read it from top to bottom.

    RUN/recipe.yaml, checkpoints/    see policy/run.py
    RUN/view_CAMERA.png              what is seen of each camera, and how it varies
    RUN/loss.csv                     how it went

Everything random is a function of the seed and the number of the update: which windows make the
batch, where crops lie, which noise is added. So an interrupted run that is resumed computes just
what it would have computed in one go, and nothing of the past is kept but weights and moments.
What learns is in learner.py, which windows it sees and when in batches.py, what is measured on the
way in hooks.py, what people see of it in progress.py, where else numbers go in loggers.py, how
several processes train together in distributed.py.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import torch

from diffusion_policy_ros.errors import UserError, first_line
from diffusion_policy_ros.policy.checkpoint import run_checkpoints
from diffusion_policy_ros.policy.contact_sheet import write_contact_sheets
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings
from diffusion_policy_ros.policy.run import RECIPE, begin_run, claim_run
from diffusion_policy_ros.stopping import handle_stop_signals
from diffusion_policy_ros.train.batches import open_data
from diffusion_policy_ros.train.distributed import peers
from diffusion_policy_ros.train.hooks import Hook, due, validation_hook
from diffusion_policy_ros.train.learner import Learner
from diffusion_policy_ros.train.loggers import check_loggers
from diffusion_policy_ros.train.progress import Log, Progress, Say, introduction

COMPILERS = ("torch._dynamo", "torch._inductor", "triton")


def train(
    dataset_path: str | Path | None,
    recipe: Recipe,
    out: str | Path,
    resume: bool = False,
    progress: Progress = "auto",
    *,
    say: Say = print,
    hooks: Sequence[Hook] = (),
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
        hooks: what to measure besides validation, see Hook.
        stop_after: stop at this update as Ctrl-C would.

    Returns:
        The newest checkpoint.

    Raises:
        UserError: the run exists or, with resume, does not; dataset, contract and recipe do not
            fit; the loss is not finite.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    out, settings = Path(out), recipe.training
    newest = claim_run(out, recipe, resume)
    check_loggers(settings)
    data = open_data(dataset_path, recipe)
    hooks = (*validation_hook(data.validation, settings), *hooks)
    together = peers(settings.device, settings.batch_size)
    with (
        _told_of_failures(settings),
        _threads(settings),
        together as group,
        closing(Learner(recipe, data, group)) as learner,
    ):
        _begin(learner, newest, out, say)
        names = [name for hook in hooks for name in hook.names]
        with (
            Log(out, recipe, names, learner.update, progress, say)
            if group.first
            else nullcontext() as log
        ):
            _loop(learner, hooks, log, out, stop_after)
        group.wait()  # all is written
    if not learner.finished and group.first:
        say(f"stopped at update {learner.update}; go on with")
        say(f"  {_resuming(dataset_path, out)}")
    if not learner.finished and stop_after is None:
        raise KeyboardInterrupt
    return run_checkpoints(out)[-1]


def _resuming(dataset_path: str | Path | None, out: Path) -> str:
    """The command that goes on with a run."""
    named = [] if dataset_path is None else ["--dataset", str(dataset_path)]
    words = [*named, "--config", str(out / RECIPE), "--out", str(out), "--resume"]
    return f"diffusion-policy train {shlex.join(words)}"


def _begin(learner: Learner, newest: Path | None, out: Path, say: Say) -> None:
    """Take over what others have trained, or this run's newest checkpoint; say what is trained."""
    group, data = learner.group, learner.data
    said = learner.begin() if newest is None else learner.restore(newest)
    for line in (*said, *introduction(learner.policy, data, out, group.count)):
        if group.first:
            say(line)
    window = data.training.batch([0])  # before anything is written: what decodes it may be missing
    group.wait()  # all have seen the run as it was
    if group.first:
        begin_run(out, learner.recipe)
        list(write_contact_sheets(learner.policy.encoder, window, out))


def _loop(
    learner: Learner, hooks: Sequence[Hook], log: Log | None, out: Path, stop_after: int | None
) -> None:
    """Train until done or asked to stop; leaves a checkpoint either way."""
    settings, group, stopping = learner.recipe.training, learner.group, False
    ahead = learner.data.batches(settings, learner.update, group)
    with _stop_requests(patient=group.several) as stop_requested, ahead as batches:
        while not (learner.finished or stopping):
            loss = learner.learn(next(batches))
            measured, good = _measure(hooks, learner)
            if log is not None:
                log.write(learner.update, learner.seconds, loss, measured)
            # Asking the others takes time, so not at each update.
            asking = not group.several or due(learner.update, settings.log_every)
            stopping = learner.update == stop_after or (asking and group.any(stop_requested()))
            regular = due(learner.update, settings.checkpoint_every)
            if learner.finished or stopping or regular or good:
                group.check_equal(learner.weights)
                if log is not None:
                    learner.save(out, log.text)


def _measure(hooks: Sequence[Hook], learner: Learner) -> tuple[dict[str, float], bool]:
    """What the hooks whose turn it is measure; whether the checkpoint is to be kept for it.

    After the last update it is everyone's turn; what is measured may have made it the last.
    """
    turn = [hook for hook in hooks if due(learner.update, hook.every)]
    measured = dict(_measured(turn, learner))
    good = learner.ranking.note(learner.update, measured)
    if learner.finished:
        late = dict(_measured([hook for hook in hooks if hook not in turn], learner))
        good |= learner.ranking.note(learner.update, late)
        measured |= late
    return measured, good


def _measured(hooks: Sequence[Hook], learner: Learner) -> Iterator[tuple[str, float]]:
    """What hooks measure: by the first process, for all."""
    for hook in hooks:
        learner.group.check_equal(learner.weights)
        first = learner.group.first
        found = hook.measure(learner.average) if first else [0.0] * len(hook.names)
        yield from zip(hook.names, learner.group.from_first(found), strict=True)


@contextmanager
def _told_of_failures(settings: TrainingSettings) -> Iterator[None]:
    """Torch's own, in one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        cure = f"resume with training.gradient_accumulation={2 * settings.gradient_accumulation}"
        raise UserError(first_line(error), "training.batch_size", cure) from error
    except RuntimeError as error:
        if not type(error).__module__.startswith(COMPILERS):
            raise
        cure = "resume with training.compile=false"
        raise UserError(first_line(error), "training.compile", cure) from error


@contextmanager
def _threads(settings: TrainingSettings) -> Iterator[None]:
    """Give torch the recipe's threads, or each share its part of those that torch would take.

    Never more than there are cores, wherever the recipe was written: they would only wait.
    """
    matmul, before = torch.backends.cuda.matmul, torch.get_num_threads()
    tf32 = matmul.allow_tf32
    matmul.allow_tf32 = tf32 or settings.precision == "tf32"
    wanted = settings.threads or max(1, before // settings.batch_shares)
    torch.set_num_threads(min(wanted, os.cpu_count() or wanted))
    try:
        yield
    finally:
        torch.set_num_threads(before)
        matmul.allow_tf32 = tf32


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
    before = handle_stop_signals(ask) if in_main else {}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
