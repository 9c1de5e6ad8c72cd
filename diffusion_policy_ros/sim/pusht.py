"""PushT of gym-pusht as a `Simulator` (`make pusht`): a disc pushes a T onto its outline, 10 Hz.

The plane of 512 pixels is one of 512 mm: a pixel is a millimetre. The disc is told where to be as
two joints, x and y, in metres; a driver's millimetres are what is recorded, which the contract's
scale undoes. Success is coverage above 0.95, as everybody reports it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim.pusht_planner import MM, Planner
from diffusion_policy_ros.sim.simulator import Expert, Observation, SetPoint
from diffusion_policy_ros.sim.stamped import IMAGE, JOINTS, POSE, Arrays, Stamped, Stamper, Types

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
from gym_pusht.envs.pusht import PushTEnv  # noqa: E402

MAX_STEPS = 300


class PushT:
    """The disc and the T.

    Args:
        contract: the robot; its action is one field of two joints.
        cameras: whether observations have the 96x96 picture.
    """

    name, rate_hz, max_steps = "pusht", 10.0, MAX_STEPS
    topics = {"/agent/joint_states": JOINTS, "/block_pose": POSE, "/camera/image_raw": IMAGE}
    command_topic, base_frame, cameras = "/agent_command", "plane", ("above",)

    def __init__(self, contract: Contract, cameras: bool = True) -> None:
        fields = contract.action.fields
        if len(fields) != 1 or fields[0].kind != "joint_position" or fields[0].size != 2:
            cure = "use pusht_state, or an action of one field, kind: joint_position, size: 2"
            raise UserError(f"{self.name} is told two joints", contract.name, cure)
        self._field, self._images = fields[0].name, cameras
        self._env = PushTEnv(obs_type="state", render_mode="rgb_array")
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        """The episode of a seed, as gym-pusht has it."""
        if not 0 <= seed < 2**31:
            raise UserError(f"seed {seed} is not taken", self.name, "use 0 to 2147483647")
        self._state, _ = self._env.reset(seed=seed)
        self._steps, self.coverage, self._success = 0, 0.0, False
        return self._observe()

    def step(self, told: SetPoint) -> Observation:
        """Go to where it is told, mm a pixel."""
        goal = told.get(self._field)
        where = self._state[:2] if goal is None else np.clip(np.asarray(goal) / MM, 0, 512)
        self._state, _, _, _, info = self._env.step(where)
        self._steps += 1
        self.coverage = max(self.coverage, float(info["coverage"]))
        self._success |= bool(info["is_success"]) and self._steps <= self.max_steps
        return self._observe()

    def _observe(self) -> dict[str, np.ndarray]:
        found = {"agent": self._state[:2] * MM, "block": self._state[2:4] * MM}
        found["angle"] = self._state[4:]
        if self._images:
            found["image"] = self.render("above", 96, 96)
        return found

    def messages(
        self, observation: Observation, stamp_ns: int, types: Types, arrays: Arrays
    ) -> list[Stamped]:
        """The picture, the disc's place and the T's pose."""
        make = Stamper(stamp_ns, types, arrays)
        half = float(observation["angle"][0]) / 2
        turn = np.array([0.0, 0.0, np.sin(half), np.cos(half)])
        place = np.append(observation["block"], 0.0)
        found = [
            make.pose("/block_pose", "plane", place, turn),
            make.joints("/agent/joint_states", "plane", ("x", "y"), observation["agent"]),
        ]
        if "image" in observation:
            found.insert(0, make.image("/camera/image_raw", "camera", observation["image"]))
        return found

    def expert(self, seed: int) -> Expert:
        """The planner of the episode."""
        copy = PushTEnv(obs_type="state")
        copy.reset(seed=0)
        return Planner(copy, seed)

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """The plane from above."""
        env = self._env
        picture: np.ndarray = env._get_img(env._draw(), width, height)
        return picture

    def project(
        self, told: Sequence[SetPoint], camera: str, height: int, width: int
    ) -> np.ndarray:
        """Where the disc is told to be."""
        places = np.array([there[self._field] for there in told]).reshape(-1, 2)
        return places / MM / 512.0 * [width, height]

    @property
    def done(self) -> bool:
        """Whether the episode is over: success, or 300 steps."""
        return self._success or self._steps >= self.max_steps

    @property
    def success(self) -> bool:
        """Whether the T covered 95 % of its outline in time."""
        return self._success

    @property
    def steps(self) -> int:
        """Control periods since reset."""
        return self._steps

    def close(self) -> None:
        """Free the window that there is none of."""
        self._env.close()
