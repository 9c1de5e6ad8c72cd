"""What the node itself published while a recording was made: chunks, holds, diagnostics."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import Bag
from diffusion_policy_ros.observe.codecs import stamp_ns
from diffusion_policy_ros.runtime.provenance import Provenance, read_provenance

TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
STATUS = ("policy", "player")
"""How the statuses of node and action player are called, behind the node's name."""
COUNTED = ("rejected", "clamped", "dropped")


@dataclasses.dataclass
class LiveRun:
    """A run of the node, as far as it was recorded.

    Attributes:
        topic: of the chunks.
        chunks: time of the newest observed frame → (n, Da) actions.
        provenance: time of the newest observed frame → how the node made its chunk.
        holds: how often the robot was told to hold.
        delays_s: from a frame's stamp to the arrival of its chunk at the recorder.
        said: what the statuses of node and player said → in how many reports.
        values: what the node's newest status told.
        player: what the action player had rejected, clamped and dropped in the end.
    """

    topic: str
    chunks: dict[int, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    provenance: dict[int, Provenance] = dataclasses.field(default_factory=dict)
    holds: int = 0
    delays_s: list[float] = dataclasses.field(default_factory=list)
    said: Counter[str] = dataclasses.field(default_factory=Counter)
    values: dict[str, str] = dataclasses.field(default_factory=dict)
    player: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def stamps(self) -> set[int]:
        """Times of the frames that chunks followed, published or dropped as too late."""
        return {*self.chunks, *self.provenance}

    @property
    def frames_ns(self) -> set[int]:
        """Times of all known frames: the newest and the oldest ones of windows."""
        return {*self.stamps, *(made.oldest_ns for made in self.provenance.values())}

    def how(self, time_ns: int) -> Provenance | None:
        """How the chunk of that time was made; where that was not recorded, as the newest."""
        return self.provenance.get(time_ns) or next(reversed(self.provenance.values()), None)

    @classmethod
    def of(cls, bag: Bag, contract: Contract) -> LiveRun | None:
        """What a bag holds of a run; None where it holds no chunk."""
        commands = {stream.topic for stream in contract.action.commands}
        topics = [t for t, (kind, n) in bag.topics.items() if kind == TRAJECTORY and n]
        reports = {t for t, (kind, _) in bag.topics.items() if kind == DIAGNOSTICS}
        for topic in topics:
            if topic in commands or not topic.endswith("action_chunk"):
                continue
            run = cls(topic)
            for name, log_ns, msg in bag.messages({topic, *reports}):
                if name == topic:
                    run._note_chunk(msg, log_ns, contract.action_names)
                else:
                    run._note_report(msg)
            if run.chunks:
                return run
        return None

    def _note_chunk(self, msg: Any, log_ns: int, names: list[str]) -> None:
        stamp = stamp_ns(msg) or 0
        if not msg.points:
            self.holds += 1
            return
        actions = [list(point.positions) for point in msg.points]
        if list(msg.joint_names) == names and {len(action) for action in actions} == {len(names)}:
            self.chunks[stamp] = np.array(actions, np.float64)
            self.delays_s.append((log_ns - stamp) / 1e9)

    def _note_report(self, msg: Any) -> None:
        for status in msg.status:
            kind = status.name.rpartition(": ")[2]
            if kind in STATUS:
                self.said[f"{kind}: {status.message}"] += 1
                told = {entry.key: entry.value for entry in status.values}
                if kind == "policy":
                    self.values = told
                    made = read_provenance(told.get("newest_chunks", ""))
                    self.provenance.update({one.stamp_ns: one for one in made})
                else:
                    self.player = {k: v for k, v in told.items() if k.startswith(COUNTED)}
