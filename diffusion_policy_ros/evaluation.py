"""Closed-loop episodes without ROS: a policy drives a simulated robot, step by step.

Every part but the transport is the one that the robot runs: `runtime.policy_loop` from messages to
chunks, with its noise, joins and holds, and the player's stream and limits from chunks to
set-points. Inference takes no simulated time: what is measured is the policy at zero latency, or
at an artificial one of whole frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.engine import Engine, build_engine
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.runtime.inference import Inference
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.sim.simulator import FIRST_EVALUATION_SEED
from diffusion_policy_ros.sim.stamped import duck_typed
from diffusion_policy_ros.simulated_robot import EpisodeResult, SimulatedRobot, Step
from diffusion_policy_ros.train.hooks import Hook

START_NS = 1_000_000_000
"""When an episode begins; a stamp of zero is none."""


@dataclass
class ClosedLoop:
    """A policy, stepped together with the robot that it drives.

    Attributes:
        engine: samples the policy.
        sampling: how.
        delay_frames: how many frames after its newest observation a chunk arrives; 0: none.
        chunk_ms: computing time of every chunk.
        chunk: the newest that has arrived; without actions it means hold.
        now_ns: the time.
    """

    engine: Engine
    contract: Contract
    n_obs_steps: int
    sampling: Sampling
    delay_frames: int = 0
    chunk_ms: list[float] = field(default_factory=list)
    chunk: Chunk | None = None
    now_ns: int = START_NS

    def reset(self, robot: SimulatedRobot, seed: int) -> None:
        """Begin an episode; the noise follows from its seed."""
        self.now_ns, self.chunk = START_NS, None
        self._under_way: deque[Inference] = deque()
        robot.reset(seed, self.now_ns)

        def publish(chunk: Chunk) -> None:
            self.chunk = chunk
            robot.offer(chunk)

        self._loop = PolicyLoop(
            self.engine,
            self.contract,
            self.n_obs_steps,
            self.sampling,
            publish,
            lambda: self.now_ns,
            seed=seed,
            delay_frames=self.delay_frames,
        )
        self._loop.start(self.now_ns)

    def step(self, robot: SimulatedRobot) -> Step:
        """Observe, sample, and let the robot execute for one control period.

        Raises:
            UserError: an observation makes no frame, or the network's output is not finite.
        """
        loop, now_ns = self._loop, self.now_ns
        for topic, _, msg in robot.messages(now_ns, duck_typed):
            if topic in self.contract.topics:
                loop.push(topic, msg, now_ns)
        request = loop.due()
        if request is not None:
            self._under_way.append(loop.infer(request))
        arrived_ns = now_ns - self.delay_frames * self.contract.period_ns
        while self._under_way and self._under_way[0].request.time_ns <= arrived_ns:
            inference = self._under_way.popleft()
            self.chunk_ms.append((inference.ended_ns - inference.begun_ns) / 1e6)
            loop.take(inference)
        if loop.counts.refused or loop.counts.failures:
            cure = "use a contract that fits the simulator, and a policy that was trained"
            raise UserError(loop.last_hold, "simulator", cure)
        step = robot.advance(now_ns)
        self.now_ns += self.contract.period_ns
        return step


@dataclass(frozen=True)
class Result:
    """Of all episodes.

    Attributes:
        episodes: each, in order.
        chunk_ms: computing time of every chunk, ms.
    """

    episodes: list[EpisodeResult]
    chunk_ms: list[float]

    def summary(self) -> dict[str, float]:
        """Success rate, mean steps to success or the end, ms a chunk (median)."""
        return {
            "success_rate": float(np.mean([e.success for e in self.episodes])),
            "episodes": len(self.episodes),
            "mean_steps": float(np.mean([e.steps for e in self.episodes])),
            "ms_per_chunk": float(np.median(self.chunk_ms)),
        }


def make_simulator(name: str, contract: Contract) -> SimulatedRobot:
    """The simulated robot of a name, with cameras if the contract has images.

    Raises:
        UserError: unknown, not installed, or not the contract's robot.
    """
    return SimulatedRobot(contract, contract.has_images, sim=name)


OnStep = Callable[[SimulatedRobot, ClosedLoop, Step], None]


def run_episode(
    robot: SimulatedRobot, policy: ClosedLoop, seed: int, on_step: OnStep | None = None
) -> EpisodeResult:
    """One closed-loop episode, ending at success or after the task's last step.

    Args:
        robot: the simulated robot.
        policy: drives it.
        seed: of the episode and of the noise.
        on_step: called after every step, for pictures.
    """
    policy.reset(robot, seed)
    for _ in range(2 * robot.simulator.max_steps):  # one that is never told to move must end, too
        step = policy.step(robot)
        if on_step is not None:
            on_step(robot, policy, step)
        if step.result is not None:
            return step.result
    return robot.give_up()


def evaluate(
    robot: SimulatedRobot,
    policy: ClosedLoop,
    seeds: Iterable[int],
    on_episode: Callable[[EpisodeResult], None] | None = None,
    on_step: OnStep | None = None,
) -> Result:
    """Run the episodes of these seeds.

    Args:
        robot: the simulated robot.
        policy: drives it.
        seeds: of the episodes; evaluation seeds begin at 10000.
        on_episode: called after each, for progress.
        on_step: called after every step.
    """
    episodes = []
    for seed in seeds:
        episodes.append(run_episode(robot, policy, seed, on_step))
        if on_episode is not None:
            on_episode(episodes[-1])
    return Result(episodes, policy.chunk_ms)


def success_hook(recipe: Recipe, dataset: str | Path | None) -> list[Hook]:
    """Drives the policy in training in the recipe's simulator, where it names one.

    Args:
        recipe: says which, how often and for how many episodes.
        dataset: what is trained on; the recipe's own where none is given.

    Raises:
        UserError: the simulator is unknown, not installed, or not the dataset's robot; the policy
            has several tasks.
    """
    settings, sim = recipe.training, recipe.training.eval_sim
    folders = [source.path for source in recipe.data] if dataset is None else [dataset]
    if sim is None or not folders:  # without a dataset training itself says so
        return []
    if len(recipe.policy.tasks) > 1:
        what = "a simulator has one task, the policy several"
        cure = "leave it out; diffusion-policy eval --task evaluates one"
        raise UserError(what, "training.eval_sim", cure)
    contract = Dataset(folders).contract
    sampling, steps = Sampling.of(recipe.policy), recipe.policy.n_obs_steps
    make_simulator(sim, contract).close()
    seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + settings.eval_episodes)

    def success(policy: DiffusionPolicy) -> tuple[float]:
        loop = ClosedLoop(build_engine(policy, "eager"), contract, steps, sampling)
        with make_simulator(sim, contract) as robot:
            return (evaluate(robot, loop, seeds).summary()["success_rate"],)

    return [Hook(("success",), settings.eval_every, success)]
