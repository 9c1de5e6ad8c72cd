"""Closed-loop measurements, cell by cell: what is done already is kept in a file of JSON lines."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.evaluation import ClosedLoop, Result, evaluate, make_simulator
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.policy.checkpoint import run_checkpoints
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.run import RECIPE, checkpoint_path
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim.simulator import FIRST_EVALUATION_SEED
from diffusion_policy_ros.train.progress import Progress, Say
from diffusion_policy_ros.train.trainer import train

Row = dict[str, Any]


def held(path: Path) -> list[Row]:
    """The rows of a file, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(
    cells: Sequence[Any],
    measure: Callable[[Any], Row],
    show: Callable[[Row], str],
    path: Path,
    jobs: int,
) -> None:
    """Measure what the file does not hold yet.

    Args:
        cells: frozen dataclasses; their attributes are columns of the rows.
        measure: cell -> row; in a process of its own.
        show: row -> what is told of it.
        path: JSON lines.
        jobs: cells at once.
    """
    names = [field.name for field in dataclasses.fields(cells[0])]
    done = {tuple(row[name] for name in names) for row in held(path)}
    to_do = [cell for cell in cells if dataclasses.astuple(cell) not in done]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool, path.open("a") as out:
        for row in pool.imap_unordered(measure, to_do):
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(show(row), file=sys.stderr, flush=True)


def is_trained(recipe: Recipe, run: Path) -> bool:
    """Whether a run's last checkpoint is there."""
    last = checkpoint_path(run, recipe.training.updates)
    return (run / RECIPE).exists() and run_checkpoints(run)[-1:] == [last]


def trained(
    dataset: Path, recipe: Recipe, run: Path, progress: Progress = "none", say: Say = print
) -> Path:
    """A run's last checkpoint; trained if it is not there, and what was begun goes on."""
    if is_trained(recipe, run):
        return run_checkpoints(run)[-1]
    return train(dataset, recipe, run, (run / RECIPE).exists(), progress, say=say)


def hush(line: str) -> None:
    """So many introductions are too many."""


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate."""
    z = 1.96
    rate, weight = successes / episodes, 1 + z**2 / episodes
    middle = (rate + z**2 / (2 * episodes)) / weight
    spread = z / weight * np.sqrt(rate * (1 - rate) / episodes + z**2 / (4 * episodes**2))
    return float(middle - spread), float(middle + spread)


def fly(
    engine: Engine,
    sampling: Sampling,
    episodes: int,
    delay: int = 0,
    on_step: Callable[..., None] | None = None,
) -> Result:
    """Episodes of the evaluation seeds, see `evaluation`; the delay is in frames."""
    contract, seen = engine.policy.contract, engine.policy.recipe.policy.n_obs_steps
    policy = ClosedLoop(engine, contract, seen, sampling, delay)
    with make_simulator("mini_lift", contract) as robot:
        seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes)
        return evaluate(robot, policy, seeds, on_step=on_step)


def drawn_window(policy: DiffusionPolicy, source: np.random.Generator) -> dict[str, Array]:
    """A window of random numbers: one that no engine has encoded before."""
    count = policy.recipe.policy.n_obs_steps
    return {
        key: source.integers(0, 256, (count, *stream.shape), np.uint8)
        if stream.is_image
        else source.random((count, *stream.shape), np.float32)
        for key, stream in policy.contract.observations.items()
    }
