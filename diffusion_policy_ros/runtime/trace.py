"""Where the time of each chunk went: one line of a table a chunk, written by a thread of its own.

Whoever makes a chunk only leaves its times; a slow disk or a full one costs lines, never time.
"""

from __future__ import annotations

import csv
import io
import threading
from collections import deque
from pathlib import Path
from typing import NamedTuple

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.tail import Chunk

WRITE_S = 0.5
"""Between two writes."""
WAITING = 10_000
"""Lines that may wait for the disk; beyond it they are lost and counted."""
END_S = 2.0
"""How long the end waits for the disk: the robot's process must not hang on it."""


class ChunkTimes(NamedTuple):
    """When each thing happened to a chunk, ns of the clock that frames are stamped by.

    Only differences of `arrived_ns` to `published_ns` are exact under simulated time: they are
    taken by a steady clock.

    Attributes:
        stamp_ns: of the newest frame, which is its anchor's.
        arrived_ns: the anchor's message came.
        closed_ns: the frame had all its streams, and the window was ready.
        begun_ns: its sampling began.
        ended_ns: its sampling ended.
        published_ns: it was handed over.
        due_ns: its first action that was not late by then; its last one where all were.
        missed: 1 where the chunk before it had run out by then, otherwise 0.
    """

    stamp_ns: int
    arrived_ns: int
    closed_ns: int
    begun_ns: int
    ended_ns: int
    published_ns: int
    due_ns: int
    missed: int


def chunk_times(
    chunk: Chunk,
    steady_ns: tuple[int, int, int, int],
    now_ns: int,
    offset_ns: int,
    missed: bool,
) -> ChunkTimes:
    """The times of a chunk that has just been handed over.

    Args:
        chunk: it.
        steady_ns: its frame arrived and closed, its sampling began and ended, by
            ``time.monotonic_ns``.
        now_ns: the time by the clock that frames are stamped by.
        offset_ns: how far that clock is ahead of ``time.monotonic_ns``.
        missed: whether the chunk before it had run out.
    """
    late = max(-((chunk.stamp_ns - now_ns) // chunk.period_ns), 0)
    due_ns = chunk.stamp_ns + min(late, len(chunk.actions) - 1) * chunk.period_ns
    arrived, closed, begun, ended = (then_ns + offset_ns for then_ns in steady_ns)
    return ChunkTimes(chunk.stamp_ns, arrived, closed, begun, ended, now_ns, due_ns, int(missed))


class Trace:
    """Writes the table.

    Args:
        path: the CSV file; an older one is overwritten.

    Attributes:
        path: as given.
        written: lines on the disk.
        lost: lines that waited too long.
        problem: why no more is written; empty while all is well.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.written, self.lost, self.problem = Path(path), 0, 0, ""
        try:
            self._file = self.path.open("wb")
            self._write(",".join(ChunkTimes._fields) + "\n")
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise UserError(what, f"parameter trace: {path}", "give another file's name") from None
        self._waiting: deque[ChunkTimes] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="trace", daemon=True)
        self._thread.start()

    def add(self, times: ChunkTimes) -> None:
        """Take a line; never waits."""
        if len(self._waiting) < WAITING:
            self._waiting.append(times)
        else:
            self.lost += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self._ending.set()
        self._thread.join(END_S)

    def __str__(self) -> str:
        """Its state in a line."""
        lost = f", {self.lost} lost: the disk does not keep up" if self.lost else ""
        return f"{self.written} chunks in {self.path}{lost}" + (
            self.problem and f"; {self.problem}"
        )

    def _loop(self) -> None:
        try:
            while not self._ending.wait(WRITE_S):
                self._write_waiting()
            self._write_waiting()
            self._file.close()
        except OSError as error:
            self.problem = f"no more is written: {error.strerror}"

    def _write_waiting(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if lines:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(lines)
            self._write(text.getvalue())
            self.written += len(lines)

    def _write(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()
