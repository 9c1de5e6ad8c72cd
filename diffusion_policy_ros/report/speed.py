"""A picture of what a chunk takes with each engine, precision, sampler and number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_policy_ros.atomic import replacing
from diffusion_policy_ros.bench.verdict import Demand, Timing, best, every, verdict
from diffusion_policy_ros.errors import UserError

LINES = ("-", "--", ":", "-.")
"""One for each sampler."""


def check_plot() -> None:
    """Refuse before minutes of work what would fail after.

    Raises:
        UserError: matplotlib is missing.
    """
    _figure()


def _figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        cure = "pip install matplotlib, or leave out --plot"
        raise UserError("the picture needs matplotlib", "--plot", cure) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_speed(timings: Sequence[Timing], demand: Demand, machine: str, path: Path) -> None:
    """p99 over K with the median below it, and what the rate allows.

    Args:
        timings: of all settings.
        demand: the rate that is asked for.
        machine: where they were measured.
        path: of a PNG.
    """
    figure = _figure()
    from matplotlib.ticker import LogLocator

    axes = figure.subplots()
    lines = list(dict.fromkeys((t.engine, t.dtype, t.sampler) for t in timings))
    computed = list(dict.fromkeys(line[:2] for line in lines))
    samplers = list(dict.fromkeys(line[2] for line in lines))
    for line in lines:
        points = [t for t in timings if (t.engine, t.dtype, t.sampler) == line]
        colour = f"C{computed.index(line[:2]) % 10}"
        _draw_line(axes, points, colour, LINES[samplers.index(line[2]) % len(LINES)])
    _draw_budget(axes, demand)
    chosen = best(timings, demand)
    if chosen is not None:
        ring = {"markersize": 14, "markerfacecolor": "none", "color": "k", "linestyle": ""}
        axes.plot([chosen.steps], [chosen.p99_ms], marker="o", label="the verdict", **ring)
    steps = sorted({timing.steps for timing in timings})
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(k) for k in steps], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set(xlabel=f"K, denoising steps ({machine})", ylabel="ms a chunk: p99, median (thin)")
    axes.grid(alpha=0.3, which="both")
    axes.set_title(_folded(verdict(timings, demand)), fontsize="medium")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    with replacing(path) as draft:
        figure.savefig(draft, dpi=110, format="png")


def _draw_line(axes: Any, points: Sequence[Timing], colour: str, style: str) -> None:
    steps = [point.steps for point in points]
    slow, usual = [p.p99_ms for p in points], [p.p50_ms for p in points]
    label = f"{points[0].engine} {points[0].dtype}, {points[0].sampler}"
    axes.plot(steps, slow, style, marker="o", markersize=4, color=colour, label=label)
    axes.plot(steps, usual, style, linewidth=0.7, color=colour)
    axes.fill_between(steps, usual, slow, color=colour, alpha=0.1, linewidth=0)


def _draw_budget(axes: Any, demand: Demand) -> None:
    label = (
        f"{demand.rate_hz:g} Hz, a chunk {every(demand.replan_steps)}: {demand.budget_ms:.0f} ms"
    )
    axes.axhline(demand.budget_ms, color="k", linewidth=1, linestyle=(0, (6, 3)), label=label)


def _folded(text: str) -> str:
    return text.replace(": ", ":\n", 1)
