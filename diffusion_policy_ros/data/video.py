"""Pictures as video: a few in a row make a clip, which stands alone and is decoded as one.

A clip is H.264: a whole picture, and what changes in those after it, in red, green, blue, so that
no other colours come between and any size will do. It lies at its first picture's row; the others'
are empty. So a file is bytes with offsets as that of jpegs is, for all who copy, cut and append.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.data.pictures import DAMAGED, EncodedPictures, Images, storage
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

CLIP = 4
"""Pictures of a clip: at 640x480 a window of two then takes 1.3 to 1.8 times as long as of jpegs.
In clips of eight 2.3 times, for an eighth to a third fewer bytes; in clips of two 1.1 to 1.7
times, for a third to two thirds more."""
START = b"\0\0\0\1"
"""What a clip begins with, and no jpeg or png."""
END = START + b"\x0b"
"""H.264's end of a stream, which ends a clip and is nowhere else in it."""
_ENCODER = "libx264rgb"
_OPTIONS = {"preset": "veryfast", "tune": "fastdecode", "crf": "20", "bf": "0"}
"""An eighth to a fifth of what jpeg's 95 takes, and 38 to 40 dB from what came, of a camera with
noise. Without ``fastdecode`` a tenth to a fifth less, and half as much time again to read; at 18
up to twice as much, for the noise is kept, too."""


def check_codec(contract: Contract, images: Images) -> None:
    """Find the codec before anything is read.

    Raises:
        UserError: a camera's pictures are to become video, and PyAV or its codec is missing.
    """
    streams = (stream for stream in contract.observations.values() if stream.is_image)
    if not any(storage(stream, images) == "video" for stream in streams):
        return
    if _ENCODER not in _av().codecs_available:
        cure = "pip install --force-reinstall --only-binary :all: av"
        raise UserError(f"this PyAV was built without {_ENCODER}", "", cure)


def _av() -> Any:
    return needed("av", "video")


def clip_of(pictures: Sequence[Array]) -> bytes:
    """A clip of some pictures, uint8 (H, W, 3) each; the same bytes for the same pictures."""
    av = _av()
    encoder = av.CodecContext.create(_ENCODER, "w")
    encoder.height, encoder.width = pictures[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "rgb24", Fraction(1, 30), 1
    encoder.options = _OPTIONS
    packets = []
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame)
    return b"".join(map(bytes, [*packets, *encoder.encode(None)])) + END


def pictures_of(clip: bytes) -> Iterator[Array]:
    """A clip's pictures, uint8 (H, W, 3), each decoded when it is asked for.

    Raises:
        av.FFmpegError: the bytes are no whole clip. It may also end too early then.
    """
    if not clip.endswith(END):
        return  # it was cut off: the decoder may guess what is missing
    decoder = _av().CodecContext.create("h264", "r")
    decoder.thread_count, decoder.options = 1, {"err_detect": "explode"}  # it guesses otherwise
    for packet in [*decoder.parse(clip), *decoder.parse(None), None]:
        for frame in decoder.decode(packet):
            yield frame.to_ndarray(format="rgb24")


class VideoPictures(EncodedPictures):
    """Pictures of one shard, in clips."""

    how = "video"

    def begins(self, row: int) -> int:
        """The first row of a picture's clip; all of them end where it does."""
        return int(np.searchsorted(self._ends, self._ends[row], side="left"))

    def take(self, rows: NDArray[np.int64], out: Array, places: NDArray[np.int64]) -> None:
        """Decode rows (n,) into these places of (N, H, W, C), each clip once."""
        order = np.argsort(rows, kind="stable")
        super().take(rows[order], out, places[order])

    def _picture(self, row: int) -> Array:
        first, held = self.begins(row), self._files.at_hand
        if getattr(held, "clip", None) != (self._path, first):
            held.rest, held.pictures = pictures_of(self.kept(first)), list[Array]()
            held.clip = self._path, first
        try:
            while len(held.pictures) <= row - first:
                held.pictures.append(next(held.rest))
        except (_av().FFmpegError, StopIteration) as error:
            what = f"no whole video ({type(error).__name__})"
            raise UserError(what, f"{self._path}: picture {row}", DAMAGED) from None
        return self._fitting(row, held.pictures[row - first])
