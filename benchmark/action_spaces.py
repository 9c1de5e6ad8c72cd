"""What each action space is worth in the simulator, also where the robot tells it otherwise.

    python benchmark/action_spaces.py --dataset demo/state/dataset --out runs --json cells.jsonl
        [--spaces 'absolute;delta;relative'] [--training-seeds 0] [--episodes 100] [--jobs 1]

Trains a policy for each space with the recipe mini_lift_state, where it is not there yet, and
prints a table (Markdown) of successes, all training seeds together. Each cell goes into the
JSON-lines file as soon as it is done, and one that is there already is not run again.

plain      as it was recorded
negated    every quaternion told as -q: the same orientations
moved      the base turned by 20 degrees and moved by 10 cm; block and arm stay where they were
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Row, held, run, trained, wilson
from numpy.typing import NDArray

from diffusion_policy_ros.engine import build_engine
from diffusion_policy_ros.evaluation import ClosedLoop, evaluate, make_simulator
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.rotations import (
    axis_angle_to_quaternion,
    compose,
    inverse,
    quaternion_to_matrix,
)
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim.arm import SimArm
from diffusion_policy_ros.sim.simulator import FIRST_REPORTED_SEED

SPACES: dict[str, dict[str, str]] = {
    "raw": {"policy.actions": "recorded", "policy.orientation": "raw"},
    "absolute": {"policy.actions": "absolute"},
    "delta": {"policy.actions": "delta"},
    "delta, tool axes": {"policy.actions": "delta", "policy.action_frame": "tool"},
    "relative": {"policy.actions": "relative"},
    "relative, base axes": {"policy.actions": "relative", "policy.action_frame": "base"},
}
"""Name -> what it changes of the recipe. "raw" sees the robot's own numbers."""
SEEN = {
    "policy.orientation": "rotation_6d",
    "policy.geometry": "{gripper_to_object_pos: vector}",
}
TURN = axis_angle_to_quaternion([0.0, 0.0, np.radians(20.0)])
SHIFT = np.array([0.1, 0.0, 0.0])


class Told(SimArm):
    """The simulated arm as a robot tells it that stands elsewhere, or has another driver.

    Args:
        turn: (4,) of its base in the simulator's.
        shift: (3,) of its base in the simulator's, m.
        sign: of the quaternions that it tells.
    """

    def __init__(self, turn: NDArray[Any], shift: NDArray[Any], sign: float) -> None:
        self._turn, self._shift, self._sign = turn, shift, sign
        self._matrix = quaternion_to_matrix(turn)
        super().__init__(render=False)

    def observe(self) -> dict[str, NDArray[Any]]:
        """As SimArm's, in this base's frame."""
        told = super().observe()
        for key in ("robot0_eef", "object"):
            told[f"{key}_pos"] = (told[f"{key}_pos"] - self._shift) @ self._matrix
            turned = compose(inverse(self._turn), told[f"{key}_quat"])
            told[f"{key}_quat"] = self._sign * turned
        told["gripper_to_object_pos"] = told["gripper_to_object_pos"] @ self._matrix
        return {key: value.astype(np.float32) for key, value in told.items()}

    def step(
        self, position: NDArray[Any], quaternion: NDArray[Any], gripper: float
    ) -> dict[str, NDArray[Any]]:
        """As SimArm's, commanded in this base's frame."""
        there = self._matrix @ np.asarray(position) + self._shift
        return super().step(there, compose(self._turn, quaternion), gripper)


STILL = np.array([0.0, 0.0, 0.0, 1.0])
ROBOTS = {
    "plain": (STILL, np.zeros(3), 1.0),
    "negated": (STILL, np.zeros(3), -1.0),
    "moved": (TURN, SHIFT, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured at once.

    Attributes:
        checkpoint: directory of a run.
        space: of SPACES.
        seed: that it was trained with.
        robot: of ROBOTS.
        episodes: how many, from FIRST_REPORTED_SEED on.
    """

    checkpoint: str
    space: str
    seed: int
    robot: str
    episodes: int


def measure(cell: Cell) -> Row:
    """Run a cell's episodes."""
    engine = build_engine(load_policy(cell.checkpoint), "eager", "cpu", threads=1)
    contract, settings = engine.policy.contract, engine.policy.recipe.policy
    policy = ClosedLoop(engine, contract, settings.n_obs_steps, Sampling.of(settings))
    with make_simulator("mini_lift", contract) as robot:
        robot.simulator.arm.close()
        robot.simulator.arm = Told(*ROBOTS[cell.robot])
        seeds = range(FIRST_REPORTED_SEED, FIRST_REPORTED_SEED + cell.episodes)
        episodes = evaluate(robot, policy, seeds).episodes
    failed = [episode.seed for episode in episodes if not episode.success]
    steps = float(np.mean([episode.steps for episode in episodes]))
    row = {"successes": cell.episodes - len(failed), "mean_steps": steps, "failed": failed}
    return dataclasses.asdict(cell) | row


def run_of(dataset: Path, out: Path, space: str, seed: int) -> Path:
    """The run of a space and a training seed; trained if it is not there."""
    path = out / f"{space.replace(', ', '-').replace(' ', '-')}-{seed}"
    changes = SEEN | SPACES[space] | {"training.seed": str(seed)}
    trained(dataset, Recipe.load("mini_lift_state", changes), path)
    return path


def describe(rows: list[Row]) -> str:
    """A cell of the table: of all training seeds."""
    if not rows:
        return ""
    successes, episodes = (sum(row[name] for row in rows) for name in ("successes", "episodes"))
    low, high = (round(100 * rate) for rate in wilson(successes, episodes))
    steps = np.mean([row["mean_steps"] for row in rows])
    return f"{successes}/{episodes} ({low} to {high} %), {steps:.0f} steps"


def table(rows: list[Row]) -> str:
    """All cells, in Markdown: a line a space, a column a robot."""
    lines = [
        f"| {space} | "
        + " | ".join(
            describe([row for row in rows if (row["space"], row["robot"]) == (space, robot)])
            for robot in ROBOTS
        )
        + " |"
        for space in SPACES
        if any(row["space"] == space for row in rows)
    ]
    return "\n".join([f"| actions | {' | '.join(ROBOTS)} |", "|---|---|---|---|", *lines])


def main() -> int:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True, help="of mini_lift_state")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, required=True, help="cells, a line each")
    parser.add_argument("--spaces", default=";".join(SPACES), help="(default: %(default)s)")
    parser.add_argument("--training-seeds", default="0", help="(default: 0)")
    parser.add_argument("--episodes", type=int, default=100, help="of a cell (default 100)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = [
        Cell(str(path), space, seed, robot, args.episodes)
        for space in args.spaces.split(";")
        for seed in map(int, args.training_seeds.split(","))
        for path in [run_of(args.dataset, args.out, space, seed)]
        for robot in ROBOTS
    ]
    run(
        cells,
        measure,
        lambda row: f"{row['space']}, {row['robot']}: {describe([row])}",
        args.json,
        args.jobs,
    )
    print(
        table(
            [row for row in held(args.json) if row["checkpoint"] in {c.checkpoint for c in cells}]
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
