"""robosuite's Lift, Can and Square with a Panda as `Simulator`s (`make robosuite`).

The arm is told absolute poses of its grip site, as the player says them; what is recorded are
deltas to the measured pose, which is what robosuite and robomimic mean by an action. All poses are
in the world's frame, which is that of its observations.

robosuite 1.5.2 needs two mends with MuJoCo 3.10 and later (`_mend`), takes no seed for a reset,
and gives the orientation of the hand's body, while its controller moves the grip site, a quarter
of a turn from it: here both are the grip site's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim.arm import IMAGE_CAMERAS, IMAGE_SIZE
from diffusion_policy_ros.sim.lift import EXPERT_KINDS, check_action
from diffusion_policy_ros.sim.messages import COMMAND_TOPIC, TOPICS, messages
from diffusion_policy_ros.sim.opengl import mujoco
from diffusion_policy_ros.sim.simulator import Observation, SetPoint, Vector
from diffusion_policy_ros.sim.stamped import Arrays, Stamped, Types
from diffusion_policy_ros.sim.waypoints import (
    OPEN,
    CanExpert,
    Expert,
    LiftExpert,
    SquareExpert,
)

# It greets every process with what else could be installed.
logging.getLogger("robosuite_logs").addFilter(lambda said: said.levelno >= logging.ERROR)
# After MuJoCo, whose way to draw is chosen before it is imported.
import robosuite  # noqa: E402  # isort: skip
from robosuite.controllers import load_composite_controller_config  # noqa: E402  # isort: skip
from robosuite.controllers.parts import controller  # noqa: E402  # isort: skip
from robosuite.utils import binding_utils  # noqa: E402  # isort: skip

FREE, BALL = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
SITE = "gripper0_right_grip_site"


@functools.cache
def _mend() -> None:
    """Have robosuite 1.5.2 run with this MuJoCo, from outside.

    A joint's type is a NumPy number, which no longer is `in` a tuple of MuJoCo's; the inertia
    matrix is asked for in another way since 3.10.
    """
    model = binding_utils.MjModel
    model.get_joint_qpos_addr = _addresses("jnt_qposadr", {FREE: 7, BALL: 4})
    model.get_joint_qvel_addr = _addresses("jnt_dofadr", {FREE: 6, BALL: 3})
    if not hasattr(mujoco.MjData, "qM"):
        binding_utils.MjData.qM = property(lambda data: data._data)
        controller.mujoco = SimpleNamespace(
            mj_fullM=lambda model, out, data: mujoco.mj_fullM(model, data, out)
        )


def _addresses(table: str, sizes: dict[int, int]) -> Any:
    """A joint's place in the state, by its name: a number, or first and last for several."""

    def found(model: Any, name: str) -> Any:
        joint = model.joint_name2id(name)
        start, size = int(getattr(model, table)[joint]), sizes.get(int(model.jnt_type[joint]), 1)
        return start if size == 1 else (start, start + size)

    return found


class Robosuite:
    """A Panda with a task; the tasks are below.

    Args:
        contract: the robot; its action is a pose and a gripper.
        cameras: whether observations have pictures.

    Attributes:
        environment: robosuite's name of the task.
        body: MuJoCo's name of the thing that it is about.
        demonstrator: its expert.
    """

    name: ClassVar[str]
    environment: ClassVar[str]
    body: ClassVar[str]
    demonstrator: ClassVar[type[Expert]]
    max_steps: ClassVar[int]
    rate_hz = 20.0
    topics, command_topic, base_frame = TOPICS, COMMAND_TOPIC, "base"
    cameras = ("agentview", "frontview")

    def __init__(self, contract: Contract, cameras: bool = True) -> None:
        self._kinds = check_action(contract, self.name)
        self._fields = {part.role: part.name for part in contract.action.fields}
        self._images, self._renderers = cameras, dict[tuple[int, int], Any]()
        _mend()
        self._env = self._made()
        self.reset(0)

    def _made(self) -> Any:
        config = load_composite_controller_config(controller="BASIC", robot="Panda")
        arm = config["body_parts"]["right"]
        arm |= {"input_type": "absolute", "input_ref_frame": "world"}
        config["body_parts"] = {"right": arm}  # of what a Panda lacks it warns at every reset
        return robosuite.make(
            self.environment,
            robots="Panda",
            controller_configs=config,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            control_freq=int(self.rate_hz),
            horizon=10**9,
            ignore_done=True,
            hard_reset=False,
        )

    def reset(self, seed: int) -> Observation:
        """The task's episode of a seed: every source of chance of the environment follows it."""
        if seed < 0:
            raise UserError(f"seed {seed} is negative", self.name, "use 0 or more")
        env = self._env
        env.rng = np.random.default_rng(seed)
        for sampler in self._samplers(env.placement_initializer):
            sampler.rng = env.rng
        env.reset()
        self._steps, self._success = 0, False
        return self._observe()

    def _samplers(self, sampler: Any) -> list[Any]:
        return [sampler, *getattr(sampler, "samplers", {}).values()]

    def step(self, told: SetPoint) -> Observation:
        """Follow the pose of the grip site; a half that is not told stays."""
        here, turned = self._pose()
        position = told.get(self._fields["position"], here)
        turn = Rotation.from_quat(told.get(self._fields.get("rotation", ""), turned))
        gripper = told.get(self._fields.get("binary", ""), np.array([OPEN]))
        self._env.step(np.concatenate([position, turn.as_rotvec(), np.clip(gripper, -1, 1)]))
        self._steps += 1
        self._success |= bool(self._env._check_success()) and self._steps <= self.max_steps
        return self._observe()

    def _pose(self) -> tuple[Vector, Vector]:
        """The grip site's, x y z w."""
        data = self._env.sim.data
        turn = Rotation.from_matrix(data.get_site_xmat(SITE)).as_quat()
        return data.get_site_xpos(SITE).copy(), turn

    def _observe(self) -> dict[str, np.ndarray]:
        data = self._env.sim.data
        body = self._env.sim.model.body_name2id(self.body)
        fingers = self._env.robots[0]._ref_gripper_joint_pos_indexes["right"]
        position, quaternion = self._pose()
        thing = data.body_xpos[body].copy()
        found = {
            "robot0_eef_pos": position,
            "robot0_eef_quat": quaternion,
            "robot0_gripper_qpos": data.qpos[fingers],
            "object_pos": thing,
            "object_quat": data.body_xquat[body][[1, 2, 3, 0]],
            "gripper_to_object_pos": thing - position,
        }
        vectors = {key: np.asarray(value, np.float32) for key, value in found.items()}
        return (self._pictures() if self._images else {}) | vectors

    def _pictures(self) -> dict[str, np.ndarray]:
        return {
            key: self.render(camera, IMAGE_SIZE, IMAGE_SIZE)
            for key, camera in IMAGE_CAMERAS.items()
        }

    def messages(
        self, observation: Observation, stamp_ns: int, types: Types, arrays: Arrays
    ) -> list[Stamped]:
        """Poses, fingers and pictures, on the lift's topics."""
        return messages(observation, stamp_ns, types, arrays)

    def expert(self, seed: int) -> Expert:
        """The scripted expert of the episode."""
        if self._kinds != EXPERT_KINDS:
            what = f"the expert does not give {', '.join(self._kinds)}"
            raise UserError(what, self.name, "use robosuite or robosuite_state to record")
        return self.demonstrator(seed)

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """A picture of this instant, without shadows and reflections, which cost most of it."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        if (height, width) not in self._renderers:
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
            self._renderers[height, width] = mujoco.Renderer(model, height, width)
        renderer = self._renderers[height, width]
        renderer.update_scene(data, camera=camera)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        picture: np.ndarray = renderer.render()
        return picture

    def project(
        self, told: Sequence[SetPoint], camera: str, height: int, width: int
    ) -> np.ndarray:
        """Nothing is drawn in."""
        return np.empty((0, 2))

    @property
    def done(self) -> bool:
        """Whether the episode is over, by success or by its last step."""
        return self._success or self._steps >= self.max_steps

    @property
    def success(self) -> bool:
        """Whether robosuite found the task done in time."""
        return self._success

    @property
    def steps(self) -> int:
        """Control periods since reset."""
        return self._steps

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._env.close()


class Lift(Robosuite):
    """A cube to be lifted 4 cm above the table."""

    name, environment, body = "robosuite/lift", "Lift", "cube_main"
    demonstrator, max_steps = LiftExpert, 200


class Can(Robosuite):
    """A can to be put from one bin into its part of the other one."""

    name, environment, body = "robosuite/can", "PickPlaceCan", "Can_main"
    demonstrator, max_steps = CanExpert, 400


class Square(Robosuite):
    """A square nut to be put over a peg."""

    name, environment, body = "robosuite/square", "NutAssemblySquare", "SquareNut_main"
    demonstrator, max_steps = SquareExpert, 400
