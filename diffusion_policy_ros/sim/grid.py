"""When the simulated arm's frames are due on a clock that is not its own."""

from __future__ import annotations

FOLLOW = 0.002
"""How much of its lateness the grid takes over at each frame: clocks drift against each other."""
LOST_PERIODS = 5
"""Periods off the grid after which it begins anew instead of catching up."""


class FrameGrid:
    """An even grid of stamps along a clock that is read now and then.

    Frames that became due since the last reading are caught up with, each by its own stamp. A
    clock that was stepped, or a process that was stopped, begins a new grid: the stamps then show
    the gap.

    Args:
        period_ns: between frames.
        early_ns: a reading this much before a frame brings it forward to now: half a period where
            the clock is read once a period, nothing where it is read more often.
    """

    def __init__(self, period_ns: int, early_ns: int = 0) -> None:
        self._period, self._early = period_ns, early_ns
        self._next: float | None = None

    def stamps(self, now_ns: int) -> list[int]:
        """The stamps of the frames that are due, none of them in the future."""
        due = self._next
        if due is None or abs(now_ns - due) > LOST_PERIODS * self._period:
            due = float(now_ns)
        if due > now_ns + self._early:
            return []
        due = min(due, now_ns)
        found = []
        while due <= now_ns:
            found.append(round(due))
            due += self._period
        self._next = due + FOLLOW * max(now_ns - found[-1], 0)
        return found
