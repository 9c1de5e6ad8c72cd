"""What engine, precision, sampler and number of steps are worth: closed loop in the simulator.

    python benchmark/success.py RUN [RUN ...] --json cells.jsonl --plot success.png
        [--engines eager:f32,openvino:int8] [--samplers ddim,ddpm] [--steps 1,2,10]
        [--episodes 100] [--jobs 1]

Prints a table (Markdown), and draws it: all that the JSON-lines file holds of these checkpoints.
Each cell goes there as soon as it is done, and one that is there already is not run again, so a
run that was cut off goes on. The seeds of all cells are the same.

successes    episodes that were done in time
mean_steps   control periods until then, or the end; mean
failed       seeds of the others
ms           of a chunk: processor time on one thread, median, all cells in turns. Measured apart
             from the episodes and each time, of a window that is new in every frame
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from cells import Row, drawn_window, fly, held, run

from diffusion_policy_ros.engine import Engine, build_engine
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.policy.samplers import SAMPLERS
from diffusion_policy_ros.runtime.inference import make_chunk
from diffusion_policy_ros.runtime.sampling import Sampling

ENGINES = "eager:f32,openvino:f32,openvino:int8"
TURNS = 30


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured at once.

    Attributes:
        checkpoint: directory of a checkpoint, or of a run.
        engine: its name.
        dtype: its precision.
        sampler: of SAMPLERS.
        steps: denoising steps.
        episodes: how many, from the first evaluation seed on.
    """

    checkpoint: str
    engine: str
    dtype: str
    sampler: str
    steps: int
    episodes: int

    @property
    def sampling(self) -> Sampling:
        """The checkpoint's, so changed."""
        settings = load_policy(self.checkpoint).recipe.policy
        return Sampling.of(settings, sampler=self.sampler, num_inference_steps=self.steps)

    def build(self) -> Engine:
        """Its engine, on one thread."""
        return build_engine(load_policy(self.checkpoint), self.engine, "cpu", self.dtype, 1)


def make_cells(args: argparse.Namespace) -> list[Cell]:
    """What is asked for; the checkpoint's own sampler and steps where none are given."""
    cells = []
    for checkpoint in args.checkpoints:
        own = load_policy(checkpoint).recipe.policy
        samplers = args.samplers.split(",") if args.samplers else [own.sampler]
        steps = args.steps.split(",") if args.steps else [own.num_inference_steps]
        ways = itertools.product(steps, samplers, args.engines.split(","))
        for count, sampler, engine in ways:
            name, _, dtype = engine.partition(":")
            cell = Cell(checkpoint, name, dtype or "f32", sampler, int(count), args.episodes)
            cells.append(cell)
    return cells


def measure(cell: Cell) -> Row:
    """Run a cell's episodes."""
    engine = cell.build()
    result = fly(engine, cell.sampling, cell.episodes)
    failed = [episode.seed for episode in result.episodes if not episode.success]
    return {
        **dataclasses.asdict(cell),
        "policy": engine.policy.recipe.name,
        "successes": cell.episodes - len(failed),
        "mean_steps": result.summary()["mean_steps"],
        "failed": failed,
    }


def add_costs(rows: list[Row]) -> None:
    """Column ms: processor time of a chunk, the cells in turns."""
    names = [field.name for field in dataclasses.fields(Cell)]
    cells = [Cell(**{name: row[name] for name in names}) for row in rows]
    engines: dict[tuple[str, str, str], Engine] = {}
    for cell in cells:
        key = (cell.checkpoint, cell.engine, cell.dtype)
        engines[key] = engines.get(key) or cell.build()
    in_turn = [(engines[c.checkpoint, c.engine, c.dtype], c.sampling) for c in cells]
    source, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    spent: list[list[float]] = [[] for _ in cells]
    for _ in range(TURNS):
        for (engine, sampling), times in zip(in_turn, spent, strict=True):
            window = drawn_window(engine.policy, source)
            begun = time.process_time()
            make_chunk(engine, engine.policy.contract, window, 0, sampling, noise)
            times.append(time.process_time() - begun)
    for row, times in zip(rows, spent, strict=True):
        row["ms"] = 1e3 * float(np.median(times[TURNS // 4 :]))


def way(row: Row) -> tuple[str, str, str]:
    """What a line of table and plot is."""
    return row["policy"], f"{row['engine']} {row['dtype']}", row["sampler"]


def ways(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """Policy, engine and sampler that there are rows of, in order."""
    order = list(SAMPLERS)
    return sorted({way(row) for row in rows}, key=lambda key: (*key[:2], order.index(key[2])))


def describe(row: Row) -> str:
    """A cell of the table."""
    cost = f", {row['ms']:.1f} ms" if "ms" in row else ""
    return f"{row['successes']}/{row['episodes']}, {row['mean_steps']:.0f}{cost}"


def table(rows: list[Row]) -> str:
    """All cells, in Markdown: a line a way, a column a number of steps; of equal ones the last."""
    cells = {(way(row), row["steps"]): describe(row) for row in rows}
    counts = sorted({row["steps"] for row in rows})
    head = "| policy | engine | sampler | " + " | ".join(f"K={count}" for count in counts) + " |"
    lines = [
        f"| {' | '.join(key)} | "
        + " | ".join(cells.get((key, count), "") for count in counts)
        + " |"
        for key in ways(rows)
    ]
    return "\n".join([head, "|---" * (3 + len(counts)) + "|", *lines])


def plot(rows: list[Row], path: Path) -> None:
    """Success over milliseconds: a panel a policy, a curve a way, a point a number of steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    policies = sorted({row["policy"] for row in rows}, reverse=True)
    figure = Figure(figsize=(6 * len(policies), 5), layout="constrained")
    panels = figure.subplots(1, len(policies), squeeze=False, sharey=True)[0]
    for axes, policy in zip(panels, policies, strict=True):
        keys = [key for key in ways(rows) if key[0] == policy]
        for key, marker in zip(keys, itertools.cycle("os^vDPX*")):
            own = sorted((row for row in rows if way(row) == key), key=lambda row: row["steps"])
            ms = [row["ms"] for row in own]
            success = [100 * row["successes"] / row["episodes"] for row in own]
            axes.plot(ms, success, marker=marker, label=", ".join(key[1:]), alpha=0.8)
            for x, y, row in zip(ms, success, own, strict=True):
                axes.annotate(str(row["steps"]), (x, y), (0, -13), textcoords="offset points")
        axes.set(title=policy, xscale="log", xlabel="processor time of a chunk, ms")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
        axes.grid(alpha=0.3)
        axes.legend()
    worst = min(100 * row["successes"] / row["episodes"] for row in rows)
    panels[0].set(ylabel="episodes that succeeded, %", ylim=(max(0, worst - 8), 101))
    figure.savefig(path, dpi=110)


def main() -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", help="checkpoints, or runs")
    parser.add_argument("--engines", default=ENGINES, help="name:precision (%(default)s)")
    parser.add_argument("--samplers", help="(default: the checkpoint's)")
    parser.add_argument("--steps", help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--episodes", type=int, default=100, help="of a cell (default 100)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once (default 1)")
    parser.add_argument("--json", type=Path, required=True, help="cells, a line each")
    parser.add_argument("--plot", type=Path, help="where to draw")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run(make_cells(args), measure, lambda row: f"{way(row)} {describe(row)}", args.json, args.jobs)
    rows = [row for row in held(args.json) if row["checkpoint"] in args.checkpoints]
    add_costs(rows)
    print(table(rows))
    if args.plot:
        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
