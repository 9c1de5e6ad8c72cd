"""The scripted experts of robosuite's tasks, before an arm without dynamics: no robosuite."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.sim.waypoints import (
    MOVE,
    TURN,
    CanExpert,
    LiftExpert,
    SquareExpert,
)

FLOOR = {LiftExpert: 0.83, CanExpert: 0.86, SquareExpert: 0.83}
WIDTH = 0.04


class Arm:
    """Goes a part of the way that it is told; what the fingers close on goes with it."""

    def __init__(self, expert, thing, yaw):
        self.expert, self.floor = expert, FLOOR[type(expert)]
        self.tool, self.gap = np.array([-0.1, 0.0, 1.01]), 0.08
        self.turned = Rotation.from_euler("z", np.pi / 2) * Rotation.from_euler("x", np.pi)
        self.thing, self.yaw = np.append(thing, self.floor), Rotation.from_euler("z", yaw)

    def observed(self):
        return {
            "robot0_eef_pos": self.tool,
            "robot0_eef_quat": self.turned.as_quat(),
            "robot0_gripper_qpos": np.array([self.gap, -self.gap]) / 2,
            "object_pos": self.thing,
            "object_quat": self.yaw.as_quat(),
        }

    def step(self):
        clean, executed = self.expert.act(self.observed(), {})
        move, turn = 0.4 * executed[:3], Rotation.from_rotvec(0.4 * executed[3:6])
        is_held = self.gap <= WIDTH and np.linalg.norm(self.tool - self.thing) < 0.08
        if is_held:
            self.thing = self.tool + move + turn.apply(self.thing - self.tool)
            self.yaw = turn * self.yaw
        else:
            self.thing = np.append(self.thing[:2], max(self.floor, self.thing[2] - 0.03))
        self.tool, self.turned = self.tool + move, turn * self.turned
        closing = -0.01 if executed[6] > 0 else 0.01
        self.gap = float(np.clip(self.gap + closing, WIDTH, 0.08))
        return clean, executed


def led(expert, thing, yaw, until, limit=300):
    """The arm, when `until(arm)` holds."""
    arm = Arm(expert, np.array(thing), yaw)
    for _ in range(limit):
        clean, executed = arm.step()
        assert np.all(np.abs(clean[:3]) <= MOVE) and np.all(np.abs(clean[3:6]) <= TURN)
        if until(arm):
            return arm
    raise AssertionError(f"not done: tool {arm.tool}, thing {arm.thing}")


@pytest.mark.parametrize("yaw", [-3.0, -0.7, 0.3, 1.2, 2.9])
def test_the_cube_is_gripped_by_two_faces(yaw):
    """Whatever its yaw, the fingers close along one of its axes, within a quarter turn."""
    arm = led(LiftExpert(1), [0.02, 0.03], yaw, lambda arm: arm.thing[2] > 0.87)
    heading = arm.turned.as_matrix()[:2, 0]
    angle = np.arctan2(heading[1], heading[0])
    assert abs(np.sin(2 * (angle - yaw))) < 0.15
    assert abs(angle - np.pi / 2) < np.pi / 4 + 0.1


@pytest.mark.parametrize("place", [[-0.02, -0.42], [0.22, -0.1]])
def test_the_can_is_let_go_in_its_part_of_the_other_bin(place):
    """Over the walls, not through them, and the hand is gone afterwards."""
    heights = []

    def is_let_go(arm):
        if abs(arm.thing[1] - 0.1) < 0.1:
            heights.append(arm.thing[2])
        return arm.thing[1] > 0.28 and arm.thing[2] < 0.9 and arm.tool[2] > 1.05

    arm = led(CanExpert(2), place, 0.0, is_let_go)
    assert 0.1 < arm.thing[0] < 0.3 and 0.28 < arm.thing[1] < 0.53
    assert min(heights) > 0.96


@pytest.mark.parametrize("yaw", [-2.5, -0.4, 0.0, 0.4, 0.9, 2.0, 3.1])
def test_the_nut_comes_over_its_peg_parallel_to_it(yaw):
    """With its handle not away from the robot, where the hand does not reach."""
    over = []

    def is_down(arm):
        if arm.thing[2] < 0.95 and np.linalg.norm(arm.thing[:2] - [0.23, 0.1]) < 0.05:
            over.append(arm.yaw.as_euler("zyx")[0])
        return bool(over) and arm.thing[2] < 0.87

    arm = led(SquareExpert(3), [-0.112, 0.17], yaw, is_down)
    assert np.linalg.norm(arm.thing[:2] - [0.23, 0.1]) < 0.0067  # as much play as the peg has
    assert abs(np.sin(2 * over[0])) < 0.3
    assert np.cos(over[0]) < 0.3


def test_noise_is_executed_and_not_recorded():
    """What is recorded is the same for every seed; what is executed is not, and is near it."""
    arms = [Arm(CanExpert(seed), np.array([0.1, -0.2]), 0.0) for seed in (4, 5)]
    (one, one_done), (other, other_done) = (arm.step() for arm in arms)
    but_height = [0, 1, 3, 4, 5, 6]
    np.testing.assert_array_equal(one[but_height], other[but_height])
    assert 0 < np.abs(one_done - one).max() < 0.05
    assert not np.array_equal(one_done, other_done)
    assert one_done[6] == one[6]
