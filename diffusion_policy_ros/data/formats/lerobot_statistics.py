"""Statistics as LeRobot keeps them, of episodes and of a whole dataset.

Of vectors they are exact. Of pictures they are those of some frames and pixels, per channel in
0 … 1, as LeRobot's own are; those of the whole dataset are of all pixels that its episodes' were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.data.statistics import QUANTILES
from diffusion_policy_ros.observe.codecs import Array

Statistics = dict[str, Any]
"""min, max, mean, std, count and q01 … q99 → nested lists."""
NAMES = tuple(f"q{round(100 * q):02d}" for q in QUANTILES)
_SAMPLED_SIDE = 150
"""Pixels along a picture's longer side that are counted, about."""


def sampled_frames(frames: int) -> set[int]:
    """Which of an episode's frames are looked at: 100 and more, of long ones a share."""
    count = int(np.clip(frames**0.75, min(frames, 100), 500))
    return set(np.linspace(0, frames - 1, count).round().astype(int).tolist())


class Pixels:
    """How often each value occurs in the channels of pictures.

    Attributes:
        counts: (3, 256).
        pictures: how many were looked at.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((3, 256), np.int64)
        self.pictures = 0

    def add(self, picture: Array) -> None:
        """Count some of a picture's pixels, uint8 (H, W, 3)."""
        step = max(1, max(picture.shape[:2]) // _SAMPLED_SIDE)
        some = picture[::step, ::step]
        for channel in range(3):
            values = some[..., channel].reshape(-1)
            self.counts[channel] += np.bincount(values, minlength=256)
        self.pictures += 1

    def merge(self, other: Pixels) -> None:
        """Add what was counted elsewhere."""
        self.counts += other.counts
        self.pictures += other.pictures

    def statistics(self) -> Statistics:
        """Each (3, 1, 1), in 0 … 1; count is of pictures."""
        levels = np.arange(256) / 255
        share = self.counts / self.counts.sum(1, keepdims=True)
        mean, cumulated = share @ levels, np.cumsum(share, axis=1)
        found = {
            "min": levels[(self.counts > 0).argmax(1)],
            "max": levels[255 - (self.counts[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        }
        for name, q in zip(NAMES, QUANTILES, strict=True):
            found[name] = levels[(cumulated >= q - 1e-12).argmax(1)]
        told: Statistics = {key: value.reshape(3, 1, 1).tolist() for key, value in found.items()}
        return {**told, "count": [self.pictures]}


def of_rows(values: Array) -> Statistics:
    """Of rows (N, n)."""
    exact = values.astype(np.float64)
    found = {
        "min": exact.min(0),
        "max": exact.max(0),
        "mean": exact.mean(0),
        "std": exact.std(0),
        **dict(zip(NAMES, np.quantile(exact, QUANTILES, axis=0), strict=True)),
    }
    told: Statistics = {key: value.tolist() for key, value in found.items()}
    return {**told, "count": [len(values)]}


def of_all(vectors: Mapping[str, Sequence[Array]], pixels: Mapping[str, Sequence[Pixels]]) -> Any:
    """Of a whole dataset: feature → statistics.

    Args:
        vectors: feature → (N, n) of each episode.
        pixels: camera → what was counted of each episode.
    """
    found = {key: of_rows(np.concatenate(list(parts))) for key, parts in vectors.items()}
    for key, counted in pixels.items():
        whole = Pixels()
        for part in counted:
            whole.merge(part)
        found[key] = whole.statistics()
    return found
