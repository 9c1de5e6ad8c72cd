"""When a recorded message was received, by the clock that the others are stamped by."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from diffusion_policy_ros.contract import Contract

APART_NS = 60_000_000_000
"""Stamps and log times that are farther apart are of two clocks: a simulation's, or a boot's."""
LATELY = 30
"""Messages by which it is told how fast a simulation's time goes."""


class ReceiptClock:
    """Tells the time of receipt of messages without a usable stamp.

    A recorder notes times of its own clock. In a simulation all else is stamped by another one;
    the node then takes the simulation's time for that of receipt, and so does this, as far as the
    newest stamped message tells: the anchor's, or another stream's where those are of no use. Its
    seconds may be longer or shorter than the recorder's; beyond the next stamp it does not go.

    Args:
        contract: the robot.

    Attributes:
        leader: the topic whose stamps tell; empty before the first one.
    """

    def __init__(self, contract: Contract) -> None:
        self._anchor = contract.observations[contract.anchor].topic
        self._period_ns, topics = contract.period_ns, contract.topics.items()
        self._telling = {topic for topic, streams in topics if streams[0].goes_by_stamp}
        self.leader, self._told = "", deque[tuple[int, int]](maxlen=LATELY)

    def note(self, topic: str, stamp: int | None, log_ns: int) -> None:
        """Take a message's stamp; None and zero tell nothing."""
        if not stamp or topic not in self._telling:
            return
        if self.leader not in ("", topic) and topic != self._anchor:
            return
        if topic != self.leader or stamp < self._told[-1][1]:
            self._told.clear()  # of another, or time has begun anew
        self.leader = topic
        self._told.append((log_ns, stamp))

    def at(self, log_ns: int) -> int:
        """When a message was received that was recorded at ``log_ns``."""
        newest_ns, stamp = self._told[-1] if self._told else (0, 0)
        if abs(stamp - newest_ns) <= APART_NS:
            return log_ns
        begun_ns, first = self._told[0]
        pace = (stamp - first) / (newest_ns - begun_ns) if newest_ns > begun_ns else 1.0
        steps = (after[1] - before[1] for before, after in pairwise(self._told))
        return stamp + min(round(pace * (log_ns - newest_ns)), max(steps, default=self._period_ns))
