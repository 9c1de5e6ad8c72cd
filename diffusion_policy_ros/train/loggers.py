"""Where the numbers of a training go besides loss.csv: TensorBoard, Weights & Biases."""

from __future__ import annotations

import dataclasses
import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.recipe import Recipe

EVENTS, WANDB_RUN = "tensorboard", "wandb_run.txt"


class Logger(Protocol):
    """Takes numbers of an update."""

    def log(self, update: int, numbers: Mapping[str, float]) -> None:
        """Note them."""

    def close(self) -> None:
        """Write what is still held back."""


def open_loggers(out: Path, recipe: Recipe, update: int) -> list[Logger]:
    """Those that the recipe asks for and that are installed.

    Args:
        out: the run.
        recipe: says which.
        update: updates done before; what was logged of later ones is dropped.

    Raises:
        UserError: Weights & Biases is asked for and not installed.
    """
    found: list[Logger] = []
    if recipe.training.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        found.append(TensorBoard(out / EVENTS, update))
    if recipe.training.wandb_project is not None:
        found.append(WeightsAndBiases(out, recipe))
    return found


class TensorBoard:
    """Event files, for `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path, update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=update + 1)

    def log(self, update: int, numbers: Mapping[str, float]) -> None:
        """One scalar a name."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, update)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of https://wandb.ai; a resumed training goes on with the same one."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        try:
            import wandb
        except ImportError:
            what = "Weights & Biases is not installed"
            cure = "pip install wandb, or leave the key out"
            raise UserError(what, "training.wandb_project", cure) from None
        name = out / WANDB_RUN
        if not name.is_file():
            name.write_text(uuid.uuid4().hex[:12])
        self._run: Any = wandb.init(
            project=recipe.training.wandb_project,
            name=out.name,
            id=name.read_text().strip(),
            resume="allow",
            dir=str(out),
            config=dataclasses.asdict(recipe),
        )

    def log(self, update: int, numbers: Mapping[str, float]) -> None:
        """One line of the run's history."""
        self._run.log(dict(numbers), step=update)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
