"""Arrays of zarr's format 2, from a folder or a zip, without zarr.

An array is a ``.zarray``, which is JSON, and a file a chunk; the format is frozen
(https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html), and a reader of it goes with any Python
and NumPy.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

LARGEST = 1 << 31
"""Bytes of a chunk; more is no chunk but a mistake."""
_AGAIN = "get the buffer again"
_PICTURES = ("jpegxl", "jpeg2k", "jpeg", "png", "webp", "jpegls", "jpegxr", "avif", "qoi")
"""Codecs of imagecodecs that make a picture of a chunk."""
_OWN: dict[str, Callable[[bytes], bytes]] = {"zlib": zlib.decompress, "gzip": gzip.decompress}


class Store:
    """Files of a zarr store by their names.

    Args:
        path: a folder, or a zip file.

    Raises:
        UserError: it is neither.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        if path.is_file():
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError):
                raise UserError("is cut off, or no zip file", str(path), _AGAIN) from None
        elif not path.is_dir():
            cure = "give a folder like pusht.zarr, or a .zarr.zip"
            raise UserError("no such buffer", str(path), cure)

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none.

        Raises:
            UserError: it is damaged.
        """
        try:
            if self._zip is not None:
                if self._zip.getinfo(name).file_size > LARGEST:
                    raise UserError(f"{name} is too large", str(self.path), _AGAIN)
                return self._zip.read(name)
            return (self.path / name).read_bytes()
        except (KeyError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            raise UserError(f"{name} is damaged", str(self.path), _AGAIN) from None

    def arrays(self, group: str) -> list[str]:
        """Names of the arrays in a group."""
        if self._zip is not None:
            names = self._zip.namelist()
        else:
            names = [
                f"{group}/{p.parent.name}/.zarray" for p in self.path.glob(f"{group}/*/.zarray")
            ]
        ends = [
            n.split("/") for n in names if n.startswith(f"{group}/") and n.endswith("/.zarray")
        ]
        return sorted(parts[1] for parts in ends if len(parts) == 3)


class ZarrArray:
    """An array of a store, read by rows.

    Args:
        store: which it is in.
        name: its place there.

    Raises:
        UserError: it is missing, or of a kind that cannot be read.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self.name = store, name
        told = store.read(f"{name}/.zarray")
        if told is None:
            raise UserError(
                f"has no {name}", str(store.path), "give a replay buffer's folder or zip"
            )
        try:
            about = json.loads(told)
            self.shape = tuple(int(size) for size in about["shape"])
            self._chunks = tuple(int(size) for size in about["chunks"])
            self.dtype = np.dtype(about["dtype"])
            self._fill = about.get("fill_value") or 0
            self._separator = str(about.get("dimension_separator", "."))
            self._decode = _decoder(about.get("compressor"))
            plain = about["order"] == "C" and not about.get("filters")
            plain = plain and about["zarr_format"] == 2 and self.dtype.kind in "fiub"
            plain = plain and min(self._chunks) > 0 and len(self._chunks) == len(self.shape) > 0
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{name} says no shape or dtype", str(store.path), _AGAIN) from None
        if not plain or math.prod(self._chunks) * self.dtype.itemsize > LARGEST:
            what = f"{name} is not of zarr's format 2, in C order, without filters"
            raise UserError(what, str(store.path), "write it anew with zarr's format 2")
        self._last: tuple[int, Array] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> Array:
        """Rows start … stop - 1.

        Raises:
            UserError: a chunk is damaged.
        """
        size = self._chunks[0]
        parts = []
        for number in range(start // size, -(-stop // size)):
            slab = self._slab(number)
            parts.append(slab[max(0, start - number * size) : stop - number * size])
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)

    def _slab(self, number: int) -> Array:
        """All columns of a chunk's rows; the last one is kept."""
        if self._last is None or self._last[0] != number:
            grid = [-(-n // c) for n, c in zip(self.shape[1:], self._chunks[1:], strict=True)]
            slab = np.empty((self._chunks[0], *self.shape[1:]), self.dtype)
            for place in np.ndindex(*grid):
                chunk = self._chunk((number, *place))
                at = [
                    slice(p * c, p * c + c) for p, c in zip(place, self._chunks[1:], strict=True)
                ]
                index = (slice(None), *at)
                target = slab[index]
                target[...] = chunk[tuple(slice(n) for n in target.shape)]
            self._last = (number, slab)
        return self._last[1]

    def _chunk(self, place: tuple[int, ...]) -> Array:
        name = f"{self.name}/{self._separator.join(map(str, place))}"
        data = self._store.read(name)
        if data is None:
            return np.full(self._chunks, self._fill, self.dtype)
        wanted = math.prod(self._chunks) * self.dtype.itemsize
        try:
            raw = self._decode(data, wanted)
        except UserError:
            raise
        except Exception as error:  # imagecodecs has an error of its own for each codec
            what = f"{name} cannot be decoded ({type(error).__name__})"
            raise UserError(what, str(self._store.path), _AGAIN) from None
        if len(raw) != wanted:
            what = f"{name} has {len(raw)} bytes instead of {wanted}"
            raise UserError(what, str(self._store.path), _AGAIN)
        return np.frombuffer(raw, self.dtype).reshape(self._chunks)


def _decoder(compressor: Any) -> Callable[[bytes, int], bytes]:
    """What makes a chunk's bytes of a file's.

    Raises:
        UserError: the compressor is not known.
    """
    if compressor is None:
        return lambda data, _: data
    name = str(compressor["id"])
    if name in _OWN:
        return lambda data, _: _OWN[name](data)
    codecs = needed("imagecodecs", "zarr")
    if name == "blosc":
        return lambda data, size: _blosc(codecs, data, size)
    if name in ("zstd", "lz4"):
        more = {"header": True} if name == "lz4" else {}
        plain = getattr(codecs, f"{name}_decode")
        return lambda data, _: bytes(plain(data, **more))
    picture = name.removeprefix("imagecodecs_")
    if name.startswith("imagecodecs_") and picture in _PICTURES:
        unpack = getattr(codecs, f"{picture}_decode")
        return lambda data, _: np.ascontiguousarray(unpack(data)).tobytes()
    cure = (
        f"write it anew with blosc; known are blosc, zstd, lz4, zlib, gzip, {', '.join(_PICTURES)}"
    )
    raise UserError(f"its compressor '{name}' is not known", "", cure)


def _blosc(codecs: Any, data: bytes, size: int) -> bytes:
    """Unpack Blosc's; it trusts the sizes at its start, so these are compared first."""
    if len(data) < 16 or struct.unpack_from("<I", data, 12)[0] != len(data):
        raise ValueError("cut off")
    if struct.unpack_from("<I", data, 4)[0] != size:
        raise ValueError("of another size")
    return bytes(codecs.blosc_decode(data, out=size))
