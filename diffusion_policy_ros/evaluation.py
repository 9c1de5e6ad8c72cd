"""Closed-loop episodes without ROS: simulator → messages → history → policy → playback →
simulator.

Every part but the transport is the one that the robot runs. Inference takes no simulated time:
what is measured is the policy at zero latency, or at an artificial one of whole frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.history import Frame, History
from diffusion_policy_ros.runtime.commander import SetPoint
from diffusion_policy_ros.runtime.joining import Joiner
from diffusion_policy_ros.runtime.playback import Chunk
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.runner import Sampling, make_chunk
from diffusion_policy_ros.sim.arm import RATE_HZ, SimArm
from diffusion_policy_ros.sim.messages import messages

SIMULATORS: dict[str, Callable[[bool], SimArm]] = {"mini_lift": SimArm}
"""Name → what makes the simulator, with cameras or without."""


@dataclass(frozen=True)
class Episode:
    """How one went.

    Attributes:
        seed: the episode's seed.
        success: whether the task was done in time.
        steps: control periods until success or the end.
    """

    seed: int
    success: bool
    steps: int


@dataclass
class Pilot:
    """The robot's side of the loop: messages in, set-points out.

    Attributes:
        delay_frames: how many frames after its newest observation a chunk arrives; 0: none.
        chunk_ms: computing time of every chunk.
        chunk: the newest that has arrived.
    """

    engine: Engine
    contract: Contract
    n_obs_steps: int
    sampling: Sampling
    delay_frames: int = 0
    chunk_ms: list[float] = field(default_factory=list)
    chunk: Chunk | None = None

    def reset(self, seed: int) -> None:
        """Begin an episode; the noise follows from its seed."""
        self._history = History(self.contract, self.n_obs_steps)
        self._player = Player(self.contract, RATE_HZ, interpolate=False)
        self._joiner = Joiner(self.contract)
        self._generator = torch.Generator().manual_seed(seed)
        self._frames = 0
        self._under_way: deque[Chunk] = deque()
        self.chunk = None

    def set_point(self, obs: dict[str, Array], time_ns: int) -> SetPoint:
        """What the robot is told after an observation."""
        for topic, _, msg in messages(obs, time_ns, _duck_typed):
            if topic in self.contract.topics:
                for event in self._history.push(topic, msg, time_ns):
                    self._take(event)
        self._deliver(time_ns)
        return self._player.at(time_ns, obs)

    def _deliver(self, time_ns: int) -> None:
        """Play what has arrived by now."""
        latest_ns = time_ns - self.delay_frames * self.contract.period_ns
        while self._under_way and self._under_way[0].stamp_ns <= latest_ns:
            self.chunk = self._under_way.popleft()
            self._player.offer(self.chunk)

    def _take(self, event: Any) -> None:
        if not isinstance(event, Frame):
            raise UserError(event.reason, "simulator", "use a contract that fits the simulator")
        if self._frames % self.sampling.replan_steps == 0:
            self._infer(event.time_ns)
        self._frames += 1

    def _infer(self, time_ns: int) -> None:
        window = self._history.window()
        assert window is not None, "a frame was just closed"
        begun = time.perf_counter()
        chunk = make_chunk(
            self.engine,
            self.contract,
            window,
            time_ns,
            self.sampling,
            self._generator,
            self._joiner,
            self.delay_frames,
        )
        self.chunk_ms.append((time.perf_counter() - begun) * 1e3)
        self._under_way.append(chunk)


def _duck_typed(_: str) -> type[SimpleNamespace]:
    return SimpleNamespace


@dataclass(frozen=True)
class Result:
    """Of all episodes.

    Attributes:
        episodes: each, in order.
        chunk_ms: computing time of every chunk, ms.
    """

    episodes: list[Episode]
    chunk_ms: list[float]

    def summary(self) -> dict[str, float]:
        """Success rate, mean steps to success or the end, ms a chunk (median)."""
        return {
            "success_rate": float(np.mean([e.success for e in self.episodes])),
            "episodes": len(self.episodes),
            "mean_steps": float(np.mean([e.steps for e in self.episodes])),
            "ms_per_chunk": float(np.median(self.chunk_ms)),
        }


def make_simulator(name: str, contract: Contract) -> SimArm:
    """The simulator of a name, with cameras if the contract has images.

    Raises:
        UserError: unknown, or it lacks a topic of the contract.
    """
    if name not in SIMULATORS:
        raise UserError(f"no simulator '{name}'", "--sim", did_you_mean(name, SIMULATORS))
    arm = SIMULATORS[name](any(stream.is_image for stream in contract.observations.values()))
    offered = {topic: type_name for topic, type_name, _ in messages(arm.reset(0), 0, _duck_typed)}
    for stream in contract.observations.values():
        if offered.get(stream.topic) != stream.type:
            arm.close()
            cure = "use a checkpoint whose contract is of this simulator"
            raise UserError(
                f"the simulator has no {stream.type} on {stream.topic}", contract.name, cure
            )
    return arm


def run_episode(
    arm: SimArm,
    pilot: Pilot,
    seed: int,
    on_step: Callable[[SimArm, Pilot, SetPoint], None] | None = None,
) -> Episode:
    """One closed-loop episode, ending at success or after the task's last step.

    Args:
        arm: the simulator.
        pilot: drives it.
        seed: of the episode and of the noise.
        on_step: called after every step, for pictures.
    """
    obs = arm.reset(seed)
    pilot.reset(seed)
    while not arm.done:
        target = pilot.set_point(obs, arm.time_ns)
        if target.position is None or target.quaternion is None:
            raise UserError(
                "the action commands no pose", "simulator", "use a contract with deltas or poses"
            )
        gripper = -1.0 if target.gripper is None else target.gripper
        obs = arm.step(target.position, target.quaternion, gripper)
        if on_step is not None:
            on_step(arm, pilot, target)
    return Episode(seed, arm.success, arm.steps)


def evaluate(
    arm: SimArm,
    pilot: Pilot,
    seeds: Iterable[int],
    on_episode: Callable[[Episode], None] | None = None,
    on_step: Callable[[SimArm, Pilot, SetPoint], None] | None = None,
) -> Result:
    """Run the episodes of these seeds.

    Args:
        arm: the simulator.
        pilot: drives it.
        seeds: of the episodes; evaluation seeds begin at 10000.
        on_episode: called after each, for progress.
        on_step: called after every step.
    """
    episodes = []
    for seed in seeds:
        episodes.append(run_episode(arm, pilot, seed, on_step))
        if on_episode is not None:
            on_episode(episodes[-1])
    return Result(episodes, pilot.chunk_ms)
