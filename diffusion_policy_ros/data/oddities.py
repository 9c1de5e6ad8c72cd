"""What looks odd in a dataset's episodes: lengths, jumps, stillness, saturation, duplicates.

None of it is an error: it is what a person should look at before training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.data.dataset import ACTION, Dataset
from diffusion_policy_ros.observe.codecs import Array

OUTLIER = 3.5
"""Modified z-score of a length's logarithm (Iglewicz and Hoaglin 1993)."""
LEAST_RATIO = 1.5
"""A length within this of the median is never an outlier, however alike the others are."""
JUMP = 8.0
"""Times the 99th percentile of all steps of a stream."""
IDLE_S, STILL = 1.0, 1e-3
"""Stillness is worth a word from here on; a step below this share of the range is none."""
SATURATED, LEVELS = 0.25, 3
"""Share of frames at the largest or smallest value; with so few values it is a switch."""


class Oddity(NamedTuple):
    """What looks odd in one episode.

    Attributes:
        number: of the episode in the dataset.
        kind: length, jump, idle, saturation, or duplicate.
        text: for people.
        start: first frame of it; none of the whole episode.
        stop: the frame after its last.
    """

    number: int
    kind: str
    text: str
    start: int | None = None
    stop: int | None = None


def oddities(dataset: Dataset, numbers: Sequence[int]) -> list[Oddity]:
    """All that looks odd in some episodes, in their order.

    Args:
        dataset: the dataset, by all chosen episodes of which "usual" is measured.
        numbers: which of its episodes.
    """
    vectors = [key for key, stream in dataset.contract.observations.items() if not stream.is_image]
    arrays = {n: _vectors(dataset, n, [*vectors, ACTION]) for n in numbers}
    found = list(_lengths(arrays))
    for key in vectors:
        found += _jumps(arrays, key, dataset.contract.observations[key].quantity == "orientation")
    found += _idle(arrays, [*vectors, ACTION], dataset.contract.rate_hz)
    if dataset.contract.action.commands:  # what is derived from states rests where the arm does
        found += _saturation(arrays, dataset.contract.action_names)
    found += _duplicates(arrays, [*vectors, ACTION])
    return sorted(found, key=lambda one: (one.number, one.kind, one.start or 0))


Arrays = Mapping[int, Mapping[str, Array]]


def _vectors(dataset: Dataset, number: int, keys: Sequence[str]) -> dict[str, Array]:
    start = dataset.first_row(number)
    rows = np.arange(start, start + dataset.episodes[number].frames)
    # In float64 no difference of two float32 overflows.
    return {key: dataset.rows[key].take(rows).astype(np.float64) for key in keys}


def _lengths(arrays: Arrays) -> Iterator[Oddity]:
    """Much longer or shorter than most."""
    lengths = np.log([len(one[ACTION]) for one in arrays.values()])
    median = np.median(lengths)
    spread = max(float(np.median(np.abs(lengths - median))), 1e-9)
    for number, length in zip(arrays, lengths.tolist(), strict=True):
        far = abs(length - median)
        if 0.6745 * far / spread > OUTLIER and far > np.log(LEAST_RATIO):
            often = "longer" if length > median else "shorter"
            times = float(np.exp(far))
            text = f"{round(np.exp(length))} frames, {times:.1f} times {often} than the median"
            yield Oddity(number, "length", text)


def _jumps(arrays: Arrays, key: str, turns: bool) -> Iterator[Oddity]:
    """Steps that no other frame makes."""
    steps = {number: _steps(one[key], turns) for number, one in arrays.items()}
    everything = np.concatenate(list(steps.values()))
    if not len(everything):
        return
    usual = float(np.quantile(everything, 0.99))
    for number, found in steps.items():
        for frame in np.flatnonzero(found > max(JUMP * usual, 1e-6)).tolist()[:5]:
            often = f", {found[frame] / usual:.0f} times what is usual" if usual > 1e-9 else ""
            text = f"{key} jumps by {found[frame]:.3g} at frame {frame + 1}{often}"
            yield Oddity(number, "jump", text, frame, frame + 2)


def _steps(values: Array, turns: bool) -> NDArray[np.float64]:
    """Lengths of the steps; q and -q are the same orientation."""
    steps = np.linalg.norm(np.diff(values, axis=0), axis=1)
    if turns and len(values) > 1:
        steps = np.minimum(steps, np.linalg.norm(values[1:] + values[:-1], axis=1))
    return np.asarray(steps)


def _idle(arrays: Arrays, keys: Sequence[str], rate_hz: float) -> Iterator[Oddity]:
    """Spans in which neither the state nor the command changes."""
    whole = {key: np.concatenate([one[key] for one in arrays.values()]) for key in keys}
    ranges = {key: np.ptp(values, axis=0) for key, values in whole.items()}
    for number, one in arrays.items():
        still = np.ones(len(one[ACTION]) - 1, dtype=bool)
        for key in keys:
            moved = np.abs(np.diff(one[key], axis=0)) > STILL * np.maximum(ranges[key], 1e-9)
            still &= ~moved.any(axis=1)
        for start, stop in spans(still):
            if stop - start >= IDLE_S * rate_hz:
                text = f"still for {(stop - start) / rate_hz:.1f} s from frame {start}"
                yield Oddity(number, "idle", text, start, stop)


def _saturation(arrays: Arrays, names: Sequence[str]) -> Iterator[Oddity]:
    """Commands that stay at the largest or smallest value that there is."""
    everything = np.concatenate([one[ACTION] for one in arrays.values()])
    for i, name in enumerate(names):
        column = everything[:, i]
        low, high = float(column.min()), float(column.max())
        if len(np.unique(column[:10_000])) <= LEVELS:
            continue
        edge = 1e-4 * (high - low)
        for number, one in arrays.items():
            values = one[ACTION][:, i]
            share = float(((values <= low + edge) | (values >= high - edge)).mean())
            if share > SATURATED:
                text = f"{name} is at its largest or smallest value in {share:.0%} of the frames"
                yield Oddity(number, "saturation", text)


def _duplicates(arrays: Arrays, keys: Sequence[str]) -> Iterator[Oddity]:
    """Episodes of the very same states and actions, whatever their stamps."""
    seen: dict[str, int] = {}
    for number, one in arrays.items():
        digest = hashlib.blake2b(b"".join(one[key].tobytes() for key in keys)).hexdigest()
        first = seen.setdefault(digest, number)
        if first != number:
            yield Oddity(number, "duplicate", f"the same as episode {first}")


def spans(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where a mask is true: first place, and the place after the last, of each span."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
