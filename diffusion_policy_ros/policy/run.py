"""A run: the folder of a training, with its recipe and checkpoints.

RUN/recipe.yaml                  what was asked for, every key written out
RUN/checkpoints/update_001000/   see checkpoint.py
RUN/checkpoints/best             points to one of them, where one was chosen
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_policy_ros.atomic import is_over, replacing
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import BEST, run_checkpoints
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings

RECIPE = "recipe.yaml"
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what a disk says that has none
LARGER_IS_BETTER = ("success",)  # of the metrics


def claim_run(run: Path, recipe: Recipe, resume: bool) -> Path | None:
    """The checkpoint to go on from; None for a new run.

    Raises:
        UserError: something would be overwritten, or there is no run of this recipe to resume.
    """
    occupied = run.is_dir() and any(run.iterdir())
    if not resume:
        if occupied or (run.exists() and not run.is_dir()):
            raise UserError("already exists", str(run), "add --resume, or choose another --out")
        return None
    if not occupied:
        raise UserError("no run to resume", str(run), "leave out --resume to begin one")
    if not (run / RECIPE).is_file():
        raise UserError("is no run", str(run), f"choose a directory with {RECIPE}")
    before, now = _fixed(Recipe.load(run / RECIPE)), _fixed(recipe)
    changed = [name for name in before if before[name] != now[name]]
    if changed:
        what = f"this run was begun with another {', '.join(changed)}"
        cure = f"resume with --config {run / RECIPE}, or choose another --out"
        raise UserError(what, str(run), cure)
    found = run_checkpoints(run)
    return found[-1] if found else None


def _fixed(recipe: Recipe) -> dict[str, Any]:
    return dataclasses.asdict(recipe.policy) | recipe.training.fixed()


def begin_run(run: Path, recipe: Recipe) -> None:
    """Make its folder; in one named `runs`, `latest` then points to it."""
    run.mkdir(parents=True, exist_ok=True)
    with replacing(run / RECIPE) as draft:
        draft.write_text(recipe.to_text(), encoding="utf-8")
    latest, name = run.absolute().with_name("latest"), run.absolute().name
    if name == latest.name:  # the run itself, or what leads to it: to itself it must not lead
        return
    if latest.parent.name == "runs" and (latest.is_symlink() or not latest.exists()):
        with contextlib.suppress(OSError):  # not every disk has links, and nothing depends on it
            _point(latest, name)


def checkpoint_path(run: Path, update: int) -> Path:
    """Where a run's checkpoint of an update is."""
    return run / "checkpoints" / f"update_{update:06d}"


def keep_checkpoints(run: Path, newest: int, best: Sequence[int]) -> None:
    """Remove a run's older checkpoints, and let `find_checkpoint` take the best one.

    Args:
        run: its folder.
        newest: how many of the newest are kept; 0 for all.
        best: updates that are kept besides, the best first; with none, the newest is taken.
    """
    kept = [path for path in (checkpoint_path(run, update) for update in best) if path.is_dir()]
    pointer = run / "checkpoints" / BEST
    if pointer.is_dir() and not pointer.is_symlink():
        shutil.rmtree(pointer)  # scp and rsync copy what a link leads to
    if kept:
        _choose(pointer, kept[0])
    else:
        pointer.unlink(missing_ok=True)
    for old in run_checkpoints(run)[:-newest] if newest else ():
        if old not in kept:  # at once, for those who read: what is killed meanwhile leaves no half
            old.rename(old.with_name(f".{old.name}.part-{os.getpid()}"))
    for part in pointer.parent.glob(".*.part-*"):  # also of who was killed while saving
        if is_over(part.name.rpartition("-")[2]):
            shutil.rmtree(part)


@dataclass
class Ranking:
    """Which checkpoints of a run are best by its recipe's metric.

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

    def leave_out_removed(self, run: Path) -> None:
        """Forget those whose checkpoints are gone: they were measured when none was kept."""
        if self.kept:
            self.best = [found for found in self.best if checkpoint_path(run, found[1]).is_dir()]
            self.stale = self.stale if self.best else 0


def _choose(pointer: Path, best: Path) -> None:
    """Point to the best one; on a disk without links it is a copy, as scp makes one."""
    try:
        _point(pointer, best.name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        part = pointer.with_name(f".{pointer.name}.part-{os.getpid()}")
        try:
            shutil.copytree(best, part)
        except shutil.Error:
            cure = "make room, or choose another disk"
            raise UserError(f"cannot be copied to {pointer.name}", str(best), cure) from None
        part.rename(pointer)


def _point(pointer: Path, name: str) -> None:
    """Make or replace a link, in one step."""
    draft = pointer.with_name(f".{pointer.name}-{os.getpid()}")
    draft.symlink_to(name)
    try:
        draft.replace(pointer)
    finally:
        draft.unlink(missing_ok=True)
