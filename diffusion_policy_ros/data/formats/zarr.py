"""Replay buffers of diffusion_policy and UMI: ``data/KEY`` with time first, ``meta/episode_ends``.

Float pictures of 0 … 255 become bytes. A buffer of a real robot has its pictures in
``videos/EPISODE/CAMERA.mp4`` beside it; they are taken by time. A buffer says neither rate nor
names of elements. Needs imagecodecs where it is compressed: ``pip install
'diffusion_policy_ros[zarr]'``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.data.formats.demonstrations import Choice, Column, Demonstration
from diffusion_policy_ros.data.formats.video import Film
from diffusion_policy_ros.data.formats.zarr_store import Store, ZarrArray
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

DATA, ENDS, TIMES = "data", "meta/episode_ends", "timestamp"
_AGAIN = "get the buffer again"


class Buffer:
    """A replay buffer that is open for reading; see `Foreign`.

    Args:
        path: its folder or zip.
        choice: which episodes.

    Raises:
        UserError: it is missing or damaged, or a choice leaves nothing.
    """

    rate_hz = None
    contract = ""

    def __init__(self, path: str | Path, choice: Choice) -> None:
        self.where, self._path = str(path), Path(path)
        if choice.tasks:
            raise UserError("a buffer has no tasks", self.where, "leave --task out")
        store = Store(self._path)
        if store.read("zarr.json") is not None:
            what = "is of zarr's format 3"
            raise UserError(what, self.where, "write it anew with zarr_format=2")
        found = ZarrArray(store, ENDS)
        self._ends = found.rows(0, len(found)).astype(np.int64).ravel()
        names = store.arrays(DATA)
        self._arrays = {name: ZarrArray(store, f"{DATA}/{name}") for name in names}
        self._check()
        self._videos = self._found_videos()
        self.columns = {name: _column(a) for name, a in self._arrays.items() if _is_readable(a)}
        self.columns |= {name: Column((), is_image=True) for name in self._videos}
        count = len(self._ends)
        for number in choice.episodes:
            if number >= count:
                raise UserError(
                    f"has no episode {number}", self.where, f"choose from 0 to {count - 1}"
                )
        self._numbers = {
            f"episode_{n}": n for n in range(count) if not choice.episodes or n in choice.episodes
        }
        self.names = list(self._numbers)

    def _check(self) -> None:
        """Episodes follow each other, and every array has all their rows."""
        ends = self._ends
        if not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
            raise UserError(f"{ENDS} does not rise", self.where, _AGAIN)
        for name, array in self._arrays.items():
            if len(array) != ends[-1]:
                what = f"{name} has {len(array)} rows, {ENDS} says {ends[-1]}"
                raise UserError(what, self.where, _AGAIN)

    def _found_videos(self) -> list[str]:
        """Cameras of the videos beside the buffer, as ``camera_0`` of ``0.mp4``."""
        files = sorted((self._path.parent / "videos" / "0").glob("*.mp4"))
        if not files or TIMES not in self._arrays:
            return []
        return [
            name for name in (_camera(file.stem) for file in files) if name not in self._arrays
        ]

    def read(self, name: str, columns: Collection[str]) -> Demonstration:
        """An episode; see `Foreign`."""
        number = self._numbers[name]
        start, stop = (int(self._ends[number - 1]) if number else 0), int(self._ends[number])
        vectors: dict[str, Array] = {}
        images: dict[str, Any] = {}
        for column in columns:
            if column in self._videos:
                images[column] = self._film(number, column, start, stop)
            elif self.columns[column].is_image:
                images[column] = _Pictures(self._arrays[column], start, stop)
            else:
                values = self._arrays[column].rows(start, stop)
                vectors[column] = values.reshape(stop - start, -1)
        if not vectors:
            vectors[""] = np.zeros((stop - start, 1), np.float32)
        return Demonstration(vectors, images)

    def _film(self, number: int, column: str, start: int, stop: int) -> Film:
        """A video's pictures at the episode's times; it begins with the episode."""
        times = self._arrays[TIMES].rows(start, stop).astype(np.float64).ravel()
        folder = self._path.parent / "videos" / str(number)
        files = [f for f in sorted(folder.glob("*.mp4")) if _camera(f.stem) == column]
        if not files:
            raise UserError(f"{folder} has no video of {column}", "", _AGAIN)
        said = f"{column} of episode {number}"
        return Film(files[0], (times - times[0]).tolist(), said, tolerance_s=None)


def _camera(stem: str) -> str:
    return f"camera_{stem}" if stem.isdecimal() else stem


def _is_readable(array: ZarrArray) -> bool:
    return len(array.shape) in (1, 2) or _is_image(array)


def _is_image(array: ZarrArray) -> bool:
    return len(array.shape) == 4 and array.shape[3] in (1, 3)


def _column(array: ZarrArray) -> Column:
    return Column(array.shape[1:] or (1,), _is_image(array))


@dataclass(frozen=True)
class _Pictures:
    """Pictures of an episode, one chunk in memory."""

    array: ZarrArray
    start: int
    stop: int

    def __iter__(self) -> Iterator[Array]:
        for row in range(self.start, self.stop):
            yield self._as_bytes(self.array.rows(row, row + 1)[0])

    def _as_bytes(self, picture: Array) -> Array:
        if picture.dtype == np.uint8:
            return picture
        rounded = np.rint(picture)
        # What is stored as 0 … 1 is nearly black, and nothing of it is a whole number.
        if not (
            np.abs(picture - rounded).max() < 0.01 and 0 <= rounded.min() <= rounded.max() <= 255
        ):
            what = f"{self.array.name} is {picture.dtype}, and not of whole numbers from 0 to 255"
            raise UserError(what, "", "write its pictures as uint8")
        return rounded.astype(np.uint8)


def read(path: str | Path, choice: Choice) -> Buffer:
    """Open a buffer.

    Raises:
        UserError: it is missing or damaged, or a choice leaves nothing.
    """
    return Buffer(path, choice)
