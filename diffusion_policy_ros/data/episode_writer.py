"""One recorded episode: written by a thread of its own, and what is to be said of it."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_policy_ros.data.bags import BagWriter
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.serialized import StampedMessage

GAP = 1.5
"""Median intervals without a message that count as a gap."""
SILENT_S = 1.0
"""A stream that ends this much before the others do has died."""
BURST_S = 0.1
"""What comes within so long, and then no more, was latched."""
WAITING_BYTES = 512 << 20
"""What may wait for the disk; beyond it messages are lost, counted and named."""

_NAME = re.compile(r"episode_(\d+)$")


def new_episode(folder: Path, topics: Mapping[str, str], metadata: Mapping[str, str]) -> BagWriter:
    """A bag under the next free number: `episode_0000`, `episode_0001`, …

    Args:
        folder: where the episodes lie; made if need be.
        topics: topic → message type.
        metadata: what to note at the front.

    Raises:
        UserError: the folder cannot be written, or a message type is not known.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(m[1]) for m in (_NAME.match(p.name) for p in folder.iterdir()) if m]
        number = max(taken, default=-1) + 1
        while (folder / f"episode_{number:04d}").exists():
            number += 1
        return BagWriter(folder / f"episode_{number:04d}", topics, metadata)
    except OSError as error:
        cure = "choose another folder, or make room"
        raise UserError(f"cannot record: {error.strerror}", str(folder), cure) from None


@dataclass
class TopicReport:
    """What came on one topic.

    Attributes:
        times_ns: of its messages: their stamps, or when they arrived where these are zero or none.
        last_ns: when the last one arrived.
        unreadable: messages without the header that their type begins with; recorded as they came.
    """

    times_ns: list[int] = field(default_factory=list)
    last_ns: int = 0
    unreadable: int = 0

    @property
    def rate_hz(self) -> float:
        """Messages a second; 0 where that cannot be said."""
        span = self.times_ns[-1] - self.times_ns[0] if self.times_ns else 0
        return (len(self.times_ns) - 1) * 1e9 / span if span > 0 else 0.0

    @property
    def gaps_s(self) -> list[float]:
        """Intervals of more than one and a half median ones, s."""
        intervals = np.diff(self.times_ns) / 1e9
        return [float(x) for x in intervals if x > GAP * np.median(intervals)]

    def silent_s(self, end_ns: int) -> float:
        """How long it has said nothing, s; 0 where that is usual for it."""
        silent_s, rate = (end_ns - self.last_ns) / 1e9, self.rate_hz
        goes_on = 1.0 < rate < len(self.times_ns) / BURST_S
        return silent_s if goes_on and silent_s > max(SILENT_S, 5 / rate) else 0.0

    def __str__(self) -> str:
        damaged = f"{self.unreadable} UNREADABLE" if self.unreadable else ""
        if not self.times_ns:
            return damaged or "NOTHING arrived"
        gaps = self.gaps_s
        told = [f"{len(self.times_ns)} at {self.rate_hz:.1f} Hz", damaged]
        told += [f"{len(gaps)} gaps up to {max(gaps):.3f} s"] if gaps else []
        return ", ".join(filter(None, told))


@dataclass(frozen=True)
class EpisodeReport:
    """What was recorded.

    Attributes:
        path: the bag.
        topics: topic → what came on it.
        lost: messages that were lost because the disk did not keep up.
        fault: why recording ended early; empty when it did not.
    """

    path: Path
    topics: dict[str, TopicReport]
    lost: int
    fault: str

    @property
    def died(self) -> dict[str, float]:
        """Topic → how long before the end of the others its last message came, s."""
        end_ns = max((report.last_ns for report in self.topics.values()), default=0)
        found = {topic: report.silent_s(end_ns) for topic, report in self.topics.items()}
        return {topic: silent_s for topic, silent_s in found.items() if silent_s}

    def __str__(self) -> str:
        """One line."""
        died = self.died
        silent = {t: f", then SILENT for the last {s:.1f} s" for t, s in died.items()}
        parts = [f"{t}: {report}{silent.get(t, '')}" for t, report in self.topics.items()]
        parts += [f"{self.lost} messages LOST: the disk does not keep up"] if self.lost else []
        parts += [f"ended early: {self.fault}"] if self.fault else []
        return f"{self.path}: " + "; ".join(parts)


class _Entry(NamedTuple):
    topic: str
    log_ns: int
    data: bytes


class EpisodeWriter:
    """Takes messages without ever blocking, and writes them in order.

    Args:
        bag: the open bag.
        stamped: topics whose messages begin with a header.

    Attributes:
        path: the bag's folder.
        topics: what it takes.
    """

    def __init__(self, bag: BagWriter, stamped: Collection[str]) -> None:
        self.path, self.topics = bag.path, frozenset(bag.topics)
        self._bag, self._stamped = bag, frozenset(stamped)
        self._topics = {topic: TopicReport() for topic in bag.topics}
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._taken = self._done = self._lost = 0  # bytes, bytes, messages; each has one writer
        self._fault = ""
        self._thread = threading.Thread(target=self._write_all, name="bag writer", daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str:
        """Why no more is written; empty while all is well."""
        return self._fault

    def put(self, topic: str, log_ns: int, data: bytes) -> None:
        """Take a message.

        Args:
            topic: one of the bag's.
            log_ns: when it arrived.
            data: CDR with its encapsulation.
        """
        if self._taken - self._done + len(data) > WAITING_BYTES:
            self._lost += 1
            return
        self._taken += len(data)
        self._queue.put(_Entry(topic, log_ns, data))

    def keep(self, metadata: Mapping[str, str] | None = None) -> EpisodeReport:
        """Finish the bag; one that could not be written to its end is noted as no success.

        Args:
            metadata: what is only known now.
        """
        self._finish()
        failed = {"success": "false", "failure": self._fault} if self._fault else {}
        try:
            self._bag.close({**(metadata or {}), **failed})
        except Exception as error:
            # What was written is whole but for the index, which a reader does not need.
            self._fault = self._fault or _reason(error)
        return EpisodeReport(self.path, self._topics, self._lost, self._fault)

    def discard(self) -> None:
        """Remove the bag."""
        self._finish()
        self._bag.discard()

    def _finish(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._done += len(entry.data)
            if not self._fault:
                self._write(entry)

    def _write(self, entry: _Entry) -> None:
        try:
            self._bag.write(*entry)
            self._note(self._topics[entry.topic], entry)
        except Exception as error:  # whatever it is, it is told; what was written is kept
            self._fault = _reason(error)

    def _note(self, report: TopicReport, entry: _Entry) -> None:
        report.last_ns = max(report.last_ns, entry.log_ns)
        if entry.topic not in self._stamped:
            report.times_ns.append(entry.log_ns)
            return
        try:
            stamp = StampedMessage(lambda _: {}, memoryview(entry.data)).header.stamp
            stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
            report.times_ns.append(stamp_ns or entry.log_ns)
        except UserError:
            report.unreadable += 1


def _reason(error: Exception) -> str:
    return f"cannot write ({getattr(error, 'strerror', None) or repr(error)})"
