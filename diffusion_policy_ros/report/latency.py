"""Pictures of time: a chunk's way through the node, and what correlations say of latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.atomic import replacing
from diffusion_policy_ros.bench.stages import stage_ms
from diffusion_policy_ros.data.lags import Lag
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.trace import ChunkTimes


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        cure = "pip install matplotlib, or leave out --plot"
        raise UserError("the picture needs matplotlib", "--plot", cure) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    try:
        with replacing(path) as draft:
            figure.savefig(draft, dpi=110, format="png")
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise UserError(why, str(path), "choose another file for --plot") from None


def draw_trace(trace: list[ChunkTimes], path: Path) -> None:
    """Each chunk's stages above each other over time, missed deadlines marked; and their sum.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    figure = _figure(10, 6)
    over_time, spread = figure.subplots(2, 1, height_ratios=(3, 2))
    stages = stage_ms(trace)
    seconds = np.array([row.stamp_ns - trace[0].stamp_ns for row in trace]) / 1e9
    over_time.stackplot(seconds, *stages.values(), labels=list(stages), step="mid")
    total = np.sum(list(stages.values()), axis=0)
    missed = np.flatnonzero([row.missed for row in trace])
    if len(missed):
        over_time.plot(seconds[missed], total[missed], "kx", label="missed its deadline")
    over_time.set(xlabel="s", ylabel="ms from stamp to chunk", title=f"{len(trace)} chunks")
    over_time.legend(loc="upper right", fontsize="small")
    for name, took in {**stages, "all": total}.items():
        share = np.arange(1, len(took) + 1) / len(took)
        spread.plot(np.maximum(np.sort(took), 1e-3), share, label=name)
    spread.set(xlabel="ms", xscale="log", ylabel="share of chunks below")
    spread.grid(alpha=0.3)
    spread.legend(fontsize="small")
    _save(figure, path)


def draw_lags(lags: dict[str, Lag], path: Path) -> None:
    """One curve of correlation over lag for each that was compared, its peak marked.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    drawn = {name: lag for name, lag in lags.items() if len(lag.curve)}
    figure = _figure(8, 1 + 1.8 * max(len(drawn), 1))
    if not drawn:
        figure.text(0.5, 0.5, "nothing could be compared", ha="center")
    for axes, (name, lag) in zip(
        figure.subplots(max(len(drawn), 1), 1, sharex=True, squeeze=False)[:, 0] if drawn else [],
        drawn.items(),
        strict=True,
    ):
        axes.plot(lag.lags_s * 1e3, lag.curve)
        axes.grid(alpha=0.3)
        told = "unknown"
        if lag.seconds is not None:
            axes.axvline(lag.seconds * 1e3, color="k", linestyle="--")
            told = f"{lag.seconds * 1e3:.0f} ms"
        axes.set(ylabel="correlation")
        axes.set_title(f"{name}: {told}", fontsize="medium")
        axes.set_xlabel("lag, ms")
    _save(figure, path)
