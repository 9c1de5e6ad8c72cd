"""A shard: frames of several episodes, one plain ``.npy`` a key, read through memory maps.

Rows that were trimmed or refused after they had been written stay where they are: episodes say
which rows count.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

ACTION, STAMP = "action", "stamp_ns"
"""The keys beside the observations: float32 (N, Da), and the frames' times int64 (N,)."""

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER_BYTES = 256
"""Fixed, so that the number of rows can be written when it is known."""


class Column(NamedTuple):
    """What a key's array holds in each row."""

    dtype: str
    shape: tuple[int, ...]


def columns(contract: Contract) -> dict[str, Column]:
    """Key → what a row of it is.

    Raises:
        UserError: an observation has a name that no file can have.
    """
    found = {ACTION: Column("<f4", (contract.action_dim,)), STAMP: Column("<i8", ())}
    for key, stream in contract.observations.items():
        if key in found or not key.replace("_", "").replace("-", "").replace(".", "").isalnum():
            cure = f"rename it: letters, digits, '_', '-', '.', and not {ACTION} or {STAMP}"
            raise UserError(
                f"the observation '{key}' cannot be a file's name", contract.name, cure
            )
        found[key] = Column("|u1" if stream.is_image else "<f4", stream.shape)
    return found


class NpyWriter:
    """An ``.npy`` file that rows are appended to.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, path: Path, column: Column) -> None:
        self.rows = 0
        self._column, self._dtype = column, np.dtype(column.dtype)
        self._row_bytes = self._dtype.itemsize * int(np.prod(column.shape, dtype=np.int64))
        self._file = path.open("wb", buffering=1 << 18)
        self._file.write(b"\0" * _HEADER_BYTES)

    def append(self, rows: Array) -> None:
        """Add rows: (n, ...), of the column's dtype."""
        if rows.dtype != self._dtype or rows.shape[1:] != self._column.shape:
            raise ValueError(f"{rows.dtype} {rows.shape} does not fit {self._column}")
        self._file.write(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")
        self.rows += len(rows)

    def truncate(self, rows: int) -> None:
        """Forget all rows from that one on."""
        self._file.flush()
        self._file.seek(self._file.truncate(_HEADER_BYTES + rows * self._row_bytes))
        self.rows = rows

    def close(self) -> None:
        """Write the header that makes it an ``.npy`` file."""
        shape = (self.rows, *self._column.shape)
        text = f"{{'descr': {self._column.dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
        start = _MAGIC + struct.pack("<H", _HEADER_BYTES - len(_MAGIC) - 2) + text.encode()
        self._file.seek(0)
        self._file.write(start.ljust(_HEADER_BYTES - 1) + b"\n")
        self._file.close()


class ShardWriter:
    """Writes one shard's folder.

    Args:
        folder: made if it is missing.
        contract: says which keys there are.
    """

    def __init__(self, folder: Path, contract: Contract) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writers = {
            key: NpyWriter(folder / f"{key}.npy", column)
            for key, column in columns(contract).items()
        }

    @property
    def rows(self) -> int:
        """Rows that every key has."""
        return min(writer.rows for writer in self._writers.values())

    def append(self, arrays: dict[str, Array]) -> None:
        """Add rows to some keys: key → (n, ...)."""
        for key, rows in arrays.items():
            self._writers[key].append(rows)

    def truncate(self, rows: int) -> None:
        """Forget all rows from that one on, of every key."""
        for writer in self._writers.values():
            writer.truncate(rows)

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()


def open_shard(folder: Path, contract: Contract, rows: int) -> dict[str, Array]:
    """Map a shard's arrays into memory.

    Args:
        folder: the shard.
        contract: says which keys there are, and of what shape.
        rows: how many rows the dataset counts on.

    Raises:
        UserError: a file is missing, cut off, or not what the contract says.
    """
    return {key: _open_npy(folder / f"{key}.npy", c, rows) for key, c in columns(contract).items()}


def _open_npy(path: Path, column: Column, rows: int) -> Array:
    cure = "copy the dataset again, or convert the bags again"
    try:
        with path.open("rb") as file:
            dtype, shape, offset = _read_header(file.read(4096))
    except FileNotFoundError:
        raise UserError("the file is missing", str(path), cure) from None
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, struct.error):
        raise UserError("the file is no plain .npy array", str(path), cure) from None
    wanted = (np.dtype(column.dtype), (rows, *column.shape))
    if (dtype, shape) != wanted:
        what = f"holds {dtype} {shape}, the dataset says {wanted[0]} {wanted[1]}"
        raise UserError(what, str(path), cure)
    size = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if path.stat().st_size != size:
        raise UserError(f"has {path.stat().st_size} bytes instead of {size}", str(path), cure)
    if not rows:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", offset, shape))


def _read_header(start: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    """Dtype, shape and data offset of a version 1 header, the only kind that is written."""
    if start[:8] != _MAGIC:
        raise ValueError("magic")
    (length,) = struct.unpack_from("<H", start, 8)
    header = ast.literal_eval(start[10 : 10 + length].decode("latin1").strip())
    if header["fortran_order"] or not isinstance(header["descr"], str):
        raise ValueError("order")
    dtype = np.dtype(header["descr"])
    if dtype.hasobject:
        raise ValueError("objects")
    return dtype, tuple(int(size) for size in header["shape"]), 10 + length


class Rows:
    """The rows of one key over all shards, as if they were one array.

    Vectors are read into memory; images stay in their maps.
    """

    def __init__(self, parts: Iterable[Array]) -> None:
        self._parts = list(parts)
        if self._parts[0].ndim < 3:
            self._parts = [np.concatenate(self._parts)]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.shape, self.dtype = self._parts[0].shape[1:], self._parts[0].dtype

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Rows by number: any shape (...) → (..., *shape)."""
        if len(self._parts) == 1:
            return self._parts[0].take(rows, axis=0)
        flat = rows.ravel()
        result = np.empty((len(flat), *self.shape), self.dtype)
        part_of = np.searchsorted(self._ends, flat, side="right")
        for number in np.unique(part_of):
            places = np.flatnonzero(part_of == number)
            part = self._parts[number]
            result[places] = part[flat[places] - (self._ends[number] - len(part))]
        return result.reshape(*rows.shape, *self.shape)
