"""How a training went: loss.png, and the commands that use its result."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from diffusion_policy_ros.atomic import replacing
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.checkpoint import (
    CONTRACT,
    STATE,
    find_checkpoint,
    run_checkpoints,
)
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.run import RECIPE
from diffusion_policy_ros.report.plot import empty_figure
from diffusion_policy_ros.train.progress import TABLE, duration

PICTURE = "loss.png"


def training_lines(run: Path) -> Iterator[str]:
    """How a finished run went, and the commands that use the result. Draws loss.png."""
    newest, checkpoint = run_checkpoints(run)[-1], find_checkpoint(run)
    state = json.loads((newest / STATE).read_text(encoding="utf-8"))
    settings = Recipe.load(run / RECIPE).training
    yield f"trained   {state['update']} updates in {duration(state['seconds'])}"
    if state["update"] < settings.updates:
        yield f"stopped   early: {settings.metric} was best in {checkpoint.name}"
    elif checkpoint != newest:
        yield f"best      {checkpoint.name}, by {settings.metric}"
    yield f"losses    {draw_losses(run)}"
    where = shlex.quote(str(checkpoint))
    if Contract.load(checkpoint / CONTRACT).name.startswith("mini_lift"):
        yield f"evaluate  diffusion-policy eval {where} --sim mini_lift --episodes 100"
    yield f"run       policy_node --ros-args -p checkpoint:={where}"


def draw_losses(run: Path) -> str:
    """Draw loss.png from loss.csv; says where it is, or why there is none."""
    figure = empty_figure(8, 4.5)
    if figure is None:
        return f"{run / TABLE}; for a picture: pip install matplotlib"
    with (run / TABLE).open(newline="") as file:
        table = csv.DictReader(file)
        rows, columns = list(table), table.fieldnames or ()
    axes = figure.subplots()
    for column in (name for name in columns if name not in ("update", "seconds")):
        points = [(int(row["update"]), float(row[column])) for row in rows if row[column]]
        if points:
            style = "-" if column == "loss" else "o-"
            axes.plot(*zip(*points, strict=True), style, label=column, markersize=4, linewidth=1)
    axes.set(xlabel="update", yscale="log", title=run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(run / PICTURE) as draft:
        figure.savefig(draft, dpi=110, format="png")
    return str(run / PICTURE)
