"""robosuite's tasks as robots of the package."""

from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("robosuite") is None:  # not importorskip: MuJoCo's way to draw is chosen first
    pytest.skip("robosuite is missing: make robosuite", allow_module_level=True)

from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.simulated_robot import SimulatedRobot

pytestmark = pytest.mark.robosuite
CONTRACT = Contract.load("robosuite_state")
START = 10**9


@pytest.fixture(scope="module")
def robot():
    """The Panda before the cube, led by the expert."""
    with SimulatedRobot(CONTRACT, False, True, "robosuite/lift") as robot:
        yield robot


def run(robot, seed):
    """An episode of the expert: its result, and what was observed at the start."""
    robot.reset(seed, START)
    first, time_ns = dict(robot.obs), START
    while (step := robot.advance(time_ns)).result is None:
        time_ns += CONTRACT.period_ns
    return step.result, first


def test_an_episode_follows_from_its_seed(robot):
    """Whatever went on before; and another seed's is another one."""
    _, first = run(robot, 3)
    _, other = run(robot, 4)
    _, again = run(robot, 3)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.allclose(first["object_pos"], other["object_pos"], atol=1e-3)
    with pytest.raises(UserError, match="seed -1 is negative"):
        robot.reset(-1, START)


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_the_expert_does_the_task(task):
    """Judged by robosuite, from seeds that no training uses, well before the time is over."""
    with SimulatedRobot(CONTRACT, False, True, f"robosuite/{task}") as robot:
        results = [run(robot, seed)[0] for seed in range(20_000, 20_003)]
        assert sum(result.success for result in results) >= 2
        assert min(result.steps for result in results) < robot.simulator.max_steps / 2


def test_a_delta_leads_from_what_is_measured():
    """A chunk through the player tells the arm what robosuite's own controller makes of it."""
    actions = np.random.default_rng(1).uniform(-0.02, 0.02, (8, 7))
    with SimulatedRobot(CONTRACT, False, sim="robosuite/lift") as robot:
        robot.reset(6, START)
        robot.offer(Chunk(START, actions, CONTRACT.period_ns))
        for i, action in enumerate(actions):
            before = dict(robot.obs)
            told = robot.advance(START + i * CONTRACT.period_ns).set_point
            moved = told["translation"] - before["robot0_eef_pos"]
            np.testing.assert_allclose(moved, action[:3], atol=1e-6)
            turned = Rotation.from_quat(told["rotation"])
            turned *= Rotation.from_quat(before["robot0_eef_quat"]).inv()
            np.testing.assert_allclose(turned.as_rotvec(), action[3:6], atol=1e-6)


def test_it_goes_where_it_is_told(robot):
    """An absolute pose of what is measured: the same frame of reference, no quarter turn."""
    robot.reset(5, START)
    here, turned = (robot.obs[f"robot0_eef_{key}"].astype(float) for key in ("pos", "quat"))
    place = here + [0.03, -0.02, 0.03]
    turn = Rotation.from_euler("z", 0.2) * Rotation.from_quat(turned)
    told = {"translation": place, "rotation": turn.as_quat(), "gripper": np.array([-1.0])}
    for _ in range(30):
        found = robot.simulator.step(told)
    np.testing.assert_allclose(found["robot0_eef_pos"], place, atol=5e-3)
    left = (turn * Rotation.from_quat(found["robot0_eef_quat"]).inv()).magnitude()
    assert left < 0.05


def test_pictures_are_the_right_way_up():
    """The table's half of the picture is below."""
    with SimulatedRobot(CONTRACT, False, sim="robosuite/lift") as robot:
        robot.reset(0, START)
        picture = robot.simulator.render("frontview", 64, 64)
    assert picture.shape == (64, 64, 3) and picture.std() > 10
