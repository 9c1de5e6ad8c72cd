"""A task with two right answers: a post stands between the tool and the block, as good to pass on
the left as on the right.

Half of the demonstrations pass on each side, whatever is observed. Whoever answers with the mean
of what was demonstrated runs into the post, and that is the end of the episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim import simulator
from diffusion_policy_ros.sim.lift import Lift
from diffusion_policy_ros.sim.scene import BLOCK_HALF
from diffusion_policy_ros.sim.simulator import Observation, SetPoint, Vector

POST = """<geom class="solid" name="post" type="cylinder" pos="0 0 0.16" size="0.03 0.16"
          material="joint"/>"""
START, GOAL = np.array([-0.14, 0.0, 0.08]), np.array([0.16, 0.0, 0.08])
SPREAD = 0.005
"""How far to either side the tool and the block may begin, m."""
NEAR = 0.025
"""Over the block is within so much of it, m."""
CLEAR = 0.04
"""Farther than this to one side it is clear where a way leads, m."""
STEP = 0.02
NOISE = 0.12
"""Of what the expert executes, as a share of its longest step; it correlates by 0.7."""


class Bypass(Lift):
    """The lift's arm, which is to reach the block behind a post without touching it.

    Args:
        contract: the robot; its action is a position or a delta of one.
        cameras: whether observations have pictures.
    """

    name = "mini_bypass"
    max_steps = 80
    scene = POST
    ways = ("left", "right")

    def __init__(self, contract: Contract, cameras: bool = True) -> None:
        super().__init__(contract, cameras)
        self._begin()

    def _begin(self) -> None:
        self.way, self.collisions, self._reached = "", 0, False

    def reset(self, seed: int) -> Observation:
        """The episode of a seed: tool before the post, block behind it, about in line."""
        if seed < 0:
            raise UserError(f"seed {seed} is negative", self.name, "use 0 or more")
        tool, block = np.random.default_rng([seed, 3]).uniform(-SPREAD, SPREAD, 2)
        beside = np.array([0.0, 1.0, 0.0])
        ground = GOAL * [1, 1, 0] + [0, 0, BLOCK_HALF]
        self.arm.place(START + tool * beside, ground + block * beside)
        self._begin()
        return self.arm.observe()

    def step(self, told: SetPoint) -> Observation:
        """Follow the position."""
        observation = super().step(told)
        self.collisions += self.arm.touches("post")
        position, block = observation["robot0_eef_pos"], observation["object_pos"]
        if not self.way and position[0] > 0.0:
            self.way = _side(position[1])
        over = np.linalg.norm((position - block)[:2]) < NEAR
        self._reached |= bool(over and self.steps <= self.max_steps and not self.collisions)
        return observation

    @property
    def done(self) -> bool:
        """Whether the episode is over: success, the post was touched, or 80 steps."""
        return self._reached or self.collisions > 0 or self.steps >= self.max_steps

    @property
    def success(self) -> bool:
        """Whether the tool came over the block, and never touched the post."""
        return self._reached

    def way_of(self, told: Sequence[SetPoint]) -> str:
        """On which side of the post positions pass it, or are farthest from the middle."""
        places = np.array([there[self._fields["position"]] for there in told]).reshape(-1, 3)
        before = places[places[:, 0] < 0.03]
        if self.way or not len(before):
            return ""
        farthest = before[np.abs(before[:, 1]).argmax(), 1]
        return _side(farthest) if abs(farthest) > CLEAR else ""

    def expert(self, seed: int) -> simulator.Expert | None:
        """Left or right by the seed, which nothing that is observed shows."""
        if self._kinds != ("delta_position",):
            what = f"the expert does not give {', '.join(self._kinds)}"
            raise UserError(what, self.name, "use mini_bypass to record")
        return _Expert(seed, self._fields["position"])


class _Expert:
    """Beside the post, then to the block; noise is executed and the clean action recorded."""

    def __init__(self, seed: int, field: str) -> None:
        self._rng, self._field = np.random.default_rng([seed, 4]), field
        side = 1.0 if seed % 2 else -1.0
        self._via = np.array([0.0, side * self._rng.uniform(0.14, 0.165), START[2]])
        self._noise, self._passed = np.zeros(3), False

    def act(self, observation: Any, told: SetPoint) -> tuple[Vector, Vector]:
        """The next translation, m; see `Expert.act`."""
        here = np.asarray(observation["robot0_eef_pos"], float)
        self._passed |= bool(here[0] > -0.005)
        goal = np.append(observation["object_pos"][:2], GOAL[2]) if self._passed else self._via
        way = goal - told.get(self._field, here)
        clean = way * min(1.0, STEP / max(float(np.linalg.norm(way)), 1e-9))
        fresh = NOISE * STEP * np.sqrt(1 - 0.7**2) * self._rng.standard_normal(3)
        self._noise = 0.7 * self._noise + fresh
        return clean, clean + self._noise


def _side(y: float) -> str:
    """Left of the way from the arm to the block is where y is positive."""
    return "left" if y > 0 else "right"
