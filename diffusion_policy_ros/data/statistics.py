"""Statistics of a dataset's numbers: of columns, of pixels, and of more than fits into memory."""

from __future__ import annotations

import numpy as np

from diffusion_policy_ros.observe.codecs import Array

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


class Running:
    """Statistics of vectors that come in parts: exact, but for quantiles, which are of a share.

    Args:
        share: one row in so many is kept for the quantiles.
    """

    def __init__(self, share: int = 1) -> None:
        self._share, self._count = share, 0
        self._low, self._high = np.array(np.inf), np.array(-np.inf)
        self._sum, self._squares = np.array(0.0), np.array(0.0)
        self._kept: list[Array] = []

    def add(self, values: Array) -> None:
        """Take rows (N, n)."""
        wide = values.astype(np.float64)
        self._low = np.minimum(self._low, wide.min(0, initial=np.inf))
        self._high = np.maximum(self._high, wide.max(0, initial=-np.inf))
        self._sum, self._squares = self._sum + wide.sum(0), self._squares + (wide**2).sum(0)
        self._count += len(values)
        self._kept.append(values[:: self._share])

    def statistics(self) -> dict[str, Array]:
        """Of all that came."""
        mean = self._sum / self._count
        found = {
            "min": self._low,
            "max": self._high,
            "mean": mean,
            "std": np.sqrt(np.maximum(self._squares / self._count - mean**2, 0)),
            "quantiles": np.quantile(np.concatenate(self._kept), QUANTILES, axis=0),
        }
        return {name: value.astype(np.float32) for name, value in found.items()}


def of_vectors(values: Array) -> dict[str, Array]:
    """Of rows (N, n)."""
    # A float32 sum over a million frames is off in the fourth digit.
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": mean.astype(np.float32),
        "std": std.astype(np.float32),
        "quantiles": np.quantile(values, QUANTILES, axis=0).astype(np.float32),
    }


def of_pixels(pixels: Array) -> dict[str, Array]:
    """Of uint8 (N, C), from how often each value occurs."""
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    share = counts / counts.sum(1, keepdims=True)
    levels = np.arange(256)
    mean = share @ levels
    cumulated = np.cumsum(share, axis=1)
    found = {
        "min": (counts > 0).argmax(1),
        "max": 255 - (counts[:, ::-1] > 0).argmax(1),
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        "quantiles": np.stack([(cumulated >= q - 1e-12).argmax(1) for q in QUANTILES]),
    }
    return {name: value.astype(np.float32) for name, value in found.items()}
