"""What people see of a training: lines, a bar, loss.csv, loggers."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_policy_ros.atomic import replacing
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.train.batches import Data
from diffusion_policy_ros.train.loggers import open_loggers

TABLE = "loss.csv"
OWN = ("update", "loss", "seconds")  # its columns besides those of hooks
WORDS = {"val_loss": "held out", "val_action_error": "action error"}
SECONDS_BETWEEN_LINES = 10.0

Progress = Literal["auto", "bar", "lines", "none"]
Say = Callable[[str], None]


def introduction(
    policy: DiffusionPolicy, data: Data, out: Path, processes: int = 1
) -> Iterator[str]:
    """What is about to be trained, on what; and what looks wrong with the data."""
    settings, training, split = policy.recipe.training, data.training, data.split
    epochs = settings.updates * settings.batch_size / len(training)
    where = policy.device.type
    if where == "cpu":
        where += f", {settings.batch_shares} x {torch.get_num_threads()} threads"
    where += f", in {processes} processes" if processes > 1 else ""
    paths = ", ".join(map(str, training.dataset.paths))
    yield f"dataset   {paths}, contract {policy.contract.name}"
    count = len(split.training)
    episodes = f"{count} episode{'' if count == 1 else 's'}"
    out_of = f"; {split.left_out} not chosen" if split.left_out else ""
    out_of += f"; {split.failed} that failed left out" if split.failed else ""
    yield f"          {episodes}, {len(training)} windows; {len(split.held_out)} held out{out_of}"
    yield f"policy    {_count(policy):,} parameters, {_count(policy.encoder):,} in the encoders"
    for key, camera in policy.encoder.image_encoders.items():
        yield f"sees      {key}: {camera.view.text}: {out / f'view_{key}.png'}"
    yield f"training  {settings.updates} updates of {settings.batch_size} windows on {where}"
    yield f"          every window about {epochs:.1f} times"
    for warning in policy.warnings():
        yield f"warning   {warning}"
    if data.validation is None:
        cure = "set training.validation_fraction=0.02"
        if settings.validation_fraction:
            cure = "there is only one: convert two or more"
            if len(split.roles) > 1:
                how = "diffusion-policy data split DATASET held_out --share 0.1"
                cure = f"all are said to be for training: {how}"
        yield f"warning   no episode is held out, so there is no validation; {cure}"


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


class Log(ExitStack):
    """Writes loss.csv and shows progress; use it in a `with` block.

    Args:
        out: the run.
        recipe: says how often to write, and where else.
        names: of what hooks measure.
        update: updates done before; later lines of the table will be computed again.
        progress: bar or lines; "auto" is the bar where stderr is a terminal.
        say: where lines go.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        names: Sequence[str],
        update: int,
        progress: Progress,
        say: Say,
    ) -> None:
        super().__init__()
        self._settings, self._say, self._out = recipe.training, say, out
        if progress == "auto":
            progress = "bar" if sys.stderr.isatty() else "lines"
        self._lines, self._first, self._update = progress == "lines", update, update
        self._losses: list[Tensor] = []
        self._newest: dict[str, float] = {}
        self._file, self._table = _begin_table(out / TABLE, names, update)
        self.callback(self._file.close)
        self._loggers = open_loggers(out, recipe, update, self)
        total, hidden = self._settings.updates, progress != "bar"
        self._bar = self.enter_context(
            tqdm(total=total, initial=update, unit="up", dynamic_ncols=True, disable=hidden)
        )
        self._begun = self._spoken = time.monotonic()

    def write(
        self, update: int, seconds: float, loss: Tensor, measured: Mapping[str, float]
    ) -> None:
        """Note an update and, where there was something, what was measured after it.

        Raises:
            UserError: the loss is not finite.
        """
        self._update = update
        self._losses.append(loss)
        self._bar.update()
        if not measured and update % self._settings.log_every:
            return
        self._check()
        numbers = {"loss": self._newest["loss"], **measured}
        self._newest |= measured
        row = {name: f"{number:.6g}" for name, number in numbers.items()}
        self._table.writerow({"update": update, **row, "seconds": f"{seconds:.2f}"})
        self._file.flush()
        for log in self._loggers:
            log(update, {**numbers, "seconds": seconds})
        self._show(update, now=bool(measured))

    def _check(self) -> None:
        """Take the mean of the losses since the last line; on a GPU this waits for them."""
        loss = float(torch.stack(self._losses).mean())
        if not math.isfinite(loss):
            what = f"the loss is {loss} at update {self._update}"
            raise UserError(what, str(self._out), "lower training.lr, or look for NaN in the data")
        self._losses.clear()
        self._newest["loss"] = loss

    @property
    def text(self) -> str:
        """The newest numbers.

        Raises:
            UserError: the loss is not finite, so there is nothing worth saving.
        """
        if self._losses:
            self._check()
        return ", ".join(f"{WORDS.get(k, k)} {v:.4f}" for k, v in self._newest.items())

    def _show(self, update: int, now: bool) -> None:
        self._bar.set_postfix_str(self.text, refresh=False)
        clock = time.monotonic()
        if not self._lines or not (now or clock - self._spoken > SECONDS_BETWEEN_LINES):
            return
        self._spoken, total = clock, self._settings.updates
        rate = (update - self._first) / (clock - self._begun)
        left = duration((total - update) / rate)
        self._say(f"update    {update}/{total}  {self.text}, {rate:.1f} updates/s, {left} left")


def _begin_table(
    path: Path, names: Sequence[str], update: int
) -> tuple[IO[str], csv.DictWriter[str]]:
    """Begin the table, or drop the rows that the resumed run will compute again."""
    rows: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("update") or "").isdigit()]
    # What was measured before stays, also where this sitting does not measure it.
    before = [name for name in (rows[0] if rows else ()) if name and name not in OWN]
    columns = ("update", "loss", *dict.fromkeys([*names, *before]), "seconds")
    with replacing(path) as draft, draft.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(row for row in rows if int(row["update"]) <= update)
    file = path.open("a", newline="")
    return file, csv.DictWriter(file, columns, restval="")


def duration(seconds: float) -> str:
    """`75.2` -> `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
