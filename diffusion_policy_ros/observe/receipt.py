"""When a recorded message was received, by the clock that the others are stamped by."""

from __future__ import annotations

APART_NS = 60_000_000_000
"""Stamps and log times that are farther apart are of two clocks: a simulation's, or a boot's."""


class ReceiptClock:
    """Tells the time of receipt of messages without a usable stamp.

    A recorder notes times of its own clock. In a simulation all else is stamped by another one;
    the node then takes the simulation's time for that of receipt, and so does this, as far as the
    newest stamped message tells.
    """

    def __init__(self) -> None:
        self._offset_ns = 0

    def note(self, stamp: int | None, log_ns: int) -> None:
        """Take the stamp of a message of the anchor; None and zero tell nothing."""
        if stamp:
            apart = stamp - log_ns
            self._offset_ns = apart if abs(apart) > APART_NS else 0

    def at(self, log_ns: int) -> int:
        """When a message was received that was recorded at ``log_ns``."""
        return log_ns + self._offset_ns
