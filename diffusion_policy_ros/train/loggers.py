"""Where the numbers of a training go besides loss.csv: TensorBoard, Weights & Biases."""

from __future__ import annotations

import dataclasses
import importlib.util
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.recipe import Recipe, TrainingSettings

EVENTS, WANDB_RUN = "tensorboard", "wandb_run.txt"

Logger = Callable[[int, Mapping[str, float]], None]
"""Takes the numbers of an update."""


def check_loggers(settings: TrainingSettings) -> None:
    """See that those asked for are there, before a run is begun.

    Raises:
        UserError: Weights & Biases is asked for and not installed.
    """
    if settings.wandb_project is not None:
        _wandb()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        cure = "pip install wandb, or leave the key out"
        raise UserError(
            "Weights & Biases is not installed", "training.wandb_project", cure
        ) from None
    return wandb


def open_loggers(out: Path, recipe: Recipe, update: int, until: ExitStack) -> list[Logger]:
    """Those that the recipe asks for and that are installed.

    Args:
        out: the run.
        recipe: says which.
        update: updates done before; what was logged of later ones is dropped.
        until: closes them.
    """
    found: list[Logger] = []
    if recipe.training.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        found.append(_tensorboard(out / EVENTS, update, until))
    if recipe.training.wandb_project is not None:
        found.append(_weights_and_biases(out, recipe, until))
    return found


def _tensorboard(folder: Path, update: int, until: ExitStack) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder), purge_step=update + 1)
    until.callback(writer.close)

    def log(update: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            writer.add_scalar(name, number, update)
        writer.flush()

    return log


def _weights_and_biases(out: Path, recipe: Recipe, until: ExitStack) -> Logger:
    """A run of https://wandb.ai; a resumed training goes on with the same one."""
    name = out / WANDB_RUN
    if not name.is_file():
        name.write_text(uuid.uuid4().hex[:12])
    run: Any = _wandb().init(
        project=recipe.training.wandb_project,
        name=out.name,
        id=name.read_text().strip(),
        resume="allow",
        dir=str(out),
        config=dataclasses.asdict(recipe),
    )
    until.callback(run.finish)
    return lambda update, numbers: run.log(dict(numbers), step=update)
