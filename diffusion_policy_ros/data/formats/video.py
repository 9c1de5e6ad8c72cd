"""Pictures of a video by their time, and videos of pictures: with PyAV's own codecs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """

    file: Path
    times_s: Sequence[float]
    said: str

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
        except (av.FFmpegError, IndexError) as error:
            what = f"{self.said}: {self.file} cannot be decoded ({error})"
            raise UserError(what, "", _AGAIN) from None

    def _matching(self, container: Any) -> Iterator[Any]:
        """One decoded picture for each time."""
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        base, wanted, nearest = float(stream.time_base), 0, float("inf")
        container.seek(int(max(self.times_s[0] - 1e-6, 0) / base), stream=stream)
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            time_s = frame.pts * base
            while wanted < len(self.times_s) and time_s > self.times_s[wanted] + TOLERANCE_S:
                self._lack(
                    wanted, min(nearest, time_s, key=lambda t: abs(t - self.times_s[wanted]))
                )
            if wanted == len(self.times_s):
                return
            nearest = time_s
            if abs(time_s - self.times_s[wanted]) < TOLERANCE_S:
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
