"""What a policy of this package does in worlds, ours and others': a row a task, seed and setting.

    python benchmark/worlds.py TASK [TASK ...] [--out worlds] [--seeds 0,1,2] [--episodes 100]
        [--targets sample,epsilon] [--steps 0,1,2,4,10,100] [--updates N] [--jobs 1]
        [--plot PNG] [--json]

For each task: demonstrations of its expert are recorded, converted, and trained on once a training
seed and target, with the shipped recipe otherwise. Then each checkpoint is evaluated with each
number of denoising steps K in the reported episodes (seeds from 20000 on), and so is the expert.
"regression", K = 0, is one step from no noise with the sample as the target: what plain regression
of the same network would answer. What is in --out already is not computed twice.

success    episodes done in time, with Wilson's 95 % interval over all training seeds
expert     the same of the demonstrator
ways       of tasks with several right answers: episodes that took each, and the same of
           chunks drawn of one and the same observation, with their entropy in bit
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cells import Row, held, hush, is_trained, run, trained, wilson

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.convert import convert
from diffusion_policy_ros.demo.plans import PLANS, Plan
from diffusion_policy_ros.demonstrations import record_demonstrations
from diffusion_policy_ros.engine import Engine, build_engine
from diffusion_policy_ros.evaluation import START_NS, ClosedLoop, evaluate, make_simulator
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim.simulator import FIRST_REPORTED_SEED, SeveralWays
from diffusion_policy_ros.simulated_robot import SimulatedRobot
from diffusion_policy_ros.ways import Ways, drawn_ways, entropy


class Task(NamedTuple):
    """A simulator, and what the demo does in it."""

    sim: str
    plan: Plan


TASKS = {
    sim if kind == "state" else f"{sim}:{kind}": Task(sim, plan)
    for (sim, kind), plan in PLANS.items()
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured at once.

    Attributes:
        task: a key of TASKS.
        checkpoint: its directory; empty for the expert.
        target: what the network predicts; ``expert`` for none.
        seed: of the training.
        steps: K; 0 for the regression.
        episodes: how many.
    """

    task: str
    checkpoint: str
    target: str
    seed: int
    steps: int
    episodes: int


class Regression:
    """An engine that begins at no noise: the mean of what was demonstrated."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.policy = engine, engine.policy

    def sample(self, observation: Any, **how: Any) -> torch.Tensor:
        """See `Engine.sample`."""
        policy = self.policy
        shape = (1, policy.recipe.policy.predicted_steps, policy.sizes.action_dim)
        return self._engine.sample(observation, **{**how, "noise": torch.zeros(shape)})


def measure(cell: Cell) -> Row:
    """Run a cell's episodes."""
    torch.set_num_threads(1)
    seeds = range(FIRST_REPORTED_SEED, FIRST_REPORTED_SEED + cell.episodes)
    found = measure_policy(cell, seeds) if cell.checkpoint else measure_expert(cell, seeds)
    return dataclasses.asdict(cell) | found


def measure_policy(cell: Cell, seeds: range) -> Row:
    """Of a checkpoint."""
    engine: Any = build_engine(load_policy(cell.checkpoint), "eager", "cpu", threads=1)
    contract, settings = engine.policy.contract, engine.policy.recipe.policy
    engine = engine if cell.steps else Regression(engine)
    sampling = Sampling.of(settings, num_inference_steps=cell.steps or 1)
    policy = ClosedLoop(engine, contract, settings.n_obs_steps, sampling)
    with make_simulator(TASKS[cell.task].sim, contract) as robot:
        several = isinstance(robot.simulator, SeveralWays)
        watch = Ways(robot.simulator.ways) if several else None
        summary = evaluate(robot, policy, seeds, on_step=watch).summary()
        row = {
            "successes": round(summary["success_rate"] * len(seeds)),
            "mean_steps": summary["mean_steps"],
            "ms": summary["ms_per_chunk"],
        }
        if watch is not None:
            drawn = drawn_ways(robot, policy, seeds[:10], draws=20)
            row |= watch.summary() | {"drawn": dict(drawn)}
    return row


def measure_expert(cell: Cell, seeds: range) -> Row:
    """Of the demonstrator, with its noise."""
    sim, plan = TASKS[cell.task]
    contract, ends, ways = Contract.load(plan.contract), [], Counter[str]()
    with SimulatedRobot(contract, contract.has_images, True, sim) as robot:
        for seed in seeds:
            time_ns = START_NS
            robot.reset(seed, time_ns)
            while (step := robot.advance(time_ns)).result is None:
                time_ns += contract.period_ns
            ends.append(step.result)
            ways[getattr(robot.simulator, "way", "")] += 1
    row: Row = {
        "successes": sum(end.success for end in ends),
        "mean_steps": float(np.mean([end.steps for end in ends])),
    }
    return row | ({"ways": dict(ways), "entropy_bits": entropy(ways)} if any(ways) else {})


def checkpoint(task: str, target: str, seed: int, args: argparse.Namespace) -> Path:
    """The checkpoint of a training, from demonstrations on; what is there stays."""
    (sim, plan), folder = TASKS[task], args.out / task
    contract = Contract.load(plan.contract)
    if not (folder / "dataset" / "dataset.yaml").exists():
        bags = folder / "bags"
        record_demonstrations(contract, bags, plan.demonstrations, sim=sim, jobs=args.jobs)
        convert([bags], contract, folder / "dataset")
    run_folder = folder / f"{target}_{seed}"
    changes = [f"policy.prediction_type={target}", f"training.seed={seed}"]
    changes += [f"training.updates={args.updates}"] if args.updates else []
    begun, recipe = time.process_time(), plan.recipe_with(changes)
    is_new = not is_trained(recipe, run_folder)
    found = trained(folder / "dataset", recipe, run_folder, say=hush)
    if is_new:
        print(f"{task}, {target}, seed {seed}: {time.process_time() - begun:.0f} s", flush=True)
    return found


def table(rows: list[Row]) -> str:
    """A line a task, target and K; all training seeds together."""
    head = (
        "| task | target | K | seeds | success | 95 % | steps | ms a chunk | ways | drawn of one "
    )
    lines = [head + "| collisions | changes of mind |", "|---" * 12 + "|"]
    lines += [_line(*key, group) for key, group in together(rows)]
    return "\n".join(lines)


def together(rows: list[Row]) -> Iterator[tuple[tuple[str, str, int], list[Row]]]:
    """The rows of each task, target and K."""

    def key(row: Row) -> tuple[str, str, int]:
        return row["task"], row["target"], row["steps"]

    for name, group in itertools.groupby(sorted(rows, key=key), key):
        yield name, [*group]


def _k(target: str, steps: int) -> str:
    return "–" if target == "expert" else str(steps or "regression")


def draw(rows: list[Row], path: Path) -> None:
    """A picture: each task's success by target and K, with its interval, beside the expert's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, every = pyplot.subplots(
        1, len(tasks), figsize=(1 + 2.2 * len(tasks), 3.2), sharey=True, squeeze=False
    )
    for axes, task in zip(every[0], tasks, strict=True):
        for (_, target, steps), group in together([row for row in rows if row["task"] == task]):
            won, n = (sum(row[name] for row in group) for name in ("successes", "episodes"))
            low, high = wilson(won, n)
            name, rate = target if target == "expert" else _k(target, steps), won / n
            spread = [[max(rate - low, 0)], [max(high - rate, 0)]]
            colour = {"sample": "C0", "epsilon": "C1"}.get(target, "grey")
            axes.errorbar([name], [rate], spread, fmt="o", capsize=3, color=colour)
        axes.set_title(task, fontsize=9)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", alpha=0.3)
        axes.tick_params(axis="x", rotation=45)
    every[0][0].set_ylabel("success, 95 % interval")
    figure.supxlabel("K: sample blue, epsilon orange", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _line(task: str, target: str, steps: int, rows: list[Row]) -> str:
    n, won = sum(row["episodes"] for row in rows), sum(row["successes"] for row in rows)
    low, high = wilson(won, n)
    cells = [
        task,
        target,
        _k(target, steps),
        len(rows),
        f"{won} of {n}",
        f"{low:.0%} – {high:.0%}",
    ]
    cells.append(f"{np.mean([row['mean_steps'] for row in rows]):.0f}")
    cells.append(f"{np.mean([row['ms'] for row in rows]):.1f}" if "ms" in rows[0] else "")
    cells += [_counts(rows, "ways"), _counts(rows, "drawn")]
    for name in ("collisions", "changes_of_mind"):
        cells.append(sum(row[name] for row in rows) if name in rows[0] else "")
    return "| " + " | ".join(map(str, cells)) + " |"


def _counts(rows: list[Row], name: str) -> str:
    if name not in rows[0]:
        return ""
    counts = sum((Counter(row[name]) for row in rows), Counter[str]())
    told = ", ".join(f"{way or 'none'} {count}" for way, count in sorted(counts.items()))
    clear = {way: count for way, count in counts.items() if way}
    return f"{told} ({entropy(clear):.2f} bit)" if clear else "none clear"


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """All that is to be measured; trains what is missing."""
    found = []
    seeds, steps = (list(map(int, text.split(","))) for text in (args.seeds, args.steps))
    for task in args.tasks:
        for target, seed in itertools.product(args.targets.split(","), seeds):
            where = str(checkpoint(task, target, seed, args))
            wanted = [k for k in steps if k or target == "sample"]
            found += [Cell(task, where, target, seed, k, args.episodes) for k in wanted]
        found.append(Cell(task, "", "expert", 0, 0, args.episodes))
    return found


def main() -> None:
    """Record, train, evaluate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, default=Path("worlds"), help="(%(default)s)")
    parser.add_argument("--seeds", default="0", help="of the trainings (%(default)s)")
    parser.add_argument("--targets", default="sample", help="(%(default)s)")
    parser.add_argument("--steps", default="0,1,2,4,10,100", help="K (%(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="of each (%(default)s)")
    parser.add_argument("--updates", type=int, help="of each training (the task's)")
    parser.add_argument("--jobs", type=int, default=1, help="episodes at once (%(default)s)")
    parser.add_argument("--plot", type=Path, help="draw a picture of it into this file")
    parser.add_argument("--json", action="store_true", help="print JSON lines, no table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path, wanted = args.out / "cells.jsonl", cells_of(args)
    run(wanted, measure, lambda row: f"{row['task']} {row['target']} K={row['steps']} "
        f"{row['successes']} of {row['episodes']}", path, args.jobs)  # fmt: skip
    names = [dataclasses.asdict(cell) for cell in wanted]
    rows = [row for row in held(path) if {k: row[k] for k in names[0]} in names]
    print("\n".join(map(json.dumps, rows)) if args.json else table(rows))
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
