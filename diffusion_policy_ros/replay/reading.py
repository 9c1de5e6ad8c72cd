"""A recording becomes frames, and what was commanded in them.

Messages of a bag are pushed through the frame rule in the order of their log time. A dataset's
frames are those that it made when the bag was converted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.actions import Commands, next_state_actions
from diffusion_policy_ros.data.bags import Bag, open_bag
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.recorded_as import cell_of, resolve_topics
from diffusion_policy_ros.data.remarks import by_kind, most_refused
from diffusion_policy_ros.data.shards import ACTION, STAMP
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.history import Event, Frame, History, Refused
from diffusion_policy_ros.observe.receipt import ReceiptClock
from diffusion_policy_ros.replay.live_run import LiveRun
from diffusion_policy_ros.runtime.arrivals import read_stamp
from diffusion_policy_ros.runtime.tail import Chunk

Actions = NDArray[np.float64]
See = Callable[[int, Frame, History], None]
"""What is told of each frame of a bag: its number, it, and the history that has its messages."""

ROLES = {
    "held out": "held out of the training",
    "trained": "trained on, where errors are small whatever was learned",
    "unknown": "unknown to the checkpoint",
}


def roles_said(roles: Iterable[str]) -> str:
    """How many recordings are of each role, in words."""
    count = Counter(roles)
    return ", ".join(f"{count[role]} {ROLES[role]}" for role in ROLES if count[role])


@dataclass
class Replayed:
    """A recording, and the chunks that the policy makes of it.

    Attributes:
        name: what it is called.
        role: "trained" or "held out" in the policy's training, where that is known.
        times_ns: (F,) of its frames.
        segment: (F,) counts up where frames do not follow each other.
        states: observation key → (F, n), of vectors.
        done: (F, Da) what was commanded; NaN where nothing is known.
        source: where `done` is from.
        chunks: frame → the chunk that follows it, up to the horizon.
        pictures: frame → what the first camera showed, of frames with a chunk.
        ages_ns: observation key → (F,) how much older than its frame; empty from a dataset.
        refused: reason → frames that could not be made.
        resets: why history was dropped.
        notes: what is odd about the recording.
        live: what the node itself had published, where that was recorded.
        whole: frames whose chunk follows from all that the node's followed from: nothing of it was
            before the recording, and how it was made was recorded.
    """

    name: str
    times_ns: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    states: dict[str, Any] = field(default_factory=dict)
    done: Actions = field(default_factory=lambda: np.zeros((0, 0)))
    source: str = ""
    chunks: dict[int, Chunk] = field(default_factory=dict)
    pictures: dict[int, Array] = field(default_factory=dict)
    ages_ns: dict[str, list[int]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    resets: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    live: LiveRun | None = None
    whole: set[int] = field(default_factory=set)
    role: str = "unknown"


def read_bag(path: Path, contract: Contract, see: See = lambda *_: None) -> Replayed:
    """The frames of a bag and what was commanded; no chunks.

    Args:
        path: the recording.
        contract: says how it is read.
        see: called with each frame.

    Raises:
        UserError: damaged, without a topic of the contract, or without a single frame.
    """
    return BagReading(open_bag(path), contract, None, see).run()


def read_episode(dataset: Dataset, number: int) -> Replayed:
    """An episode of a dataset: its vectors and actions; no chunks."""
    episode = dataset.episodes[number]
    rows = dataset.first_row(number) + np.arange(episode.frames)
    name = f"episode {dataset.lines[number]} ({episode.source})"
    found = Replayed(name, segment=[0] * episode.frames)
    found.times_ns = dataset.rows[STAMP].take(rows).tolist()
    for key, stream in dataset.contract.observations.items():
        if not stream.is_image:
            found.states[key] = dataset.rows[key].take(rows)
    found.done = dataset.rows[ACTION].take(rows).astype(np.float64)
    found.source = "the dataset's actions"
    return found


class BagReading:
    """One bag on its way through the frame rule."""

    def __init__(self, bag: Bag, contract: Contract, live: LiveRun | None, see: See) -> None:
        self.bag, self.live, self.see = bag, live, see
        self.contract = cell_of(bag, contract)
        self.commands = Commands(self.contract)
        self.history = History(self.contract, 1)
        self.now_ns = self.life = 0
        self.found = Replayed(bag.path.name, notes=list(bag.notes), live=live)
        self.found.ages_ns = {key: [] for key in self.contract.observations}
        self.refused: Counter[str] = Counter()
        self.lives: list[int] = []
        self.vectors: list[dict[str, Array]] = []

    def run(self) -> Replayed:
        """Read it."""
        try:
            self._read()
            self._check()
            self._finish()
        except UserError as error:
            raise UserError(error.what, error.where or str(self.bag.path), error.cure) from None
        return self.found

    def _read(self) -> None:
        topics = {recorded: topic for topic, recorded in self._topics().items()}
        log_ns, clock = 0, ReceiptClock(self.contract)
        for recorded, log_ns, msg in self.bag.messages(topics):
            topic = topics[recorded]
            stamp, _ = read_stamp(msg, log_ns)
            clock.note(topic, stamp, log_ns)
            self.now_ns = clock.at(log_ns)
            if topic in self.contract.topics:
                if self.contract.topics[topic][0].time == "header" and stamp is not None:
                    self.now_ns = max(self.now_ns, stamp)  # the recorder's clock may be another's
                # As in the node, where a timer closes frames before the next message comes.
                self._take(self._poll(log_ns))
                self._take(self._push(topic, msg, log_ns))
            if topic in self.commands.topics:
                self.commands.push(topic, msg, clock.at(log_ns), self.life)
        self._take(self._poll(log_ns + round(self.contract.settle_s * 1e9)))
        self.found.refused = Counter(by_kind(self.refused))

    def _check(self) -> None:
        if not self.found.times_ns:
            reason = most_refused(self.found.refused) or "its messages make no frame"
            raise UserError(f"not a single frame: {reason}", "", "inspect the bag")

    def _poll(self, log_ns: int) -> list[Event]:
        return self.history.poll(log_ns)

    def _push(self, topic: str, msg: Any, log_ns: int) -> list[Event]:
        return self.history.push(topic, msg, log_ns, self.now_ns)

    def _topics(self) -> dict[str, str]:
        """The contract's topics → the bag's; commands are left out where none was recorded."""
        seen = {topic: streams[0].type for topic, streams in self.contract.topics.items()}
        commanded = {stream.topic: stream.type for stream in self.contract.action.commands}
        if all(_is_recorded(self.bag, topic) for topic in commanded):
            return resolve_topics(self.bag, {**seen, **commanded})
        self.commands = Commands(_without_commands(self.contract))
        return resolve_topics(self.bag, seen)

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Frame):
                self._note(event)
            elif isinstance(event, Refused):
                self.refused[event.reason] += 1
            else:
                self.found.resets.append(event.reason)
                self.life += 1

    def _note(self, frame: Frame) -> None:
        found = self.found
        follows = found.segment and not frame.first and self.lives[-1] == self.life
        found.segment.append(found.segment[-1] + (not follows) if found.segment else 0)
        found.times_ns.append(frame.time_ns)
        self.lives.append(self.life)
        self.vectors.append({k: a for k, a in frame.arrays.items() if a.ndim == 1})
        for key, age in frame.ages_ns.items():
            found.ages_ns[key].append(age)
        self.see(len(self.lives) - 1, frame, self.history)

    def _finish(self) -> None:
        found, contract = self.found, self.contract
        found.states = {
            key: np.stack([vectors[key] for vectors in self.vectors]) for key in self.vectors[0]
        }
        found.done = np.full((len(found.times_ns), contract.action_dim), np.nan)
        for part in _runs(found.segment):
            self._fill(part)

    def _fill(self, part: slice) -> None:
        """What was done in frames that follow each other."""
        found, contract = self.found, self.contract
        if self.commands.topics:
            found.source = "the recorded commands"
            times = np.array(found.times_ns[part], dtype=np.int64)
            states = {key: values[part] for key, values in found.states.items()}
            actions, valid = self.commands.actions(times, self.lives[part.start], states)
            found.done[part][valid] = actions[valid]
        elif _follows_from_states(contract):
            found.source = "the states one frame later"
            states = {key: values[part] for key, values in found.states.items()}
            found.done[part][:-1] = next_state_actions(contract, states)


def _is_recorded(bag: Bag, topic: str) -> bool:
    names = [t for t in bag.topics if t == topic or (topic[0] != "/" and t.endswith(f"/{topic}"))]
    return any(bag.topics[name][1] for name in names)


def _without_commands(contract: Contract) -> Contract:
    return replace(contract, action=replace(contract.action, record="next_state"))


def _follows_from_states(contract: Contract) -> bool:
    """Whether every part of the action follows from the states one frame later."""
    return all(
        part.state and (part.kind != "binary" or part.closes is not None)
        for part in contract.action.fields
    )


def _runs(segment: list[int]) -> Iterator[slice]:
    """The frames of each segment."""
    edges = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
    return (slice(a, b) for a, b in zip(edges, edges[1:], strict=False))
