"""Batches, each read and on its way to the GPU while the one before is learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """What a process learns from in one update.

    Attributes:
        arrays: key -> (B, ...) tensors, on the device.
        where: which windows of the whole batch these are.
        padding: (whole batch, H), see WindowDataset.padding.
    """

    arrays: Mapping[str, Tensor]
    where: slice
    padding: NDArray[np.bool_]


Arrays = Mapping[str, NDArray[Any]]
Read = Callable[[int], tuple[Arrays, NDArray[np.bool_]]]  # number -> arrays, padding


@contextmanager
def read_ahead(
    read: Read, update: int, where: slice, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """The batches of `update` and those after it, from what `read` gives."""
    upload = _pinned_upload(device) if device.type == "cuda" else _plain_upload(device)

    def prepare(number: int) -> tuple[Batch, Arrived]:
        arrays, padding = read(number)
        there, arrived = upload({key: torch.from_numpy(value) for key, value in arrays.items()})
        return Batch(there, where, padding), arrived

    def generate() -> Iterator[Batch]:
        number, ahead = update, reader.submit(prepare, update)
        while True:
            batch, arrived = ahead.result()
            number += 1
            ahead = reader.submit(prepare, number)
            arrived(batch.arrays)
            yield batch

    with ThreadPoolExecutor(1) as reader:
        yield generate()


Arrived = Callable[[Mapping[str, Tensor]], None]  # to be called before they are used
Upload = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], Arrived]]


def _plain_upload(device: torch.device) -> Upload:
    def upload(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arrived]:
        return {key: value.to(device) for key, value in tensors.items()}, lambda _: None

    return upload


def _pinned_upload(device: torch.device) -> Upload:
    """From page-locked memory, on a stream of its own: the GPU copies while it computes."""
    copying = torch.cuda.Stream(device)

    def upload(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arrived]:
        done = torch.cuda.Event()
        with torch.cuda.stream(copying):
            there = {
                key: value.pin_memory().to(device, non_blocking=True)
                for key, value in tensors.items()
            }
            done.record(copying)

        def arrived(used: Mapping[str, Tensor]) -> None:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(done)
            for tensor in used.values():
                tensor.record_stream(computing)  # its memory is not given away before that is done

        return there, arrived

    return upload
