"""What a policy of cameras bears: light, camera and texture shifted after training.

    python benchmark/shifts.py [--out DIR] [--episodes 100] [--updates N] [--demonstrations 300]
        [--training-seeds 0] [--jobs 1] [--json]

Trains the demo's policy with cameras, mini_lift, as it is and with the augmentation of the recipe
recommended, on the same demonstrations, then drives each in the simulator as it was recorded and
with each of SHIFTS, from the reported seeds. Prints a table (Markdown) of successes with Wilson's
95 % interval. Each cell goes into DIR/cells.jsonl as soon as it is done; run again it goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cells import Row, held, run, trained, wilson

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.convert import convert
from diffusion_policy_ros.demo.plans import PLANS
from diffusion_policy_ros.demonstrations import record_demonstrations
from diffusion_policy_ros.engine import build_engine
from diffusion_policy_ros.evaluation import ClosedLoop, evaluate, make_simulator
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim.simulator import FIRST_REPORTED_SEED

NAME = "mini_lift"
EYES = "policy.image_encoder.augment"
AUGMENT = str(dataclasses.asdict(Recipe.load("recommended").policy.image_encoder.augment))
RECIPES: dict[str, dict[str, str]] = {"plain": {}, "augmented": {EYES: AUGMENT}}
CENTIMETRES, DEGREES = 2.0, -2.0
TILES = 2  # across the texture, which the mat repeats eight times


def dim(model: Any) -> None:
    """Half of all light."""
    for light in (model.vis.headlight.ambient, model.vis.headlight.diffuse, model.light_diffuse):
        light[:] *= 0.5


def warm(model: Any) -> None:
    """The light of a bulb: less green, half of the blue."""
    for light in (model.vis.headlight.ambient, model.vis.headlight.diffuse, model.light_diffuse):
        light[:] *= [1.1, 0.85, 0.55]


def side(model: Any) -> None:
    """A strong lamp from the other side, and little else."""
    model.light_dir[:] = [0.7, -0.5, -0.5]
    model.light_diffuse[:] = 0.9
    model.vis.headlight.diffuse[:] *= 0.3


def camera(model: Any) -> None:
    """The fixed camera was touched: centimetres to the side, degrees about the upward axis."""
    number = model.camera("agentview").id
    half = np.deg2rad(DEGREES) / 2  # away from where it moved to, so that both shift the same way
    w, x, y, z = model.cam_quat[number]
    c, s = np.cos(half), np.sin(half)
    model.cam_pos[number, 1] += CENTIMETRES / 100
    model.cam_quat[number] = [c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w]


def texture(model: Any) -> None:
    """The mat has a pattern of blue and grey tiles, the table is dark."""
    number = model.texture("grid").id
    height, width = model.tex_height[number], model.tex_width[number]
    tiles = np.add.outer(np.arange(height) * TILES // height, np.arange(width) * TILES // width)
    colours = np.array([[120, 140, 175], [190, 190, 185]], dtype=np.uint8)[tiles % 2]
    start = model.tex_adr[number]
    model.tex_data[start : start + colours.size] = colours.ravel()
    model.mat_rgba[model.material("table").id, :3] = [0.25, 0.25, 0.28]


SHIFTS: dict[str, Callable[[Any], None]] = {
    "none": lambda model: None,
    "dim": dim,
    "warm": warm,
    "side": side,
    "camera": camera,
    "texture": texture,
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured at once: a checkpoint, a shift, how many episodes."""

    recipe: str
    training_seed: int
    checkpoint: str
    shift: str
    episodes: int


def checkpoint(out: Path, name: str, seed: int, updates: int | None) -> Path:
    """The last one of a recipe and a training seed."""
    changes = {**RECIPES[name], "training.seed": str(seed)}
    if updates is not None:
        changes["training.updates"] = str(updates)
    folder = out / "runs" / f"{name}_{seed}"
    return trained(out / "dataset", Recipe.load(NAME, changes), folder, "lines")


def measure(cell: Cell) -> Row:
    """Drive a cell's episodes."""
    policy = load_policy(cell.checkpoint)
    settings, contract = policy.recipe.policy, policy.contract
    engine = build_engine(policy, "eager", "cpu", threads=1)
    loop = ClosedLoop(engine, contract, settings.n_obs_steps, Sampling.of(settings))
    with make_simulator(NAME, contract) as robot:
        SHIFTS[cell.shift](robot.simulator.arm.model)  # type: ignore[attr-defined]
        seeds = range(FIRST_REPORTED_SEED, FIRST_REPORTED_SEED + cell.episodes)
        found = evaluate(robot, loop, seeds).episodes
    return {**dataclasses.asdict(cell), "successes": sum(episode.success for episode in found)}


def table(rows: list[Row]) -> str:
    """A line a shift, a column a recipe; episodes of all training seeds together."""
    lines = ["| shift | " + " | ".join(RECIPES) + " |", "|---" * (1 + len(RECIPES)) + "|"]
    for shift in SHIFTS:
        words = [shift]
        for recipe in RECIPES:
            mine = [row for row in rows if (row["recipe"], row["shift"]) == (recipe, shift)]
            won, of = (sum(row[name] for row in mine) for name in ("successes", "episodes"))
            low, high = wilson(won, of) if of else (0.0, 0.0)
            words.append(f"{won} of {of} ({max(low, 0):.0%} to {high:.0%})" if of else "")
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    """Record, train, drive, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("shifts"), help="(%(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="of a cell (%(default)s)")
    parser.add_argument("--updates", type=int, help="of a training (default: the recipe's)")
    own = PLANS[NAME, "cameras"].demonstrations
    parser.add_argument("--demonstrations", type=int, default=own, help="(%(default)s)")
    parser.add_argument("--training-seeds", default="0", help="such as 0,1,2 (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    contract = Contract.load(NAME)
    record_demonstrations(contract, args.out / "bags", args.demonstrations)
    convert([args.out / "bags"], contract, args.out / "dataset")
    seeds = [int(seed) for seed in args.training_seeds.split(",")]
    cells = [
        Cell(name, seed, str(path), shift, args.episodes)
        for name in RECIPES
        for seed in seeds
        for path in [checkpoint(args.out, name, seed, args.updates)]
        for shift in SHIFTS
    ]
    notes = args.out / "cells.jsonl"
    run(
        cells,
        measure,
        lambda row: f"{row['recipe']} {row['shift']}: {row['successes']}",
        notes,
        args.jobs,
    )
    wanted = [dataclasses.asdict(cell) for cell in cells]
    rows = [
        row for row in held(notes) if {k: v for k, v in row.items() if k != "successes"} in wanted
    ]
    print(json.dumps(rows) if args.json else table(rows))


if __name__ == "__main__":
    main()
