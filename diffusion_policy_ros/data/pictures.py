"""Pictures of a dataset: kept as they came, encoded, or raw; and read by the decoder of live ones.

Raw pixels are quickest where pictures are small. Large ones are kept as the jpeg or png bytes that
the camera's driver sent, where these are what the contract's picture is made of, or are encoded.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.images import restored

Images = Literal["auto", "raw", "jpeg", "png", "video"]
IMAGES: tuple[str, ...] = get_args(Images)
SMALL = 1 << 16
"""Values of a picture up to which it is kept raw: 147x147 in colour."""
QUALITY = 95
"""Of jpeg, with colours at half the resolution, as most cameras have them anyway."""
OPEN_FILES = 64
"""Of each kind, at a time, for each open dataset: a process may have 1024."""
DAMAGED = "copy the dataset again"
_COMPRESSED = "sensor_msgs/msg/CompressedImage"


def storage(stream: Stream, images: Images = "auto") -> Literal["raw", "jpeg", "png", "video"]:
    """How a stream's pictures are kept; depth never loses anything, and video has colours."""
    if images == "auto":
        images = "raw" if np.prod(stream.shape) <= SMALL else "jpeg"
    exact = stream.is_depth or (images == "video" and stream.shape[2] != 3)
    return "png" if exact and images != "raw" else images


def keeps_bytes(stream: Stream, images: Images) -> bool:
    """Whether pictures that come as the bytes of a jpeg or png are kept as these."""
    return storage(stream, images) in ("jpeg", "png")


def as_they_came(stream: Stream, msg: Any) -> bytes | None:
    """The bytes of a message that `restored` makes the same picture of; None where there are none.

    Args:
        stream: the camera.
        msg: the message that the picture was made of.
    """
    plain = not (stream.is_depth or stream.crop or stream.flip) and stream.rotate == "0"
    if msg is None or stream.type != _COMPRESSED or not plain:
        return None
    data = bytes(msg.data)
    with Image.open(io.BytesIO(data)) as found:
        return data if found.size == stream.shape[1::-1] else None


def encoded(image: Array, how: str) -> bytes:
    """A picture (H, W, C), uint8, as the bytes of a file."""
    buffer = io.BytesIO()
    picture = Image.fromarray(
        np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)
    )
    if how == "jpeg":
        picture.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    else:
        picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def checked(stream: Stream, picture: Array | bytes) -> Array:
    """A picture of an import, uint8 (H, W, C), which is decoded for that.

    Raises:
        UserError: it is no whole jpeg or png, or of another size.
    """
    image = restored(stream, picture) if isinstance(picture, bytes) else picture
    if image.shape != stream.shape or image.dtype != np.uint8:
        what = f"{stream.name} is {image.dtype} {image.shape}"
        raise UserError(f"{what}, the contract says uint8 {stream.shape}")
    return image


class Files:
    """Files of a dataset that is read; those not used for the longest are closed again.

    Attributes:
        opened: opens a file.
        mapped: maps one.
        at_hand: what each thread that reads has decoded last of all.
    """

    def __init__(self, most: int = OPEN_FILES) -> None:
        self.opened: Callable[[Path], BinaryIO] = functools.lru_cache(most)(_opened)
        self.mapped: Callable[[Path, str, tuple[int, ...], int], Array] = functools.lru_cache(
            most
        )(_mapped)
        self.at_hand = threading.local()


def _opened(path: Path) -> BinaryIO:
    with _still_there(path):
        return path.open("rb", buffering=0)


def _mapped(path: Path, dtype: str, shape: tuple[int, ...], offset: int) -> Array:
    with _still_there(path):
        return np.asarray(np.memmap(path, dtype, "r", offset, shape))


@contextmanager
def _still_there(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        cure = "open it again; a training goes on with --resume"
        raise UserError("is gone: the dataset was compacted", str(path), cure) from None


class RawPictures:
    """Pictures of one shard, mapped into memory while they are used."""

    how = "raw"

    def __init__(self, files: Files, path: Path, shape: tuple[int, ...], offset: int) -> None:
        self._files, self._args = files, (path, "|u1", shape, offset)
        self.shape, self.dtype = shape, np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def pixels(self) -> Array:
        """All of them, mapped."""
        return self._files.mapped(*self._args)

    def take(self, rows: NDArray[np.int64], out: Array, places: NDArray[np.int64]) -> None:
        """Read rows (n,) into these places of (N, H, W, C)."""
        out[places] = self.pixels[rows]

    def kept(self, row: int) -> Array:
        """A picture as it is stored."""
        return np.asarray(self.pixels[row])


class EncodedPictures:
    """Pictures of one shard, jpeg and png one after another in one file.

    Args:
        files: which opens it.
        path: the file.
        ends: (N,) where each picture ends in it.
        stream: the camera.
    """

    how = "png"  # or jpeg, which is kept just so

    def __init__(self, files: Files, path: Path, ends: NDArray[np.int64], stream: Stream) -> None:
        self._files, self._path, self._stream = files, path, stream
        self._ends = ends
        self.shape, self.dtype = (len(ends), *stream.shape), np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: NDArray[np.int64], out: Array, places: NDArray[np.int64]) -> None:
        """Decode rows (n,) into these places of (N, H, W, C); what stands twice once."""
        done: dict[int, int] = {}
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            first = done.setdefault(row, place)
            out[place] = self._picture(row) if first == place else out[first]

    def kept(self, row: int) -> bytes:
        """A picture as it is stored.

        Raises:
            UserError: the file is shorter than it was.
        """
        start = int(self._ends[row - 1]) if row else 0
        size = int(self._ends[row]) - start
        file = self._files.opened(self._path)  # held: other readers may be the cause of its end
        data = os.pread(file.fileno(), size, start)
        if len(data) != size:
            raise UserError("was cut off", str(self._path), DAMAGED)
        return data

    def _picture(self, row: int) -> Array:
        try:
            return self._fitting(row, restored(self._stream, self.kept(row)))
        except UserError as error:
            where = f"{self._path}: picture {row}"
            raise UserError(error.what, where, DAMAGED) from None

    def _fitting(self, row: int, image: Array) -> Array:
        if image.shape != self._stream.shape:
            what = f"is {image.shape}, the contract says {self._stream.shape}"
            raise UserError(what, f"{self._path}: picture {row}", DAMAGED)
        return image


def as_bytes(pictures: Iterable[Array | bytes], how: str) -> Iterable[bytes]:
    """Pictures as they are to be kept; what is bytes already stays as it came."""
    return (p if isinstance(p, bytes) else encoded(p, how) for p in pictures)
