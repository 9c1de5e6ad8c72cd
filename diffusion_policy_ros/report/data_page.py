"""A dataset's episodes as one HTML page: a strip of frames, a plot, and what looks odd."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_policy_ros.data.dataset import ACTION, Dataset
from diffusion_policy_ros.data.oddities import Oddity, oddities
from diffusion_policy_ros.report.html import Page
from diffusion_policy_ros.report.plot import empty_figure, png

FRAMES, HEIGHT = 8, 96
"""Pictures of a strip, and how high a camera's are."""
SHADES = {"idle": "#999999", "jump": "#d55e00"}


def write_data_page(path: Path, folder: Path, lines: Sequence[int], most: int) -> list[str]:
    """Write the page.

    Args:
        path: of the HTML file.
        folder: the dataset.
        lines: which episodes, by their lines in the index.
        most: how many are drawn, those that look odd first; all of them are looked at.

    Returns:
        What looks odd, in lines for people.

    Raises:
        UserError: the dataset is damaged.
    """
    dataset = Dataset(folder)
    number_of = {line: number for number, line in enumerate(dataset.lines)}
    numbers = [number_of[line] for line in lines]
    found = oddities(dataset, numbers)
    page = Page(f"Dataset: {folder.absolute().name}")
    _introduce(page, dataset, numbers, found)
    odd = {one.number for one in found}
    drawn = sorted(sorted(numbers, key=lambda n: n not in odd)[:most])
    if len(drawn) < len(numbers):
        more = f"{len(drawn)} of {len(numbers)} episodes are drawn, those that look odd first."
        page.paragraph(more)
    for number in drawn:
        _draw(page, dataset, number, [one for one in found if one.number == number])
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)
    return [_line(dataset, one) for one in found]


def _line(dataset: Dataset, one: Oddity) -> str:
    line, source, kind, text = _row(dataset, one)
    return f"{kind:<11}{line} ({source}): {text}"


def _text(dataset: Dataset, one: Oddity) -> str:
    """A duplicate names the other one by its line in the index, as all of the page does."""
    if one.kind != "duplicate":
        return one.text
    words, _, number = one.text.rpartition(" ")
    return f"{words} {dataset.lines[int(number)]}"


def _introduce(
    page: Page, dataset: Dataset, numbers: Sequence[int], found: Sequence[Oddity]
) -> None:
    episodes, contract = [dataset.episodes[n] for n in numbers], dataset.contract
    frames = sorted(episode.frames for episode in episodes)
    known = [e.success for e in episodes if e.success is not None]
    tags = sorted({tag for episode in episodes for tag in episode.tags})
    page.facts(
        {
            "contract": f"{contract.name}, {contract.rate_hz:g} Hz",
            "episodes": f"{len(episodes)}, of {frames[0]} to {frames[-1]} frames",
            "frames": f"{sum(frames)}, {sum(frames) / contract.rate_hz:.0f} s",
            "successes": f"{sum(known)} of {len(known)}" if known else "not recorded",
            "tasks": ", ".join(sorted({e.task for e in episodes if e.task})) or "none said",
            "tags": ", ".join(tags) or "none",
        }
    )
    page.heading("What looks odd")
    rows = [
        (
            dataset.lines[one.number],
            dataset.episodes[one.number].source,
            one.kind,
            _text(dataset, one),
        )
        for one in found
    ]
    if rows:
        page.table(("no.", "source", "what", ""), rows)
        page.code(f"diffusion-policy data drop {dataset.path} --episodes {rows[0][0]}")
    else:
        page.paragraph("Nothing: lengths, steps, stillness and commands are alike.")


def _row(dataset: Dataset, one: Oddity) -> tuple[object, ...]:
    source = dataset.episodes[one.number].source
    return dataset.lines[one.number], source, one.kind, _text(dataset, one)


def _draw(page: Page, dataset: Dataset, number: int, found: Sequence[Oddity]) -> None:
    episode = dataset.episodes[number]
    page.heading(f"{dataset.lines[number]}: {episode.source}")
    success = {True: "success", False: "failed", None: ""}[episode.success]
    said = (f"{episode.frames} frames", success, episode.task, *episode.tags, episode.split)
    page.paragraph(", ".join(filter(None, said)))
    for one in found:
        page.paragraph(f"{one.kind}: {_text(dataset, one)}")
    strip = _strip(dataset, number)
    if strip is not None:
        page.figure(strip, "cameras from top to bottom, time from left to right", "image/jpeg")
    plot = _plot(dataset, number, found)
    if plot is not None:
        page.figure(plot, "states above, actions below; grey is still, red a jump")


def _strip(dataset: Dataset, number: int) -> bytes | None:
    """Some frames of all cameras as one jpeg."""
    cameras = [key for key, stream in dataset.contract.observations.items() if stream.is_image]
    if not cameras:
        return None
    start, frames = dataset.first_row(number), dataset.episodes[number].frames
    rows = start + np.linspace(0, frames - 1, min(FRAMES, frames)).round().astype(np.int64)
    lines = [np.concatenate([_small(p) for p in dataset.rows[k].take(rows)], 1) for k in cameras]
    width = max(line.shape[1] for line in lines)
    whole = np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]), (0, 0))) for a in lines])
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _small(picture: Any) -> Any:
    """(H, W, C) in colour, HEIGHT high."""
    height, width, channels = picture.shape
    image = Image.fromarray(picture if channels == 3 else picture[..., 0]).convert("RGB")
    return np.asarray(image.resize((max(1, round(width * HEIGHT / height)), HEIGHT)))


def _plot(dataset: Dataset, number: int, found: Sequence[Oddity]) -> bytes | None:
    figure = empty_figure(10, 3.2)
    if figure is None:
        return None
    start = dataset.first_row(number)
    rows = np.arange(start, start + dataset.episodes[number].frames)
    vectors = [key for key, stream in dataset.contract.observations.items() if not stream.is_image]
    for axes, keys in zip(figure.subplots(2, 1, sharex=True), (vectors, [ACTION]), strict=True):
        for key in keys:
            axes.plot(dataset.rows[key].take(rows), lw=0.9)
        for one in found:
            if one.start is not None and one.stop is not None and one.kind in SHADES:
                axes.axvspan(one.start, one.stop, color=SHADES[one.kind], alpha=0.25, lw=0)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return png(figure)
