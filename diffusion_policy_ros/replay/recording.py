"""Some frames of a recording become chunks, as they do in the node.

Messages of a bag are pushed to the node's own loop, `runtime.policy_loop`; chunks are made as the
node made them, as far as that was recorded. A dataset's windows are those that `History` gave when
it was converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import Bag, open_bag
from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.history import Event, Frame
from diffusion_policy_ros.replay.live_run import LiveRun
from diffusion_policy_ros.replay.policy import Policy
from diffusion_policy_ros.replay.reading import BagReading, Replayed, See, read_episode
from diffusion_policy_ros.runtime.inference import Request
from diffusion_policy_ros.runtime.joining import Joiner
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.provenance import Provenance

# A bag


def replay_bag(
    path: Path,
    policy: Policy,
    every: int | None = None,
    tick: Callable[[], None] = lambda: None,
    see: See = lambda *_: None,
) -> Replayed:
    """Replay one bag.

    Args:
        path: the recording.
        policy: makes the chunks.
        every: frames between two chunks; where not given, a chunk follows each frame that it
            followed live if that was recorded, else every ``replan_steps``-th one.
        tick: called after each chunk.
        see: called with each frame.

    Raises:
        UserError: damaged, without a topic of the contract, or without a single frame.
    """
    bag = open_bag(path)
    policy = policy.for_task(bag.metadata.get("task", "").strip(), str(path))
    live = LiveRun.of(bag, policy.contract)
    return _BagReplay(bag, policy, every, live, tick, see).run()


class _BagReplay(BagReading):
    """One bag, and the chunks that follow its frames."""

    def __init__(
        self,
        bag: Bag,
        policy: Policy,
        every: int | None,
        live: LiveRun | None,
        tick: Callable[[], None],
        see: See,
    ) -> None:
        super().__init__(bag, policy.contract, live, see)
        self.policy, self.tick = policy, tick
        self.every = every or policy.sampling.replan_steps
        self.stamps = live.stamps if live is not None and every is None else None
        how = (policy.n_obs_steps, policy.sampling, lambda _: None, lambda: self.now_ns)
        self.loop = PolicyLoop(policy.engine, self.contract, *how)
        self.loop.wants = self._is_chosen
        self.history = self.loop.history
        if live is not None:
            self.history.known_ns = live.frames_ns
        self.joiner, self.run_begins, self.run_whole = Joiner(self.contract), -1, False
        self.waited = 0
        self.loop.start(0)

    def _check(self) -> None:
        super()._check()
        if not self.found.chunks:
            what = "no frame has the time of a recorded chunk"
            raise UserError(what, "", "give --every, or the contract that the node had")

    def _poll(self, log_ns: int) -> list[Event]:
        return self.loop.poll(log_ns)

    def _push(self, topic: str, msg: Any, log_ns: int) -> list[Event]:
        return self.loop.push(topic, msg, log_ns)

    def _take(self, events: list[Event]) -> None:
        super()._take(events)
        request = self.loop.due()
        if request is not None and isinstance(events[-1], Frame):
            self._sample(request, events[-1])

    def _is_chosen(self, frame: Frame) -> bool:
        """Whether a chunk follows, in place of the loop's choice; its window begins as live."""
        if self.stamps is None:
            self.waited = 0 if frame.first else self.waited + 1
            return self.waited % self.every == 0
        how, frames = (
            self.live and self.live.provenance.get(frame.time_ns),
            self.history.frames,
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
        known = made is not None and self.history.frames[0].time_ns == made.oldest_ns
        self.run_whole &= known
        return known and (join == "replace" or self.run_whole)


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
    found = read_episode(windows.dataset, number)
    source, frames = windows.episodes[number].source, len(found.times_ns)
    policy = policy.for_task(windows.episodes[number].task, source)
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
