"""Plots of a replay as PNG; None where matplotlib is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.replay.figures import SHARE, errors
from diffusion_policy_ros.replay.reading import Replayed
from diffusion_policy_ros.report.plot import empty_figure, png

DONE, POLICY = "#222222", ("#0072b2", "#d55e00")
STYLES = {"policy": "#0072b2", "repeating": "#999999", "new against old": "#d55e00"}
MAX_COMPONENTS = 16
PICTURES = 6
LEAST_MS = 10.0
"""How far an axis of ages reaches at least: noise of microseconds is not worth a look."""


def by_step(tables: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> bytes | None:
    """A small plot a measure: means by step, and where 95 % lie.

    Args:
        tables: what is drawn → measure → its statistics.
        found: the replay's figures, for units and executed steps.
    """
    names = [name for name in found["units"] if any(name in table for table in tables.values())]
    columns = 4 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = empty_figure(10, 2.4 * rows)
    if figure is None:
        return None
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        for label, table in tables.items():
            shaded = label != "repeating" and found["units"][name] != SHARE
            _line(axes, table.get(name), label, shaded)
        axes.axvspan(-0.5, found["executed_steps"] - 0.5, color="#0072b2", alpha=0.06, lw=0)
        axes.set_title(f"{name}, {found['units'][name]}", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step (tinted: executed)", fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    figure.axes[0].legend(fontsize=8)
    return png(figure)


def _line(axes: Any, rows: Mapping[str, Any] | None, label: str, shaded: bool) -> None:
    if rows is None:
        return
    mean, p95 = (np.array(rows[key], dtype=float) for key in ("mean", "p95"))
    axes.plot(mean, color=STYLES[label], label=label, lw=1.6, marker=".", ms=4)
    if shaded:
        axes.fill_between(np.arange(len(mean)), mean, p95, color=STYLES[label], alpha=0.15, lw=0)


def actions(one: Replayed, contract: Contract, executed: int) -> bytes | None:
    """Each component over time: what was done, and every chunk."""
    names = contract.action_names[:MAX_COMPONENTS]
    figure = empty_figure(9, 0.6 + 1.1 * len(names))
    if figure is None:
        return None
    seconds = (np.array(one.times_ns) - one.times_ns[0]) / 1e9
    chunks = [_chunk_lines(one, seconds, parity) for parity in (0, 1)]
    for i, axes in enumerate(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]):
        for (x, values, played), colour in zip(chunks, POLICY, strict=True):
            axes.plot(x, values[:, i], color=colour, lw=0.7, alpha=0.25)
            executed_part = np.where(played < executed, values[:, i], np.nan)
            axes.plot(x, executed_part, color=colour, lw=1.4)
        axes.plot(seconds, one.done[:, i], color=DONE, lw=1.0)
        axes.set_ylabel(names[i], fontsize=8, rotation=0, ha="right", va="center")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.set_xlim(0, max(seconds[-1], 1e-3))
    figure.axes[-1].set_xlabel("s", fontsize=8)
    return png(figure)


def _chunk_lines(one: Replayed, seconds: Any, parity: int) -> tuple[Any, Any, Any]:
    """Every second chunk as one line with breaks: times (N,), actions (N, Da), steps (N,).

    A step that the next chunk replaces counts as `np.inf`.
    """
    times, values, steps = [np.zeros(0)], [np.zeros((0, one.done.shape[1]))], [np.zeros(0)]
    starts = [*list(one.chunks)[1:], len(one.times_ns)]
    for (frame, chunk), later in list(zip(one.chunks.items(), starts, strict=True))[parity::2]:
        step = np.arange(len(chunk.actions) + 1.0)
        times.append(seconds[frame] + step * chunk.period_ns / 1e9)
        values.append(np.vstack([chunk.actions, np.full((1, chunk.actions.shape[1]), np.nan)]))
        steps.append(np.where(step < later - frame, step, np.inf))
    return np.concatenate(times), np.concatenate(values), np.concatenate(steps)


def pictures(replayed: Sequence[Replayed], contract: Contract, executed: int) -> bytes | None:
    """What the camera showed where the error is largest; None without a camera."""
    ranked = sorted(_ranked(replayed, contract, executed), key=lambda entry: -entry[0])
    chosen = _apart(ranked)
    figure = empty_figure(9, 2.2) if chosen else None
    if figure is None:
        return None
    row = figure.subplots(1, PICTURES, squeeze=False)[0]
    for axes in row:
        axes.set_axis_off()
    for axes, (error, one, frame) in zip(row, chosen, strict=False):
        image = one.pictures[frame]
        axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray")
        seconds = (one.times_ns[frame] - one.times_ns[0]) / 1e9
        axes.set_title(f"{one.name[:18]}\n{seconds:.2f} s: {error:.3g}", fontsize=7)
    return png(figure)


def _ranked(
    replayed: Sequence[Replayed], contract: Contract, executed: int
) -> list[tuple[float, Replayed, int]]:
    """Error of the first field over a chunk's executed steps, of the chunks with a picture."""
    found = []
    for one in replayed:
        first = next(iter(errors(one, contract)[0].values()), np.zeros((0, 0)))
        for frame, row in zip(one.chunks, first[:, :executed], strict=False):
            known = row[np.isfinite(row)]
            if frame in one.pictures and len(known):
                found.append((float(known.mean()), one, frame))
    return found


def _apart(ranked: Sequence[tuple[float, Replayed, int]]) -> list[tuple[float, Replayed, int]]:
    """The first ones that are not of the same second."""
    chosen: list[tuple[float, Replayed, int]] = []
    for error, one, frame in ranked:
        near = any(
            one is other and abs(one.times_ns[frame] - one.times_ns[there]) < 1e9
            for _, other, there in chosen
        )
        if not near and len(chosen) < PICTURES:
            chosen.append((error, one, frame))
    return chosen


def ages(one: Replayed) -> bytes | None:
    """Age of every stream, and the time between frames, over a recording."""
    figure = empty_figure(9, 3.6)
    if figure is None:
        return None
    seconds = (np.array(one.times_ns) - one.times_ns[0]) / 1e9
    above, below = figure.subplots(2, 1, sharex=True)
    for key, values in one.ages_ns.items():
        above.plot(seconds, np.array(values) / 1e6, lw=0.9, label=key)
    above.set_ylabel("age, ms", fontsize=8)
    above.legend(fontsize=7, ncols=3)
    below.plot(seconds[1:], np.diff(one.times_ns) / 1e6, lw=0.9, color=DONE)
    below.set_ylim(top=np.diff(one.times_ns).max(initial=0) / 1e6)
    below.set_ylabel("between frames, ms", fontsize=8)
    below.set_xlabel("s", fontsize=8)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
        axes.set_ylim(0, max(1.15 * axes.get_ylim()[1], LEAST_MS))
    return png(figure)
