"""In which order windows are drawn, and how what they need is read ahead of its turn."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def batch_indices(
    windows: int,
    size: int,
    number: int,
    seed: tuple[int, ...],
    shares: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """The windows of batch `number` (from 0): epochs of shuffled windows, one after another.

    Args:
        windows: how many there are.
        size: of a batch.
        number: the batch's.
        seed: of all batches.
        shares: (windows,) share of draws of the windows up to each, the last is 1. An epoch then
            has each window as often as its share says, to within one (systematic resampling).
    """
    places = number * size + np.arange(size)
    epochs, within = places // windows, places % windows
    found = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        drawn = _epoch_order(windows, (*seed, epoch))[within[epochs == epoch]]
        if shares is not None:
            start = np.random.default_rng([*seed, epoch, 1]).random()
            drawn = np.searchsorted(shares, (drawn + start) / windows, side="right")
        found[epochs == epoch] = np.minimum(drawn, windows - 1)
    return found


@functools.lru_cache(maxsize=2)  # the epoch that is ending and the one that begins
def _epoch_order(windows: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(windows)


@contextmanager
def prefetch(read: Callable[[int], T], first: int, readers: int = 1) -> Iterator[Iterator[T]]:
    """What `read` gives of `first` and the numbers after it, in order.

    Each of the readers, which are threads, has one in the making, so that as many lie ready or are
    on their way.
    """

    def generate() -> Iterator[T]:
        ahead = deque(pool.submit(read, first + i) for i in range(readers))
        for number in itertools.count(first + readers):
            found = ahead.popleft().result()
            ahead.append(pool.submit(read, number))
            yield found

    pool = ThreadPoolExecutor(readers)
    try:
        yield generate()
    finally:
        pool.shutdown(cancel_futures=True)
