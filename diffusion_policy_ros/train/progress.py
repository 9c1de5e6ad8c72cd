"""What people see of a training: lines, a bar, loss.csv, loss.png."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import TrainingSettings
from diffusion_policy_ros.train.batches import Data
from diffusion_policy_ros.train.loggers import Logger

TABLE, PICTURE = "loss.csv", "loss.png"
COLUMNS = ("update", "loss", "val_loss", "val_action_error", "seconds")
SECONDS_BETWEEN_LINES = 10.0

Progress = Literal["auto", "bar", "lines", "none"]
Say = Callable[[str], None]


def introduction(
    policy: DiffusionPolicy, data: Data, out: Path, processes: int = 1
) -> Iterator[str]:
    """What is about to be trained, on what; and what looks wrong with the data."""
    settings, training, validation = policy.recipe.training, data.training, data.validation
    held = 0 if validation is None else len(validation.episodes)
    epochs = settings.updates * settings.batch_size / len(training)
    where = policy.device.type
    if where == "cpu":
        where += f", {settings.batch_shares} x {torch.get_num_threads()} threads"
    where += f", in {processes} processes" if processes > 1 else ""
    paths = ", ".join(map(str, training.dataset.paths))
    yield f"dataset   {paths}, contract {policy.contract.name}"
    count = len(training.episodes)
    episodes = f"{count} episode{'' if count == 1 else 's'}"
    out_of = f"; {data.left_out} not chosen" if data.left_out else ""
    out_of += f"; {data.failed} that failed left out" if data.failed else ""
    yield f"          {episodes}, {len(training)} windows; {held} held out{out_of}"
    yield f"policy    {_count(policy):,} parameters, {_count(policy.encoder):,} in the encoders"
    for key, camera in policy.encoder.image_encoders.items():
        yield f"sees      {key}: {camera.view.text}: {out / f'view_{key}.png'}"
    yield f"training  {settings.updates} updates of {settings.batch_size} windows on {where}"
    yield f"          every window about {epochs:.1f} times"
    for warning in policy.warnings():
        yield f"warning   {warning}"
    if validation is None:
        cure = "set training.validation_fraction=0.02"
        if settings.validation_fraction:
            cure = "there is only one: convert two or more"
        yield f"warning   no episode is held out, so there is no validation; {cure}"


def farewell(
    out: Path, checkpoint: Path, policy: DiffusionPolicy, update: int, seconds: float
) -> Iterator[str]:
    """How it went, and the commands that use the result. Draws loss.png."""
    drawn = draw_losses(out)
    yield f"trained   {update} updates in {duration(seconds)}"
    if update < policy.recipe.training.updates:
        yield f"stopped   early: the action error was smallest in {checkpoint.name}"
    yield f"losses    {drawn}"
    if policy.contract.name.startswith("mini_lift"):
        yield f"evaluate  diffusion-policy eval {checkpoint} --sim mini_lift --episodes 100"
    yield f"run       policy_node --ros-args -p checkpoint:={checkpoint}"


def interruption(out: Path, recipe: Path, dataset: Path | None, update: int) -> Iterator[str]:
    """The command that goes on with a run that was stopped."""
    named = "" if dataset is None else f"--dataset {dataset} "
    yield f"stopped at update {update}; go on with"
    yield f"  diffusion-policy train {named}--config {recipe} --out {out} --resume"


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


class Watcher:
    """Writes loss.csv and shows progress; use it in a `with` block.

    Args:
        out: the run.
        settings: how often to write.
        update: updates done before; later lines of the table will be computed again.
        progress: bar or lines; "auto" is the bar where stderr is a terminal.
        say: where lines go.
        loggers: where numbers go besides loss.csv; closed at the end.
    """

    def __init__(
        self,
        out: Path,
        settings: TrainingSettings,
        update: int,
        progress: Progress,
        say: Say,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.out, self.settings, self.say, self.loggers = out, settings, say, loggers
        self.style = progress
        if progress == "auto":
            self.style = "bar" if sys.stderr.isatty() else "lines"
        self.recent: list[Tensor] = []
        self.loss = self.val_loss = self.action_error = math.nan
        self.first = self.update = update
        self.begun = time.monotonic()
        self.spoken = self.begun

    def __enter__(self) -> Watcher:
        _keep_rows_until(self.out / TABLE, self.first)
        self.file = (self.out / TABLE).open("a", newline="")
        self.bar = tqdm(
            total=self.settings.updates,
            initial=self.first,
            unit="up",
            dynamic_ncols=True,
            disable=self.style != "bar",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.file.close()
        for logger in self.loggers:
            logger.close()

    def saw(
        self,
        update: int,
        seconds: float,
        loss: Tensor,
        validation: tuple[float, float] | None = None,
    ) -> None:
        """Note an update and, where there was one, its validation (loss, action error).

        Raises:
            UserError: the loss is not finite.
        """
        self.update = update
        self.recent.append(loss)
        self.bar.update()
        if validation is None and update % self.settings.log_every:
            return
        self.loss = self._mean_of_recent()
        self.recent.clear()
        if validation is not None:
            self.val_loss, self.action_error = validation
        numbers = [f"{self.loss:.6g}", *(f"{v:.6g}" for v in validation or ()), *[""] * 2][:3]
        csv.writer(self.file).writerow([update, *numbers, f"{seconds:.2f}"])
        self.file.flush()
        named = dict(zip(COLUMNS[1:], (self.loss, *(validation or ())), strict=False))
        for logger in self.loggers:
            logger.log(update, {**named, "seconds": seconds})
        self._show(update, now=validation is not None)

    def _mean_of_recent(self) -> float:
        loss = float(torch.stack(self.recent).mean())
        if not math.isfinite(loss):
            what = f"the loss is {loss} at update {self.update}"
            raise UserError(what, str(self.out), "lower training.lr, or look for NaN in the data")
        return loss

    def card_lines(self) -> str:
        """Markdown for the checkpoint's card.

        Raises:
            UserError: the loss is not finite, so there is nothing worth saving.
        """
        loss = self._mean_of_recent() if self.recent else self.loss
        if not math.isfinite(self.val_loss):
            return f"- Loss {loss:.4f}; on held-out episodes it was not measured\n"
        return (
            f"- Loss {loss:.4f}; on held-out episodes {self.val_loss:.4f}, "
            f"action error {self.action_error:.4f} (normalised)\n"
        )

    def _show(self, update: int, now: bool) -> None:
        text = f"loss {self.loss:.4f}"
        if math.isfinite(self.val_loss):
            text += f", held out {self.val_loss:.4f}, action error {self.action_error:.3f}"
        self.bar.set_postfix_str(text, refresh=False)
        clock = time.monotonic()
        if self.style != "lines" or not (now or clock - self.spoken > SECONDS_BETWEEN_LINES):
            return
        self.spoken = clock
        rate = (update - self.first) / (clock - self.begun)
        total = self.settings.updates
        left = duration((total - update) / rate)
        self.say(f"update    {update}/{total}  {text}, {rate:.1f} updates/s, {left} left")


class Bystander:
    """Stands for the Watcher in processes that only compute."""

    def __enter__(self) -> Bystander:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def saw(
        self,
        update: int,
        seconds: float,
        loss: Tensor,
        validation: tuple[float, float] | None = None,
    ) -> None:
        """Look on."""

    def card_lines(self) -> str:
        """Nothing to say."""
        return ""


def _keep_rows_until(path: Path, update: int) -> None:
    """Begin the table, or drop the rows that the resumed run will compute again."""
    rows: list[list[str]] = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row and row[0].isdigit()]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(row for row in rows if int(row[0]) <= update)


def draw_losses(out: Path) -> str:
    """Draw loss.png from loss.csv; says where it is, or why there is none."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return f"{out / TABLE}; for a picture: pip install matplotlib"
    with (out / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for column, style in (("loss", "-"), ("val_loss", "o-"), ("val_action_error", "s--")):
        points = [(int(row["update"]), float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=column, markersize=4, linewidth=1)
    axes.set(xlabel="update", yscale="log", title=out.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / PICTURE, dpi=110)
    return str(out / PICTURE)


def duration(seconds: float) -> str:
    """`75.2` -> `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
