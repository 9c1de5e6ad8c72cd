"""Pictures of a video by their time, and videos of pictures: with PyAV's own codecs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

TOLERANCE_S = 1e-4
"""How far a picture's time may be from the one that is asked for; LeRobot's."""


@dataclass(frozen=True)
class Film:
    """The pictures of a video nearest to some times; gone through anew each time.

    Attributes:
        file: the video.
        times_s: in it, rising.
        said: what lacks a picture, as a user knows it.
        tolerance_s: how far a picture may be from a time; half of what is between two where it is
            None.
    """

    file: Path
    times_s: Sequence[float]
    said: str
    tolerance_s: float | None = TOLERANCE_S

    def __iter__(self) -> Iterator[Array]:
        """Pictures, uint8 (height, width, 3).

        Raises:
            UserError: the video cannot be read, or has no picture within the tolerance.
        """
        av = needed("av", "lerobot")
        try:
            with av.open(str(self.file)) as container:
                for frame in self._matching(container):
                    yield frame.to_ndarray(format="rgb24")
        except FileNotFoundError:
            raise UserError(f"{self.said}: {self.file} is missing", "", _AGAIN) from None
        except (av.FFmpegError, IndexError, ValueError, OverflowError) as error:
            what = f"{self.said}: {self.file} cannot be decoded ({error})"
            raise UserError(what, "", _AGAIN) from None

    def _matching(self, container: Any) -> Iterator[Any]:
        """One decoded picture for each time."""
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        base, wanted, nearest = float(stream.time_base), 0, float("inf")
        near = self.tolerance_s or 0.501 / float(stream.average_rate or 30)
        container.seek(int(max(self.times_s[0] - 1e-6, 0) / base), stream=stream)
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            time_s = frame.pts * base
            while wanted < len(self.times_s) and time_s > self.times_s[wanted] + near:
                self._lack(
                    wanted, min(nearest, time_s, key=lambda t: abs(t - self.times_s[wanted]))
                )
            if wanted == len(self.times_s):
                return
            nearest = time_s
            if abs(time_s - self.times_s[wanted]) < near:
                yield frame
                wanted += 1
        if wanted < len(self.times_s):
            self._lack(wanted, nearest)

    def _lack(self, wanted: int, nearest: float) -> None:
        time_s = self.times_s[wanted]
        far = "it ends before" if nearest == float("inf") else f"the nearest is at {nearest:.4f} s"
        what = f"{self.said} lacks the picture at {time_s:.4f} s of {self.file}"
        raise UserError(
            f"{what}: {far}", "", f"{_AGAIN}, or leave the episode out with --episodes"
        )


_AGAIN = "get the dataset again"


CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "av1": ("libsvtav1", {"g": "2", "crf": "24", "preset": "12"}),
    "h264": ("libx264", {"g": "2", "crf": "17", "bf": "0", "preset": "veryfast"}),
}
"""Name → PyAV's encoder and its settings: each second picture is whole, so that any is near."""


def encode(file: Path, pictures: Iterable[Array], fps: int, codec: str, threads: int) -> int:
    """Write pictures as a video, picture k at k / fps.

    Args:
        file: an mp4.
        pictures: uint8 (height, width, 3) each, of even height and width.
        fps: pictures a second.
        codec: a key of `CODECS`.
        threads: that the encoder may use.

    Returns:
        How many there are.
    """
    av, (name, options) = needed("av", "lerobot"), CODECS[codec]
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes its settings to stderr otherwise
    count = 0
    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream(name, rate=fps, options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, fps)
                stream.codec_context.thread_count = threads
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = count, Fraction(1, fps)
            container.mux(stream.encode(frame))
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count


def times_of(file: Path) -> list[float]:
    """When the pictures of a video are shown, s, without decoding them; in order of time."""
    av = needed("av", "lerobot")
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        packets = (packet for packet in container.demux(stream) if packet.pts is not None)
        return sorted(float(packet.pts * stream.time_base) for packet in packets)
