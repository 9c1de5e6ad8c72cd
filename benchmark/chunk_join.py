"""What each way of joining chunks is worth when chunks come late: closed loop in the simulator.

    python benchmark/chunk_join.py --checkpoint RUN --json cells.jsonl --plot chunk-join.png
        [--delays 0,4] [--joins replace,rtc] [--episodes 100] [--steps 2] [--jobs 1]

Prints a table (Markdown), and draws it: all that the JSON-lines file holds of this
checkpoint. Each cell goes there as soon as it is done, and one that is there already is not run
again, so a run that was cut off goes on.

successes    episodes that were done in time
mean_steps   control periods until then, or the end; mean
jump_mm      where chunks meet: from where the old one would have put the commanded position at the
             first time that the new one decides, to where the new one puts it; mean
jerk         of the commanded position, third difference at the robot's rate, RMS, m/s³
ms           computing time of a chunk, median; beside other work see --costs instead

A chunk holds all actions that were predicted from its newest frame on: with 8 of them there would
be none left for some of these delays. Delays are frames of the contract's rate.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import drawn_window, fly, held, run
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import build_engine
from diffusion_policy_ros.evaluation import ClosedLoop
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.runtime.inference import make_chunk
from diffusion_policy_ros.runtime.joining import JOINS, Joiner
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.simulated_robot import SimulatedRobot, Step


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured at once.

    Attributes:
        checkpoint: directory of a checkpoint, or of a run.
        join: of JOINS.
        delay: frames from a chunk's newest one to its arrival.
        episodes: how many, from the first evaluation seed on.
        steps: denoising steps; None is the checkpoint's.
    """

    checkpoint: str
    join: str
    delay: int
    episodes: int
    steps: int | None


class Smoothness:
    """Watches an episode's set-points and where its chunks meet."""

    def __init__(self, contract: Contract) -> None:
        part = contract.action.of_kind("delta_position", "position")
        assert part is not None, "the simulator refuses others"
        self._position = part.name
        self.where, self.period_ns = contract.action.slices[part.name], contract.period_ns
        self.jumps_m: list[float] = []
        self.jerks: list[float] = []
        self._path: list[NDArray[np.float64]] = []
        self._chunk: Chunk | None = None

    def __call__(self, robot: SimulatedRobot, policy: ClosedLoop, step: Step) -> None:
        """Note a step."""
        if robot.simulator.steps <= 1:
            self._path, self._chunk = [], None
        self._path.append(step.set_point[self._position])
        if len(self._path) > 3:
            third = np.diff(self._path[-4:], n=3, axis=0)[0] / (self.period_ns / 1e9) ** 3
            self.jerks.append(float(third @ third))
        new, old, self._chunk = policy.chunk, self._chunk, policy.chunk
        if new is not old and new is not None and old is not None:
            now_ns = policy.now_ns - self.period_ns
            both = [self._at(chunk, now_ns) for chunk in (old, new)]
            if both[0] is not None and both[1] is not None:
                self.jumps_m.append(float(np.linalg.norm(both[1] - both[0])))

    def _at(self, chunk: Chunk, time_ns: int) -> NDArray[np.float64] | None:
        """What a chunk commands at a time; None past its end."""
        index = round((time_ns - chunk.stamp_ns) / chunk.period_ns)
        return chunk.actions[index, self.where] if index < len(chunk.actions) else None


def measure(cell: Cell) -> dict[str, Any]:
    """Run a cell's episodes."""
    policy = load_policy(cell.checkpoint)
    settings, contract = policy.recipe.policy, policy.contract
    sampling = Sampling.of(
        settings,
        num_inference_steps=cell.steps,
        chunk_join=cell.join,
        n_action_steps=settings.predicted_steps - settings.executed.start,
    )
    engine = build_engine(policy, device="cpu", threads=1)
    watch = Smoothness(contract)
    result = fly(engine, sampling, cell.episodes, cell.delay, watch)
    summary = result.summary()
    return {
        **dataclasses.asdict(cell),
        "num_inference_steps": sampling.num_inference_steps,
        "replan_steps": sampling.replan_steps,
        "successes": sum(episode.success for episode in result.episodes),
        "success": summary["success_rate"],
        "mean_steps": summary["mean_steps"],
        "jump_mm": 1e3 * float(np.mean(watch.jumps_m)) if watch.jumps_m else math.nan,
        "jerk": float(np.sqrt(np.mean(watch.jerks))),
        "ms": summary["ms_per_chunk"],
    }


def costs(checkpoint: str, steps: int | None, chunks: int = 100) -> dict[str, float]:
    """Processor time of a chunk on one thread, ms, median, the ways in turns."""
    policy = load_policy(checkpoint)
    engine, settings = build_engine(policy, device="cpu", threads=1), policy.recipe.policy
    contract, times = policy.contract, {join: [] for join in JOINS}
    joiners = {join: Joiner(contract) for join in JOINS}
    generator, source = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for number in range(chunks):
        window = drawn_window(policy, source)
        for join in JOINS:
            sampling = Sampling.of(settings, num_inference_steps=steps, chunk_join=join)
            time_ns = number * sampling.replan_steps * contract.period_ns
            begun = time.process_time()
            make_chunk(
                engine,
                contract,
                window,
                time_ns,
                sampling,
                generator,
                joiners[join],
                delay_frames=4,
            )
            times[join].append(time.process_time() - begun)
    return {join: 1e3 * float(np.median(spent[5:])) for join, spent in times.items()}


def describe(row: dict[str, Any]) -> str:
    """A cell of the table."""
    return (
        f"{row['successes']}/{row['episodes']}, {row['mean_steps']:.0f} steps, "
        f"{row['jump_mm']:.1f} mm, {row['jerk']:.0f} m/s³"
    )


def describe_way(row: dict[str, Any]) -> str:
    """A line of the log."""
    return f"{row['join']} {row['delay']} {describe(row)}"


def table(rows: list[dict[str, Any]]) -> str:
    """All cells, in Markdown: a line a delay, a column a way; the newest of equal cells."""
    cells = {(row["delay"], row["join"]): describe(row) for row in rows}
    joins = [join for join in JOINS if any(join == other for _, other in cells)]
    lines = [
        f"| {delay} | " + " | ".join(cells.get((delay, join), "") for join in joins) + " |"
        for delay in sorted({delay for delay, _ in cells})
    ]
    head = f"| frames late | {' | '.join(joins)} |"
    return "\n".join([head, "|---" * (len(joins) + 1) + "|", *lines])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A curve a way of joining, of each figure over the delay."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    titles = {
        "success": "success",
        "mean_steps": "control periods to success or the end",
        "jump_mm": "jump where chunks meet, mm",
        "jerk": "RMS jerk of the commanded position, m/s³",
    }
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        for join, marker in zip(JOINS, "os^vx", strict=True):
            points = sorted((row["delay"], row[name]) for row in rows if row["join"] == join)
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, label=join, alpha=0.8)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("delay, frames of 50 ms")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a run")
    parser.add_argument("--episodes", type=int, default=100, help="of a cell (default 100)")
    parser.add_argument("--delays", default="0,1,2,3,4,5,6,7,8", help="frames (default 0 to 8)")
    parser.add_argument("--joins", default=",".join(JOINS), help="ways (default: all)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once (default 1)")
    parser.add_argument("--json", type=Path, required=True, help="cells, a line each")
    parser.add_argument("--plot", type=Path, help="where to draw")
    parser.add_argument("--costs", action="store_true", help="measure the ways' cost, too")
    args = parser.parse_args()
    cells = [
        Cell(args.checkpoint, join, int(delay), args.episodes, args.steps)
        for delay in args.delays.split(",")
        for join in args.joins.split(",")
    ]
    run(cells, measure, describe_way, args.json, args.jobs)
    rows = [row for row in held(args.json) if row["checkpoint"] == args.checkpoint]
    print(table(rows))
    if args.plot:
        plot(rows, args.plot)
    if args.costs:
        for join, spent_ms in costs(args.checkpoint, args.steps).items():
            print(f"{join}: {spent_ms:.1f} ms a chunk, processor time on one thread")
    return 0


if __name__ == "__main__":
    sys.exit(main())
