"""The lift task as a `Simulator`: `arm.py` behind topics, with its expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim import simulator
from diffusion_policy_ros.sim.arm import MAX_STEPS, RATE_HZ, SimArm
from diffusion_policy_ros.sim.expert import OPEN, Expert
from diffusion_policy_ros.sim.messages import BASE_FRAME, COMMAND_TOPIC, TOPICS, messages
from diffusion_policy_ros.sim.simulator import Observation, SetPoint, Vector, takes
from diffusion_policy_ros.sim.stamped import Arrays, Stamped, Types

STATES = ("robot0_eef_pos", "robot0_eef_quat")
EXPERT_KINDS = ("delta_position", "delta_axis_angle", "binary")
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
OVERVIEW = "overview"


class Lift:
    """A Cartesian arm that lifts a block; see `SimArm` and `Simulator`.

    Args:
        contract: the robot; its action is a position or a delta of one, and may be a rotation
            and a gripper, too.
        cameras: whether observations have pictures.
    """

    name = "mini_lift"
    rate_hz = float(RATE_HZ)
    topics, command_topic, base_frame = TOPICS, COMMAND_TOPIC, BASE_FRAME
    cameras = (OVERVIEW, "agentview", "robot0_eye_in_hand")
    max_steps = MAX_STEPS
    scene = ""

    def __init__(self, contract: Contract, cameras: bool = True) -> None:
        self._kinds = check_action(contract, self.name)
        self._fields = {part.role: part.name for part in contract.action.fields}
        self.arm = SimArm(render=cameras, scene=self.scene)

    def reset(self, seed: int) -> Observation:
        """The task's episode of a seed."""
        return self.arm.reset(seed)

    def step(self, told: SetPoint) -> Observation:
        """Follow the pose; a half that is not told stays, a gripper that is not told is open."""
        here = self.arm.measured
        position = told.get(self._fields["position"], here.position)
        turn = told.get(self._fields.get("rotation", ""), here.quaternion)
        quaternion = turn if "rotation" in self._fields else UPRIGHT
        gripper = told.get(self._fields.get("binary", ""))
        return self.arm.step(position, quaternion, OPEN if gripper is None else float(gripper[0]))

    def messages(
        self, observation: Observation, stamp_ns: int, types: Types, arrays: Arrays
    ) -> list[Stamped]:
        """Poses, fingers and pictures."""
        return messages(observation, stamp_ns, types, arrays)

    def expert(self, seed: int) -> simulator.Expert | None:
        """The scripted expert of the episode."""
        if self._kinds != EXPERT_KINDS:
            what = f"the expert does not give {', '.join(self._kinds)}"
            raise UserError(what, self.name, "use mini_lift or mini_lift_state to record")
        return _Led(Expert(seed), self._fields)

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """A picture of this instant."""
        return self.arm.render(camera, height, width)

    def project(
        self, told: Sequence[SetPoint], camera: str, height: int, width: int
    ) -> np.ndarray:
        """Where the commanded positions lie in it."""
        points = np.array([there[self._fields["position"]] for there in told]).reshape(-1, 3)
        return self.arm.project(points, camera, height, width)

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.arm.done

    @property
    def success(self) -> bool:
        """Whether the block was lifted in time."""
        return self.arm.success

    @property
    def steps(self) -> int:
        """Control periods since reset."""
        return self.arm.steps

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self.arm.close()


class _Led:
    """The expert, told where its actions are added to."""

    def __init__(self, expert: Expert, fields: dict[str, str]) -> None:
        self._expert, self._fields = expert, fields

    def act(self, observation: Any, told: SetPoint) -> tuple[Vector, Vector]:
        """The next action; see `Expert.act`."""
        position = told.get(self._fields["position"], observation[STATES[0]])
        quaternion = told.get(self._fields["rotation"], observation[STATES[1]])
        return self._expert.act(observation, position, quaternion)


def check_action(contract: Contract, name: str) -> tuple[str, ...]:
    """The kinds of the action's fields.

    Raises:
        UserError: they are not a pose of the tool's.
    """
    fields = contract.action.fields
    kinds = tuple(part.kind for part in fields)
    if not {"delta_position", "position"} & {*kinds}:
        raise UserError(f"{name} is told positions, not joints", contract.name, takes(name))
    if any(part.state not in STATES for part in fields if part.kind != "binary"):
        raise UserError("a field of the action names no state", contract.name, f"name {STATES}")
    return kinds
