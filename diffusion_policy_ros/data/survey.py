"""What a bag holds, by topic: rates, gaps, jitter, and how far stamps and log times are apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.data.bags import Bag
from diffusion_policy_ros.data.episode_writer import BURST_S, SILENT_S
from diffusion_policy_ros.observe.codecs import stamp_ns

JOINTS = "sensor_msgs/msg/JointState"
LOOKED_INTO = 100
"""Messages of a topic that are looked into for their joints."""
GAP = 3.0
"""Usual intervals without a message that make a gap."""


@dataclass
class Topic:
    """One topic's timing.

    Attributes:
        name: the topic.
        type: its message type.
        count: number of messages.
        stamped: whether it has a header; else what follows is of log times.
        rate_hz: messages a second, by the usual (median) interval.
        duration_s: from first to last.
        gaps: intervals longer than `GAP` usual ones.
        longest_s: the longest interval.
        jitter_ms: what 95 % of the intervals differ from the usual one at most.
        offset_s: log time minus stamp, median; None without stamps.
        offset_spread_ms: what 95 % of these differ from the median at most.
        backwards: stamps that are not later than the one before.
        silent_s: how long before the recording's end its last message came.
        unset: whether all stamps are zero.
        first: the first message.
        variants: the first messages of each set of joints, where several nodes publish them.
    """

    name: str
    type: str
    count: int
    stamped: bool
    rate_hz: float = 0.0
    duration_s: float = 0.0
    gaps: int = 0
    longest_s: float = 0.0
    jitter_ms: float = 0.0
    offset_s: float | None = None
    offset_spread_ms: float = 0.0
    backwards: int = 0
    silent_s: float = 0.0
    unset: bool = False
    first: Any = field(default=None, repr=False)
    variants: list[Any] = field(default_factory=list, repr=False)

    def remarks(self) -> Iterator[str]:
        """What is odd about it."""
        if not self.stamped:
            yield "no stamps: log times stand in"
        if self.backwards:
            yield f"{self.backwards} stamps not later than the one before"
        if self.gaps:
            yield f"{self.gaps} gaps, the longest {self.longest_s:.2f} s"
        goes_on = 1.0 < self.rate_hz < self.count / BURST_S
        if goes_on and self.silent_s > max(SILENT_S, 5 / self.rate_hz):
            yield f"nothing in the last {self.silent_s:.1f} s of the recording: did it die?"
        if self.unset:
            yield "all stamps are zero: it needs time: receipt"
        elif self.offset_s is not None and abs(self.offset_s) > 1e6:
            yield "stamps are not of the recorder's clock (simulated, or not set)"


def survey(bag: Bag) -> dict[str, Topic]:
    """Read a bag once and describe each of its topics.

    Raises:
        UserError: the bag is damaged.
    """
    times: dict[str, list[tuple[int, int | None]]] = {topic: [] for topic in bag.topics}
    first: dict[str, dict[Any, Any]] = {topic: {} for topic in bag.topics}
    for topic, log_ns, msg in bag.messages():
        times[topic].append((log_ns, stamp_ns(msg)))
        if len(times[topic]) <= LOOKED_INTO:
            named = bag.topics[topic][0] == JOINTS
            first[topic].setdefault(tuple(msg.name) if named else None, msg)
    end_ns = max((t[-1][0] for t in times.values() if t), default=0)
    found = {}
    for name, t in times.items():
        silent_s = (end_ns - t[-1][0]) / 1e9 if t else 0.0
        kind = bag.topics[name][0]
        seen = list(first[name].values())
        blank = Topic(name, kind, len(t), False, silent_s=silent_s, variants=seen)
        blank.first = seen[0] if seen else None
        found[name] = _describe(blank, t)
    return found


def _describe(topic: Topic, times: list[tuple[int, int | None]]) -> Topic:
    if not times:
        return topic
    log = np.array([log_ns for log_ns, _ in times], dtype=np.int64)
    topic.stamped = times[0][1] is not None
    stamps = np.array([stamp for _, stamp in times], dtype=np.int64) if topic.stamped else log
    steps = np.diff(stamps)
    topic.backwards = int((steps <= 0).sum()) if topic.stamped else 0
    if topic.stamped:
        topic.offset_s = float(np.median(log - stamps)) / 1e9
        topic.offset_spread_ms = _spread(log - stamps)
    topic.unset = topic.stamped and not stamps.any()
    if topic.stamped and not steps.any():
        steps = np.diff(log)  # stamps that nobody sets
    steps = steps[steps > 0]
    if len(steps):
        usual = float(np.median(steps))
        topic.rate_hz, topic.duration_s = 1e9 / usual, float(steps.sum()) / 1e9
        topic.gaps, topic.longest_s = int((steps > GAP * usual).sum()), float(steps.max()) / 1e9
        topic.jitter_ms = _spread(steps)
    return topic


def _spread(values: NDArray[np.int64]) -> float:
    """95 % of the values are that close to their median, in ms for ns."""
    return float(np.quantile(np.abs(values - np.median(values)), 0.95)) / 1e6
