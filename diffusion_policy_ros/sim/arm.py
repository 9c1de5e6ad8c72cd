"""The simulated robot: reset to a seeded episode of the lift task, step at 20 Hz, observe.

The task never changes: a block on a table is to be lifted. Every episode follows from its seed
alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim.cameras import Cameras, project
from diffusion_policy_ros.sim.opengl import mujoco
from diffusion_policy_ros.sim.scene import (
    BLOCK_HALF,
    FINGER_OPEN,
    TIMESTEP,
    WRIST_HEIGHT,
    arm_links,
    build_model,
)

RATE_HZ = 20
PERIOD_NS = 1_000_000_000 // RATE_HZ
SUBSTEPS = round(1.0 / (RATE_HZ * TIMESTEP))
IMAGE_SIZE = 84
IMAGE_CAMERAS = {
    "agentview_image": "agentview",
    "robot0_eye_in_hand_image": "robot0_eye_in_hand",
}

MAX_STEPS = 200
LIFT_HEIGHT = 0.10
LIFT_STEPS = 5
BLOCK_RANGE = 0.10
GRIPPER_LOW = np.array([-0.12, -0.10, 0.15])
GRIPPER_HIGH = np.array([0.00, 0.10, 0.25])


class Pose(NamedTuple):
    """A pose in the base frame: `position` (3,) metres, `quaternion` (4,) x y z w with w >= 0."""

    position: np.ndarray
    quaternion: np.ndarray


class SimArm:
    """A Cartesian-controlled gripper over a table with one block.

    Observations (float32 vectors, uint8 images; poses in the base frame):
        agentview_image (84, 84, 3), robot0_eye_in_hand_image (84, 84, 3): RGB, left out with
            `render=False`.
        robot0_eef_pos (3,), robot0_eef_quat (4,): tool frame, which is parallel to the base at
            rest.
        robot0_gripper_qpos (2,): opening of the left and right finger, 0 to 0.04 m, each from the
            middle.
        object_pos (3,), object_quat (4,): the block.
        gripper_to_object_pos (3,): object_pos - robot0_eef_pos, in base axes.

    Quaternions are x y z w, of the two signs the one with w >= 0. The tool stays within half a
    turn of its rest orientation, the identity, so its quaternion never jumps; the block's may,
    when its turn from the identity passes 180 degrees.

    Args:
        render: whether observations have images.
        scene: what else stands in it, as XML.
    """

    def __init__(self, render: bool = True, scene: str = "") -> None:
        self._model = build_model(scene)
        self._data = mujoco.MjData(self._model)
        self._images = render
        self._cameras = Cameras(self._model, self._data) if render else None
        self._mocap = {
            name: int(self._model.body(name).mocapid[0])
            for name in ("target", "turret", "upper_arm", "forearm")
        }
        self._hand, self._block = self._model.body("hand").id, self._model.body("block").id
        self._fingers = [int(self._model.joint(n).qposadr[0]) for n in ("left", "right")]
        self._steps = self._lifted_steps = 0
        self._success = False
        self.reset(0, observe=False)

    def reset(self, seed: int, observe: bool = True) -> dict[str, np.ndarray]:
        """Begin the episode of a seed and observe it.

        Args:
            seed: non-negative; the same seed is the same episode, bit for bit on the same machine.
            observe: False skips the observation and returns an empty one.
        """
        if seed < 0:
            raise UserError(f"seed {seed} is negative", "simulator", "use 0 or more")
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(-BLOCK_RANGE, BLOCK_RANGE, 2)
        yaw = rng.uniform(-np.pi, np.pi)
        gripper = rng.uniform(GRIPPER_LOW, GRIPPER_HIGH)
        self.place(gripper, np.array([x, y, BLOCK_HALF]), yaw)
        return self.observe() if observe else {}

    def place(self, gripper: np.ndarray, block: np.ndarray, yaw: float = 0.0) -> None:
        """Begin an episode with the open gripper and the block at these places (3,), m.

        Args:
            gripper: of the tool, upright.
            block: of its middle.
            yaw: of the block, rad.
        """
        mujoco.mj_resetData(self._model, self._data)
        self._place("block", block, [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
        self._place("hand", gripper, [1, 0, 0, 0])
        self._data.qpos[self._fingers] = FINGER_OPEN
        self._data.ctrl[:] = FINGER_OPEN
        self._command(gripper, np.array([0.0, 0.0, 0.0, 1.0]))
        mujoco.mj_forward(self._model, self._data)
        self._steps = self._lifted_steps = 0
        self._success = False

    def touches(self, geom: str) -> bool:
        """Whether something touches a part of the scene now."""
        touching = self._data.contact.geom[: self._data.ncon]
        return bool((touching == self._model.geom(geom).id).any())

    def step(
        self, position: np.ndarray, quaternion: np.ndarray, gripper: float
    ) -> dict[str, np.ndarray]:
        """Follow a commanded pose for one control period (50 ms) and observe.

        Args:
            position: (3,) commanded tool position, metres, base frame.
            quaternion: (4,) commanded tool orientation, x y z w; normalised here.
            gripper: -1 open to +1 closed; values between are openings between.
        """
        self._command(np.asarray(position, float), np.asarray(quaternion, float))
        self._data.ctrl[:] = 0.5 * FINGER_OPEN * (1.0 - np.clip(gripper, -1.0, 1.0))
        mujoco.mj_step(self._model, self._data, SUBSTEPS)
        # mj_step leaves the poses of the last substep's start: bring them to its end.
        mujoco.mj_kinematics(self._model, self._data)
        self._steps += 1
        lifted = self._data.xpos[self._block, 2] > LIFT_HEIGHT
        self._lifted_steps = self._lifted_steps + 1 if lifted else 0
        self._success |= self._lifted_steps >= LIFT_STEPS and self._steps <= MAX_STEPS
        return self.observe()

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of this instant; see the class for keys, shapes and units."""
        hand, block = self._pose(self._hand), self._pose(self._block)
        images = self._render_images() if self._images else {}
        vectors = {
            "robot0_eef_pos": hand.position,
            "robot0_eef_quat": hand.quaternion,
            "robot0_gripper_qpos": self._data.qpos[self._fingers],
            "object_pos": block.position,
            "object_quat": block.quaternion,
            "gripper_to_object_pos": block.position - hand.position,
        }
        return images | {key: value.astype(np.float32) for key, value in vectors.items()}

    def render(
        self, camera: str = "overview", height: int = 320, width: int = 320, shadows: bool = False
    ) -> np.ndarray:
        """A picture of this instant, of any size: see `Cameras.render`."""
        if self._cameras is None:
            self._cameras = Cameras(self._model, self._data)
        self._draw_arm()
        return self._cameras.render(camera, height, width, shadows)

    def project(
        self, points: np.ndarray, camera: str = "overview", height: int = 320, width: int = 320
    ) -> np.ndarray:
        """Where points (..., 3) of the base frame lie in that picture: (..., 2) column and row."""
        self._draw_arm()
        return project(self._model, self._data, points, camera, height, width)

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled scene; what of it is changed before the first picture is seen there."""
        return self._model

    @property
    def measured(self) -> Pose:
        """The tool's pose as it is, float64 (the commanded one runs ahead of it)."""
        return self._pose(self._hand)

    @property
    def success(self) -> bool:
        """Whether the block was above 0.10 m for 5 steps on end, within the first 200."""
        return self._success

    @property
    def done(self) -> bool:
        """Whether the episode is over: success, or 200 steps."""
        return self._success or self._steps >= MAX_STEPS

    @property
    def steps(self) -> int:
        """Control periods since reset."""
        return self._steps

    @property
    def time_ns(self) -> int:
        """Time since reset: a whole number of periods of 50,000,000 ns."""
        return self._steps * PERIOD_NS

    def close(self) -> None:
        """Free the OpenGL contexts; the arm cannot be rendered afterwards."""
        if self._cameras is not None:
            self._cameras.close()

    def __enter__(self) -> SimArm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, joint: str, position: np.ndarray, wxyz: list[float]) -> None:
        self._data.joint(joint).qpos[:] = [*position, *wxyz]

    def _command(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Move the body that the hand is welded to."""
        if not (np.all(np.isfinite(position)) and np.linalg.norm(quaternion) > 1e-6):
            raise ValueError(f"not a pose: {position}, {quaternion}")
        index = self._mocap["target"]
        self._data.mocap_pos[index] = position
        self._data.mocap_quat[index] = quaternion[[3, 0, 1, 2]] / np.linalg.norm(quaternion)

    def _pose(self, body: int) -> Pose:
        xyzw = self._data.xquat[body][[1, 2, 3, 0]]
        return Pose(self._data.xpos[body].copy(), -xyzw if xyzw[3] < 0 else xyzw)

    def _render_images(self) -> dict[str, np.ndarray]:
        assert self._cameras is not None
        self._draw_arm()
        return {
            key: self._cameras.render(camera, IMAGE_SIZE, IMAGE_SIZE)
            for key, camera in IMAGE_CAMERAS.items()
        }

    def _draw_arm(self) -> None:
        """Bring the drawn links to the wrist, and cameras and lights to where they are now."""
        rotation = self._data.xmat[self._hand].reshape(3, 3)
        wrist = self._data.xpos[self._hand] + WRIST_HEIGHT * rotation[:, 2]
        for name, (position, wxyz) in arm_links(wrist).items():
            self._data.mocap_pos[self._mocap[name]] = position
            self._data.mocap_quat[self._mocap[name]] = wxyz
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
