"""When messages came, and what their stamps cannot be."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import stamp_ns

RECENT = 64
"""Messages that a stream's rate is taken over."""
AHEAD_NS = 1_000_000_000
"""How far a stamp may be ahead of our clock: simulated time may lag, and clocks differ, but not so
much."""


@dataclass
class Arrivals:
    """When the messages of one topic came.

    Attributes:
        count: messages so far.
        delay_s: from the newest one's stamp to its arrival, by the clock that stamps are of.
    """

    count: int = 0
    delay_s: float | None = None
    times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))

    def note(self, arrival_ns: int, delay_ns: int | None) -> None:
        """A message came."""
        self.count += 1
        self.times_ns.append(arrival_ns)
        self.delay_s = None if delay_ns is None else delay_ns / 1e9

    def age_s(self, now_ns: int) -> float | None:
        """Time since the newest message; None before the first."""
        return (now_ns - self.times_ns[-1]) / 1e9 if self.times_ns else None

    def rate_hz(self, now_ns: int) -> float:
        """Messages a second, sinking while none come."""
        if len(self.times_ns) < 2:
            return 0.0
        intervals = len(self.times_ns) - 1
        span_ns = self.times_ns[-1] - self.times_ns[0]
        waited_ns = now_ns - self.times_ns[-1] - span_ns / intervals
        return intervals / max(span_ns + max(waited_ns, 0), 1) * 1e9


def read_stamp(msg: Any, now_ns: int) -> tuple[int | None, str]:
    """A message's stamp, if it has one, and what is wrong with it.

    Args:
        msg: the message.
        now_ns: by the clock that it is to be of.
    """
    try:
        stamp = stamp_ns(msg)
    except UserError as error:
        return None, str(error)
    return stamp, "" if stamp is None else _why_impossible(stamp, now_ns)


def _why_impossible(stamp: int, now_ns: int) -> str:
    if stamp == 0:
        return "its stamp is zero; let its driver fill header.stamp"
    if stamp - now_ns <= AHEAD_NS:
        return ""
    if now_ns == 0:
        return "the node has no time yet; publish /clock, or set use_sim_time to false"
    ahead_s = (stamp - now_ns) / 1e9
    return f"its stamp is {ahead_s:.3f} s ahead of the node's clock; set the clocks alike"
