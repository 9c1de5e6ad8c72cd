"""A recording becomes frames, and some of its frames chunks, as they do in the node.

Messages of a bag are pushed to the node's own loop, `runtime.policy_loop`, in the order of their
log time; chunks are made as the node made them, as far as that was recorded. A dataset's windows
are those that `History` gave when it was converted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.actions import Commands, next_state_actions
from diffusion_policy_ros.data.bags import Bag, open_bag
from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.data.recorded_as import cell_of, resolve_topics
from diffusion_policy_ros.data.remarks import by_kind, most_refused
from diffusion_policy_ros.data.shards import ACTION, STAMP
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.history import Event, Frame, Refused
from diffusion_policy_ros.observe.receipt import ReceiptClock
from diffusion_policy_ros.replay.live_run import LiveRun
from diffusion_policy_ros.replay.policy import Policy
from diffusion_policy_ros.runtime.arrivals import read_stamp
from diffusion_policy_ros.runtime.inference import Request
from diffusion_policy_ros.runtime.joining import Joiner
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.provenance import Provenance
from diffusion_policy_ros.runtime.tail import Chunk

Actions = NDArray[np.float64]

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


# A bag


def replay_bag(
    path: Path, policy: Policy, every: int | None = None, tick: Callable[[], None] = lambda: None
) -> Replayed:
    """Replay one bag.

    Args:
        path: the recording.
        policy: makes the chunks.
        every: frames between two chunks; where not given, a chunk follows each frame that it
            followed live if that was recorded, else every ``replan_steps``-th one.
        tick: called after each chunk.

    Raises:
        UserError: damaged, without a topic of the contract, or without a single frame.
    """
    bag = open_bag(path)
    policy = policy.for_task(bag.metadata.get("task", "").strip(), str(path))
    live = LiveRun.of(bag, policy.contract)
    replaying = _BagReplay(bag, policy, every, live, tick)
    try:
        return replaying.run()
    except UserError as error:
        raise UserError(error.what, error.where or str(path), error.cure) from None


class _BagReplay:
    """One bag on its way through the frame rule."""

    def __init__(
        self,
        bag: Bag,
        policy: Policy,
        every: int | None,
        live: LiveRun | None,
        tick: Callable[[], None],
    ) -> None:
        self.bag, self.policy, self.tick = bag, policy, tick
        self.contract = cell_of(bag, policy.contract)
        self.every = every or policy.sampling.replan_steps
        self.stamps = live.stamps if live is not None and every is None else None
        self.commands = Commands(self.contract)
        self.now_ns = 0
        how = (policy.n_obs_steps, policy.sampling, lambda _: None, lambda: self.now_ns)
        self.loop = PolicyLoop(policy.engine, self.contract, *how)
        self.loop.wants = self._is_chosen
        if live is not None:
            self.loop.history.known_ns = live.frames_ns
        self.found = Replayed(bag.path.name, notes=list(bag.notes), live=live)
        self.found.ages_ns = {key: [] for key in self.contract.observations}
        self.joiner, self.run_begins, self.run_whole = Joiner(self.contract), -1, False
        self.live = live
        self.refused: Counter[str] = Counter()
        self.lives: list[int] = []
        self.vectors: list[dict[str, Array]] = []
        self.life = self.waited = 0

    def run(self) -> Replayed:
        topics = {recorded: topic for topic, recorded in self._topics().items()}
        log_ns, clock = 0, ReceiptClock(self.contract)
        self.loop.start(0)
        for recorded, log_ns, msg in self.bag.messages(topics):
            topic = topics[recorded]
            stamp, _ = read_stamp(msg, log_ns)
            clock.note(topic, stamp, log_ns)
            self.now_ns = clock.at(log_ns)
            if topic in self.contract.topics:
                if self.contract.topics[topic][0].time == "header" and stamp is not None:
                    self.now_ns = max(self.now_ns, stamp)  # the recorder's clock may be another's
                # As in the node, where a timer closes frames before the next message comes.
                self._take(self.loop.poll(log_ns))
                self._take(self.loop.push(topic, msg, log_ns))
            if topic in self.commands.topics:
                self.commands.push(topic, msg, clock.at(log_ns), self.life)
        self._take(self.loop.poll(log_ns + round(self.contract.settle_s * 1e9)))
        self.found.refused = Counter(by_kind(self.refused))
        if not self.found.times_ns:
            reason = most_refused(self.found.refused) or "its messages make no frame"
            raise UserError(f"not a single frame: {reason}", "", "inspect the bag")
        if not self.found.chunks:
            what = "no frame has the time of a recorded chunk"
            raise UserError(what, "", "give --every, or the contract that the node had")
        self._finish()
        return self.found

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
        request = self.loop.due()
        if request is not None and isinstance(events[-1], Frame):
            self._sample(request, events[-1])

    def _note(self, frame: Frame) -> None:
        found = self.found
        follows = found.segment and not frame.first and self.lives[-1] == self.life
        found.segment.append(found.segment[-1] + (not follows) if found.segment else 0)
        found.times_ns.append(frame.time_ns)
        self.lives.append(self.life)
        self.vectors.append({k: a for k, a in frame.arrays.items() if a.ndim == 1})
        for key, age in frame.ages_ns.items():
            found.ages_ns[key].append(age)

    def _is_chosen(self, frame: Frame) -> bool:
        """Whether a chunk follows, in place of the loop's choice; its window begins as live."""
        if self.stamps is None:
            self.waited = 0 if frame.first else self.waited + 1
            return self.waited % self.every == 0
        how, frames = (
            self.live and self.live.provenance.get(frame.time_ns),
            self.loop.history.frames,
        )
        while how and frames[0].time_ns < how.oldest_ns:  # somebody had reset the node
            frames.popleft()
        return frame.time_ns in self.stamps

    def _sample(self, request: Request, frame: Frame) -> None:
        number = len(self.found.times_ns) - 1
        how = self.live.how(frame.time_ns) if self.live else None
        policy = self.policy.as_recorded(how)
        self._renew_joiner(frame, how)
        delay_frames = how.delay_frames if how else 0
        chunk = policy.chunk(request.window, frame.time_ns, self.joiner, delay_frames)
        self.found.chunks[number] = chunk
        if self._is_whole(frame, policy.sampling.chunk_join):
            self.found.whole.add(number)
        picture = _picture(self.contract, frame.arrays)
        if picture is not None:
            self.found.pictures[number] = picture
        self.tick()

    def _renew_joiner(self, frame: Frame, how: Provenance | None) -> None:
        """Where the node began a new run of chunks; after a gap where that was not recorded."""
        begins = how.run_ns if how and self.stamps else -self.found.segment[-1]
        if begins != self.run_begins:
            self.joiner, self.run_begins = Joiner(self.contract), begins
            self.run_whole = frame.time_ns == begins

    def _is_whole(self, frame: Frame, join: str) -> bool:
        made = self.live.provenance.get(frame.time_ns) if self.live is not None else None
        known = made is not None and self.loop.history.frames[0].time_ns == made.oldest_ns
        self.run_whole &= known
        return known and (join == "replace" or self.run_whole)

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


def _picture(contract: Contract, arrays: Mapping[str, Array]) -> Array | None:
    """What the anchor's camera showed, or the first one; about 160 pixels wide."""
    keys = [contract.anchor, *contract.observations]
    key = next((key for key in keys if contract.observations[key].is_image), None)
    if key is None:
        return None
    image = arrays[key]
    step = max(1, image.shape[1] // 160)
    return np.ascontiguousarray(image[::step, ::step])


# A dataset


def replay_episode(
    windows: WindowDataset,
    number: int,
    policy: Policy,
    every: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Replayed:
    """Replay one episode of a dataset.

    Args:
        windows: the dataset, with windows of the policy's To.
        number: of the episode.
        policy: makes the chunks.
        every: frames between two chunks; ``replan_steps`` where not given.
        tick: called after each chunk.
    """
    episode = windows.dataset.episode(number)
    frames = len(episode[STAMP])
    source = windows.episodes[number].source
    policy = policy.for_task(windows.episodes[number].task, source)
    found = Replayed(f"episode {number} ({source})")
    found.times_ns, found.segment = episode[STAMP].tolist(), [0] * frames
    found.states = {key: a for key, a in episode.items() if a.ndim == 2 and key != ACTION}
    found.done, found.source = episode[ACTION].astype(np.float64), "the dataset's actions"
    first = int(np.flatnonzero(windows.episode_of == number)[0])
    joiner = Joiner(policy.contract)
    for frame in range(0, frames, every or policy.sampling.replan_steps):
        batch = windows.batch([first + frame])
        window = {key: batch[key][0] for key in policy.contract.observations}
        found.chunks[frame] = policy.chunk(window, found.times_ns[frame], joiner)
        picture = _picture(policy.contract, {key: array[-1] for key, array in window.items()})
        if picture is not None:
            found.pictures[frame] = picture
        tick()
    return found
