"""When a recorded message was received, by the clock that the others are stamped by."""

from __future__ import annotations

from diffusion_policy_ros.contract import Contract

APART_NS = 60_000_000_000
"""Stamps and log times that are farther apart are of two clocks: a simulation's, or a boot's."""


class ReceiptClock:
    """Tells the time of receipt of messages without a usable stamp.

    A recorder notes times of its own clock. In a simulation all else is stamped by another one;
    the node then takes the simulation's time for that of receipt, and so does this, as far as the
    newest stamped message tells: the anchor's, or another stream's where those are of no use.

    Args:
        contract: the robot.

    Attributes:
        leader: the topic whose stamps tell; empty before the first one.
    """

    def __init__(self, contract: Contract) -> None:
        self._anchor = contract.observations[contract.anchor].topic
        self._telling = {
            topic
            for topic, streams in contract.topics.items()
            if streams[0].time == "header" and not streams[0].static
        }
        self.leader, self._offset_ns = "", 0

    def note(self, topic: str, stamp: int | None, log_ns: int) -> None:
        """Take a message's stamp; None and zero tell nothing."""
        if not stamp or topic not in self._telling:
            return
        if topic == self._anchor or not self.leader:
            self.leader = topic
        if topic == self.leader:
            apart = stamp - log_ns
            self._offset_ns = apart if abs(apart) > APART_NS else 0

    def at(self, log_ns: int) -> int:
        """When a message was received that was recorded at ``log_ns``."""
        return log_ns + self._offset_ns
