"""A shard: frames of several episodes, one plain ``.npy`` a key.

Encoded pictures are one after another in ``KEY.images``, video in ``KEY.video``, and
``KEY.ends.npy`` says where each of them ends. Rows that were trimmed or refused after they had
been written stay where they are: episodes say which rows count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.data.npy import (
    CURE,
    Column,
    NpyWriter,
    checked_npy,
    close_for_good,
    read_npy,
)
from diffusion_policy_ros.data.pictures import (
    EncodedPictures,
    Files,
    Images,
    RawPictures,
    as_bytes,
    storage,
)
from diffusion_policy_ros.data.video import CLIP, START, VideoPictures, clip_of
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.images import restored

ACTION, STAMP = "action", "stamp_ns"
"""The keys beside the observations: float32 (N, Da), and the frames' times int64 (N,)."""

PICTURES, VIDEO, ENDS = ".images", ".video", ".ends.npy"

OFFSET = Column("<i8", ())
Pictures = Array | Sequence[Array | bytes]


def columns(contract: Contract) -> dict[str, Column]:
    """Key → what a row of it is.

    Raises:
        UserError: an observation has a name that no file can have, or that of another's file.
    """
    found = {ACTION: Column("<f4", (contract.action_dim,)), STAMP: Column("<i8", ())}
    for key, stream in contract.observations.items():
        if key in found or not key.replace("_", "").replace("-", "").replace(".", "").isalnum():
            cure = f"rename it: letters, digits, '_', '-', '.', and not {ACTION} or {STAMP}"
            raise UserError(
                f"the observation '{key}' cannot be a file's name", contract.name, cure
            )
        camera = contract.observations.get(key.removesuffix(".ends"))
        if camera not in (None, stream) and camera.is_image:
            what = f"the observation '{key}' has the name of a file of '{camera.name}'"
            raise UserError(what, contract.name, "rename it")
        found[key] = Column("|u1" if stream.is_image else "<f4", stream.shape)
    return found


class RawWriter(NpyWriter):
    """Pictures as pixels; those that come as jpeg or png bytes are decoded."""

    def __init__(self, folder: Path, key: str, column: Column, stream: Stream) -> None:
        super().__init__(folder / f"{key}.npy", column)
        self._stream = stream

    def append(self, rows: Pictures) -> None:
        """Add pictures: (n, H, W, C), or n of them."""
        if isinstance(rows, np.ndarray):
            return super().append(rows)
        for p in rows:
            super().append((restored(self._stream, p) if isinstance(p, bytes) else p)[None])
        return None


class EncodedWriter:
    """Pictures as jpeg or png, or what else is given as bytes.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, folder: Path, key: str, how: str, suffix: str = PICTURES) -> None:
        self._how, self._ends = how, [0]
        self._file = (folder / f"{key}{suffix}").open("wb", buffering=1 << 18)
        self._path = folder / f"{key}{ENDS}"

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._ends) - 1

    def append(self, rows: Pictures) -> None:
        """Add pictures: (n, H, W, C), or n of them."""
        for data in as_bytes(rows, self._how):
            self._file.write(data)
            self._ends.append(self._ends[-1] + len(data))

    def truncate(self, rows: int) -> None:
        """Forget all rows from that one on."""
        del self._ends[rows + 1 :]
        self._file.flush()
        self._file.seek(self._file.truncate(self._ends[-1]))

    def close(self) -> None:
        """Finish the files."""
        close_for_good(self._file)
        ends = NpyWriter(self._path, OFFSET)
        ends.append(np.array(self._ends[1:], dtype=np.int64))
        ends.close()


class VideoWriter:
    """Pictures as video: a clip of each few, and whole clips as they are."""

    def __init__(self, folder: Path, key: str, stream: Stream) -> None:
        self._clips = EncodedWriter(folder, key, "video", VIDEO)
        self._stream, self._waiting = stream, list[Array]()

    @property
    def rows(self) -> int:
        """How many there are, those included that make no whole clip yet."""
        return self._clips.rows + len(self._waiting)

    def append(self, rows: Pictures) -> None:
        """Add pictures, as those of other kinds or as a row of a video has them."""
        for picture in rows:
            if isinstance(picture, bytes) and (not picture or picture.startswith(START)):
                self.end_clip()
                self._clips.append([picture])
                continue
            if isinstance(picture, bytes):
                picture = restored(self._stream, picture)
            self._waiting.append(picture.copy())
            if len(self._waiting) == CLIP:
                self.end_clip()

    def end_clip(self) -> None:
        """Begin another clip with the next picture."""
        if self._waiting:
            self._clips.append([clip_of(self._waiting), *[b""] * (len(self._waiting) - 1)])
            self._waiting.clear()

    def truncate(self, rows: int) -> None:
        """Forget all rows from that one on."""
        del self._waiting[max(0, rows - self._clips.rows) :]
        if rows < self._clips.rows:
            self._clips.truncate(rows)

    def close(self) -> None:
        """Finish the files."""
        self.end_clip()
        self._clips.close()


class ShardWriter:
    """Writes one shard's folder.

    Args:
        folder: made if it is missing.
        contract: says which keys there are.
        images: how pictures are kept; or for each camera "raw", "jpeg", "png" or "video".
    """

    def __init__(
        self, folder: Path, contract: Contract, images: Images | Mapping[str, str] = "auto"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writers: dict[str, NpyWriter | EncodedWriter | VideoWriter] = {}
        for key, column in columns(contract).items():
            stream = contract.observations.get(key)
            if stream is None or not stream.is_image:
                self._writers[key] = NpyWriter(folder / f"{key}.npy", column)
            elif (how := _how(stream, images)) == "raw":
                self._writers[key] = RawWriter(folder, key, column, stream)
            elif how == "video":
                self._writers[key] = VideoWriter(folder, key, stream)
            else:
                self._writers[key] = EncodedWriter(folder, key, how)

    @property
    def rows(self) -> int:
        """Rows that every key has."""
        return min(writer.rows for writer in self._writers.values())

    def begin(self) -> int:
        """The row that another recording begins at, whose pictures share no clip with others'."""
        for writer in self._writers.values():
            if isinstance(writer, VideoWriter):
                writer.end_clip()
        return self.rows

    def append(self, arrays: Mapping[str, Pictures]) -> None:
        """Add rows to some keys: key → (n, ...), or n pictures, each an array or its bytes."""
        for key, rows in arrays.items():
            self._writers[key].append(rows)  # type: ignore[arg-type]  # vectors are arrays

    def truncate(self, rows: int) -> None:
        """Forget all rows from that one on, of every key."""
        for writer in self._writers.values():
            writer.truncate(rows)

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()


def _how(stream: Stream, images: Images | Mapping[str, str]) -> str:
    return storage(stream, images) if isinstance(images, str) else images[stream.name]


Part = NDArray[Any] | RawPictures | EncodedPictures


def open_shard(folder: Path, contract: Contract, rows: int, files: Files) -> dict[str, Part]:
    """Open a shard: its vectors are read, its pictures when they are asked for.

    Args:
        folder: the shard.
        contract: says which keys there are, and of what shape.
        rows: how many rows the dataset counts on.
        files: opens pictures.

    Raises:
        UserError: a file is missing, cut off, or not what the contract says.
    """
    found: dict[str, Part] = {}
    for key, column in columns(contract).items():
        stream, path = contract.observations.get(key), folder / f"{key}.npy"
        if stream is not None and stream.is_image:
            ends = folder / f"{key}{ENDS}"
            if ends.exists():
                found[key] = _open_encoded(ends, rows, files, stream)
            else:
                offset = checked_npy(path, column, rows)
                found[key] = RawPictures(files, path, (rows, *column.shape), offset)
        else:
            found[key] = read_npy(path, column, rows)
    return found


def _open_encoded(ends: Path, rows: int, files: Files, stream: Stream) -> EncodedPictures:
    places, start = read_npy(ends, OFFSET, rows), str(ends).removesuffix(ENDS)
    is_video = Path(f"{start}{VIDEO}").exists()
    path = Path(f"{start}{VIDEO if is_video else PICTURES}")
    wanted = int(places[-1]) if rows else 0
    size = path.stat().st_size if path.is_file() else -1
    if size != wanted or (np.diff(places, prepend=0) < 0).any():
        what = "the file is missing" if size < 0 else f"has {size} bytes instead of {wanted}"
        raise UserError(what, str(path), CURE)
    kind = VideoPictures if is_video else EncodedPictures
    return kind(files, path, places, stream)


class Rows:
    """The rows of one key over all shards, as if they were one array.

    Vectors are read into memory; pictures stay where they are.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = list(parts)
        arrays = [part for part in self._parts if isinstance(part, np.ndarray)]
        if arrays:
            self._parts = [np.concatenate(arrays)]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.shape, self.dtype = self._parts[0].shape[1:], self._parts[0].dtype

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Rows by number: any shape (...) → (..., *shape)."""
        only = self._parts[0]
        if isinstance(only, np.ndarray):
            return only.take(rows, axis=0)
        if isinstance(only, RawPictures) and len(self._parts) == 1 and rows.size:
            return np.asarray(only.pixels.take(rows, axis=0))
        flat = rows.ravel()
        result = np.empty((len(flat), *self.shape), self.dtype)
        for part, first, places in self._by_part(flat):
            part.take(flat[places] - first, result, places)
        return result.reshape(*rows.shape, *self.shape)

    def kept(self, row: int) -> Array | bytes:
        """A picture as it is stored: pixels, the bytes of a file, or of a clip that it begins."""
        part, first = self._part_of(row)
        return part.kept(row - first)

    def how(self, row: int) -> str:
        """How a picture is kept: raw, png, which stands for jpeg, too, or video."""
        return self._part_of(row)[0].how

    def begins(self, row: int) -> int:
        """The first row that a picture is decoded from: its own, but for video."""
        part, first = self._part_of(row)
        return first + part.begins(row - first) if isinstance(part, VideoPictures) else row

    def _part_of(self, row: int) -> tuple[RawPictures | EncodedPictures, int]:
        """Where a picture is, and that part's first row."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        part = self._parts[number]
        assert not isinstance(part, np.ndarray), "vectors are taken"
        return part, int(self._ends[number]) - len(part)

    def _by_part(
        self, flat: NDArray[np.int64]
    ) -> Iterator[tuple[RawPictures | EncodedPictures, int, NDArray[np.int64]]]:
        part_of = np.searchsorted(self._ends, flat, side="right")
        for number in np.unique(part_of).tolist():
            part = self._parts[number]
            assert not isinstance(part, np.ndarray)
            yield part, int(self._ends[number]) - len(part), np.flatnonzero(part_of == number)
