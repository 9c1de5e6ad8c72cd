"""Which of several right answers a policy gives: beside success, for tasks that can be done in
clearly different ways (`sim.simulator.SeveralWays`).

Success alone does not tell a policy that has learned one of the ways from one that has learned
what was demonstrated. So: how often each way was taken, how evenly (entropy) beside the
demonstrations, what is drawn of one and the same observation, how often something was run into,
and how often a policy changed its mind on the way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffusion_policy_ros.evaluation import START_NS, ClosedLoop
from diffusion_policy_ros.runtime.inference import make_chunk, noise_generator
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.sim.simulator import SeveralWays
from diffusion_policy_ros.sim.stamped import duck_typed
from diffusion_policy_ros.simulated_robot import SimulatedRobot, Step

DRAWS = 100
"""Of one observation."""


def entropy(counts: Mapping[str, int]) -> float:
    """How even ways are taken, bit: 0 for always the same, 1 for two as often as each other."""
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return sum(-share * math.log2(share) for share in shares)


class Ways:
    """Watches the episodes of an evaluation: pass it as `on_step`.

    Attributes:
        taken: way → episodes; those that took none are not among them.
        collisions: episodes in which something was run into.
        changes: of mind: a chunk leads another way than the clear one before it.
    """

    def __init__(self, ways: Sequence[str]) -> None:
        self.taken = Counter[str](dict.fromkeys(ways, 0))
        self.collisions = self.changes = 0
        self._chunk: Chunk | None = None
        self._mind = ""

    def __call__(self, robot: SimulatedRobot, policy: ClosedLoop, step: Step) -> None:
        """Take note of a step."""
        simulator = robot.simulator
        assert isinstance(simulator, SeveralWays)
        if simulator.steps <= 1:
            self._chunk, self._mind = None, ""
        if policy.chunk is not self._chunk:
            self._chunk = policy.chunk
            self._take(simulator.way_of(robot.planned(policy.now_ns)))
        if step.result is not None:
            self.collisions += simulator.collisions > 0
            if simulator.way:
                self.taken[simulator.way] += 1

    def _take(self, way: str) -> None:
        self.changes += bool(way and self._mind and way != self._mind)
        self._mind = way or self._mind

    def summary(self) -> dict[str, Any]:
        """The figures of all episodes."""
        return {
            "ways": dict(self.taken),
            "entropy_bits": round(entropy(self.taken), 3) if any(self.taken.values()) else 0.0,
            "collisions": self.collisions,
            "changes_of_mind": self.changes,
        }


def drawn_ways(
    robot: SimulatedRobot, policy: ClosedLoop, seeds: Iterable[int], draws: int = DRAWS
) -> Counter[str]:
    """The ways that chunks lead from one and the same observation, and from the next.

    Args:
        robot: the simulated robot.
        policy: drives it.
        seeds: of episodes, whose first observation is answered.
        draws: chunks of each.

    Returns:
        Way → chunks; those without a clear one are counted as the empty way.
    """
    simulator, found = robot.simulator, Counter[str]()
    assert isinstance(simulator, SeveralWays)
    contract, sampling = policy.contract, policy.sampling
    for seed in seeds:
        robot.reset(seed, START_NS)
        loop = PolicyLoop(
            policy.engine, contract, policy.n_obs_steps, sampling, _nowhere, lambda: START_NS
        )
        loop.start(START_NS)
        for topic, _, message in robot.messages(START_NS, duck_typed):
            if topic in contract.topics:
                loop.push(topic, message, START_NS)
        request = loop.due()
        assert request is not None, "the contract's topics are there"
        for draw in range(draws):
            noise = noise_generator(draw, START_NS)
            window = request.window
            chunk = make_chunk(policy.engine, contract, window, START_NS, sampling, noise)
            found[simulator.way_of(robot.leads(chunk.actions))] += 1
    return found


def _nowhere(_: Chunk) -> None:
    """Chunks that no robot plays."""
