"""A dataset's episodes as one HTML page: a strip of frames, a plot, and what looks odd."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_policy_ros.data.dataset import ACTION, Dataset
from diffusion_policy_ros.data.oddities import Oddity, oddities
from diffusion_policy_ros.report.html import Page
from diffusion_policy_ros.report.plot import empty_figure, png

FRAMES, HEIGHT, WIDEST, GAP = 8, 96, 960, 3
"""Pictures of a strip, how high and at most wide a camera's are, and what is between them."""
NAMED = 14
"""Components whose names stand beside a plot, at most."""
SHADES = {"idle": "#999999", "jump": "#d55e00"}


def write_data_page(
    path: Path, dataset: Dataset, lines: Sequence[int], most: int
) -> tuple[list[str], list[int]]:
    """Write the page.

    Args:
        path: of the HTML file.
        dataset: the dataset.
        lines: which episodes, by their lines in the index.
        most: how many are drawn, those that look odd first; all of them are looked at.

    Returns:
        What looks odd, in lines for people, and the numbers of the episodes that are drawn.

    Raises:
        UserError: the dataset is damaged.
    """
    number_of = {line: number for number, line in enumerate(dataset.lines)}
    numbers = [number_of[line] for line in lines]
    found = oddities(dataset, numbers)
    page = Page(f"Dataset: {dataset.path.absolute().name}")
    _introduce(page, dataset, numbers, found)
    odd = {one.number for one in found}
    drawn = sorted(sorted(numbers, key=lambda n: n not in odd)[:most])
    if len(drawn) < len(numbers):
        more = f"{len(drawn)} of {len(numbers)} episodes are drawn, those that look odd first."
        page.paragraph(more)
    ranges = _ranges(dataset, numbers)
    for number in drawn:
        _draw(page, dataset, number, [one for one in found if one.number == number], ranges)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)
    return [_line(dataset, one) for one in found], drawn


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
    lengths = str(frames[0]) if frames[0] == frames[-1] else f"{frames[0]} to {frames[-1]}"
    known = [e.success for e in episodes if e.success is not None]
    tags = sorted({tag for episode in episodes for tag in episode.tags})
    page.facts(
        {
            "contract": f"{contract.name}, {contract.rate_hz:g} Hz",
            "episodes": f"{len(episodes)}, of {lengths} frames",
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
        page.paragraph("What should not be learned from is left out by, for example:")
        where = shlex.quote(str(dataset.path))
        page.code(f"diffusion-policy data drop {where} --episodes {rows[0][0]}")
    else:
        page.paragraph("Nothing: lengths, steps, stillness and commands are alike.")


def _row(dataset: Dataset, one: Oddity) -> tuple[object, ...]:
    source = dataset.episodes[one.number].source
    return dataset.lines[one.number], source, one.kind, _text(dataset, one)


Ranges = Mapping[str, tuple[Any, Any]]


def _ranges(dataset: Dataset, numbers: Sequence[int]) -> Ranges:
    """Smallest and largest value of each vector's components in all these episodes."""
    firsts = [(dataset.first_row(n), dataset.episodes[n].frames) for n in numbers]
    rows = np.concatenate([np.arange(first, first + count) for first, count in firsts])
    streams = dataset.contract.observations.items()
    keys = [key for key, stream in streams if not stream.is_image]
    values = {key: dataset.rows[key].take(rows) for key in (*keys, ACTION)}
    edges = {key: (array.min(0), array.max(0)) for key, array in values.items()}
    # In float64 no difference of two float32 overflows.
    return {
        k: (low.astype(np.float64), high.astype(np.float64)) for k, (low, high) in edges.items()
    }


def _draw(
    page: Page, dataset: Dataset, number: int, found: Sequence[Oddity], ranges: Ranges
) -> None:
    episode = dataset.episodes[number]
    page.heading(f"{dataset.lines[number]}: {episode.source}")
    success = {True: "success", False: "failed", None: ""}[episode.success]
    said = (f"{episode.frames} frames", success, episode.task, *episode.tags, episode.split)
    page.paragraph(", ".join(filter(None, said)))
    for kind in dict.fromkeys(one.kind for one in found):
        texts = [_text(dataset, one) for one in found if one.kind == kind]
        page.paragraph(f"{kind}: {'; '.join(texts)}")
    strip = _strip(dataset, number)
    if strip is not None:
        page.figure(strip, "cameras from top to bottom, time from left to right", "image/jpeg")
    plot = _plot(dataset, number, found, ranges)
    if plot is not None:
        each = "each number between its smallest and its largest value in these episodes"
        page.figure(plot, f"states above, actions below, {each}; grey is still, red a jump")


def _strip(dataset: Dataset, number: int) -> bytes | None:
    """Some frames of all cameras as one jpeg."""
    cameras = [key for key, stream in dataset.contract.observations.items() if stream.is_image]
    if not cameras:
        return None
    start, frames = dataset.first_row(number), dataset.episodes[number].frames
    rows = start + np.linspace(0, frames - 1, min(FRAMES, frames)).round().astype(np.int64)
    lines = [[_small(picture) for picture in dataset.rows[key].take(rows)] for key in cameras]
    width = max(line[0].width for line in lines) + GAP
    size = (len(rows) * width - GAP, len(lines) * (HEIGHT + GAP) - GAP)
    whole, buffer = Image.new("RGB", size, "white"), io.BytesIO()
    for down, line in enumerate(lines):
        for across, picture in enumerate(line):
            whole.paste(picture, (across * width, down * (HEIGHT + GAP)))
    whole.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _small(picture: Any) -> Image.Image:
    """Of (H, W, C), in colour, HEIGHT high, or lower where it would be wider than WIDEST."""
    height, width, channels = picture.shape
    image = Image.fromarray(picture if channels == 3 else picture[..., 0]).convert("RGB")
    scale = min(HEIGHT / height, WIDEST / width)
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))))


def _plot(dataset: Dataset, number: int, found: Sequence[Oddity], ranges: Ranges) -> bytes | None:
    figure = empty_figure(10, 4)
    if figure is None:
        return None
    start = dataset.first_row(number)
    rows = np.arange(start, start + dataset.episodes[number].frames)
    names = {key: [f"{key}.{i}" for i in range(len(low))] for key, (low, _) in ranges.items()}
    names[ACTION] = list(dataset.contract.action_names)
    vectors = [key for key in ranges if key != ACTION]
    figure.set_layout_engine(None)  # which would draw all of it twice
    figure.subplots_adjust(0.01, 0.1, 0.85, 0.99, hspace=0.06)
    both = figure.subplots(2, 1, sharex=True)
    for axes, keys in zip(both, (vectors, [ACTION]), strict=True):
        for key in keys:
            low, high = ranges[key]
            values = (dataset.rows[key].take(rows) - low) / np.where(high > low, high - low, 1)
            axes.plot(values, lw=0.9, label=names[key])
        count = sum(len(names[key]) for key in keys)
        if 0 < count <= NAMED:
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
            axes.legend(**beside, fontsize=6)
        for one in found:
            if one.start is not None and one.stop is not None and one.kind in SHADES:
                axes.axvspan(one.start, one.stop, color=SHADES[one.kind], alpha=0.25, lw=0)
        axes.set_yticks([])
        axes.margins(x=0)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    both[1].set_xlabel("frame", fontsize=7)
    return png(figure)
