"""Plain ``.npy`` files: written row by row, and read only where they hold what they should."""

from __future__ import annotations

import ast
import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

CURE = "copy the dataset again, or convert the bags again"
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER_BYTES = 256
"""Fixed, so that the number of rows can be written when it is known."""


class Column(NamedTuple):
    """What a key's array holds in each row."""

    dtype: str
    shape: tuple[int, ...]


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
        close_for_good(self._file)


def close_for_good(file: BinaryIO) -> None:
    """Close a file when it is on the disk: an index will count on it, and others be removed."""
    with file:
        file.flush()
        os.fsync(file.fileno())


def read_npy(path: Path, column: Column, rows: int) -> Array:
    """The array of a file that holds what it should, ``rows`` rows of a column.

    Raises:
        UserError: it is missing, cut off, or something else.
    """
    offset = checked_npy(path, column, rows)
    shape = (rows, *column.shape)
    count = int(np.prod(shape, dtype=np.int64))
    return np.fromfile(path, column.dtype, count, offset=offset).reshape(shape)


def checked_npy(path: Path, column: Column, rows: int) -> int:
    """Where the numbers begin in a file that holds what it should; see `read_npy`."""
    try:
        with path.open("rb") as file:
            dtype, shape, offset = _read_header(file.read(4096))
    except FileNotFoundError:
        raise UserError("the file is missing", str(path), CURE) from None
    except PermissionError:
        raise UserError("may not be read", str(path), "change its permissions") from None
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, struct.error):
        raise UserError("the file is no plain .npy array", str(path), CURE) from None
    wanted = (np.dtype(column.dtype), (rows, *column.shape))
    if (dtype, shape) != wanted:
        what = f"holds {dtype} {shape}, the dataset says {wanted[0]} {wanted[1]}"
        raise UserError(what, str(path), CURE)
    size = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if path.stat().st_size != size:
        raise UserError(f"has {path.stat().st_size} bytes instead of {size}", str(path), CURE)
    return offset


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
