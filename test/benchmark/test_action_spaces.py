"""The robots of `benchmark/action_spaces.py`, and its table."""

import numpy as np
import pytest
from action_spaces import ROBOTS, Told, table
from cells import wilson

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.frames import Frames, FrameSettings
from diffusion_policy_ros.policy.rotations import compose, inverse, quaternion_to_matrix


def played(robot):
    """Windows of an arm that is told the same poses, in its own frame: key → (1, steps, n)."""
    turn, shift, _ = ROBOTS[robot]
    seen = []
    with Told(*ROBOTS[robot]) as arm:
        seen.append(arm.reset(20_000))
        for i in range(1, 9):
            there = np.array([0.02, -0.01, 0.02]) * i + [0.0, 0.0, 0.1]
            turned = compose(inverse(turn), [0, 0, np.sin(0.02 * i), np.cos(0.02 * i)])
            position = (there - shift) @ quaternion_to_matrix(turn)
            seen.append(arm.step(position, turned, 0.0))
    return {key: np.stack([frame[key] for frame in seen])[None] for key in seen[0]}


@pytest.mark.parametrize("robot", ["negated", "moved"])
def test_another_robot_tells_the_same_episode_otherwise(robot):
    """Its numbers are others; a policy that sees poses from the tool sees no difference."""
    contract = Contract.load("mini_lift_state")
    settings = FrameSettings("relative", None, "rotation_6d", {"gripper_to_object_pos": "vector"})
    frames, plain, other = Frames(contract, settings, 9), played("plain"), played(robot)
    assert np.abs(plain["robot0_eef_quat"] - other["robot0_eef_quat"]).max() > 0.1
    ours, theirs = frames.to_network(plain), frames.to_network(other)
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], atol=1e-5, err_msg=key)


def test_the_table_adds_up_the_training_seeds():
    """A line a space in the order of SPACES, with Wilson's interval; what is missing is empty."""
    cells = [("relative", 1, "plain", 96), ("delta", 0, "plain", 50), ("relative", 0, "plain", 98)]
    rows = [
        {"space": s, "seed": n, "robot": r, "successes": k, "episodes": 100, "mean_steps": 30.0}
        for s, n, r, k in cells
    ]
    assert table(rows).splitlines() == [
        "| actions | plain | negated | moved |",
        "|---|---|---|---|",
        "| delta | 50/100 (40 to 60 %), 30 steps |  |  |",
        "| relative | 194/200 (94 to 99 %), 30 steps |  |  |",
    ]
    assert wilson(100, 100) == pytest.approx((0.963, 1.0), abs=1e-3)
    assert wilson(0, 100) == pytest.approx((0.0, 0.037), abs=1e-3)
