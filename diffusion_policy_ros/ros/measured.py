"""The newest of all that the action player must know of the robot."""

from __future__ import annotations

from typing import Any

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array, decode, frame_of, holds, stamp_ns


class Measured:
    """What the action's fields name as their state, as it comes.

    Args:
        contract: names them, and the tf frames that they must be in.

    Attributes:
        arrays: key → newest array.
        times_ns: key → when it was measured.
        problem: why a message could not be read; empty after the next one that can.
        wrong_frame: why a message is not believed; likewise.
    """

    def __init__(self, contract: Contract) -> None:
        self.streams, self._frames = contract.measured, contract.frames
        self.arrays: dict[str, Array] = {}
        self.times_ns: dict[str, int] = {}
        self.problem = self.wrong_frame = ""

    def take(self, topic: str, message: Any, now_ns: int) -> None:
        """Read a message.

        Args:
            topic: as the contract has it.
            message: of its type.
            now_ns: the time, for messages without a stamp, or with one that is of no use.
        """
        for key, stream in self.streams.items():
            if stream.topic != topic:
                continue
            try:
                if not holds(stream, message):
                    continue
                self.wrong_frame = self._elsewhere(key, message)
                if self.wrong_frame:
                    return
                stamp = None if stream.time == "receipt" else stamp_ns(message)
                self.arrays[key] = decode(stream, message)
            except Exception as error:  # whatever comes: what is measured grows old, and is named
                known = isinstance(error, UserError)
                self.problem = str(error) if known else f"{key} ({topic}): {error!r}"
                return
            measured_ns = now_ns if stamp is None else stamp
            self.times_ns[key] = measured_ns - stream.latency_ns
        self.problem = ""

    def _elsewhere(self, key: str, message: Any) -> str:
        """Why a message tells where something is in another tf frame; one without is believed."""
        wanted = self._frames.get(key, "")
        told = frame_of(message) if wanted else ""
        if told in ("", wanted):
            return ""
        where = f"{key} ({self.streams[key].topic}) is in frame '{told[:64]}'"
        return f"{where}, the action in '{wanted}'; transform it, or give check_frame: false"

    @property
    def missing(self) -> list[str]:
        """Keys of which nothing has come yet."""
        return [key for key in self.streams if key not in self.arrays]
