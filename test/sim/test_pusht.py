"""PushT as a robot of the package."""

from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("gym_pusht") is None:
    pytest.skip("gym-pusht is missing: make pusht", allow_module_level=True)

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.simulated_robot import SimulatedRobot

pytestmark = pytest.mark.pusht
CONTRACT = Contract.load("pusht_state")
START = 10**9


@pytest.fixture(scope="module")
def robot():
    """The disc and the T, without the picture."""
    with SimulatedRobot(CONTRACT, False, sim="pusht") as robot:
        yield robot


def test_an_episode_is_gym_pushts_own(robot):
    """Of the seed, a pixel a millimetre."""
    from gym_pusht.envs.pusht import PushTEnv

    robot.reset(7, START)
    state, _ = PushTEnv(obs_type="state").reset(seed=7)
    np.testing.assert_allclose(robot.obs["agent"], state[:2] / 1000)
    np.testing.assert_allclose(robot.obs["block"], state[2:4] / 1000)
    with pytest.raises(UserError, match="seed -1 is not taken"):
        robot.reset(-1, START)


def test_the_disc_goes_where_chunks_lead(robot):
    """Ten of them a second, absolute, in metres."""
    robot.reset(7, START)
    here = robot.obs["agent"].astype(float)
    goal = here + [0.02, -0.02]
    for i in range(20):
        if i % 4 == 0:
            actions = np.tile(goal, (8, 1))
            robot.offer(Chunk(START + i * CONTRACT.period_ns, actions, CONTRACT.period_ns))
        robot.advance(START + i * CONTRACT.period_ns)
    np.testing.assert_allclose(robot.obs["agent"], goal, atol=2e-3)
    assert not robot.simulator.success and 0.0 <= robot.simulator.coverage < 0.95


def test_the_planner_pushes_the_t_onto_its_outline():
    """Coverage above 0.95, judged by gym-pusht; what it records is in the contract's metres."""
    with SimulatedRobot(CONTRACT, False, True, "pusht") as robot:
        robot.reset(20_000, START)
        time_ns, commands = START, []
        while (step := robot.advance(time_ns)).result is None:
            commands.append(step.command)
            time_ns += CONTRACT.period_ns
        assert step.result.success and robot.simulator.coverage > 0.95
        assert np.all((np.array(commands) > 0) & (np.array(commands) < 0.512))


def test_it_is_drawn():
    """A picture of any size."""
    with SimulatedRobot(CONTRACT, True, sim="pusht") as robot:
        robot.reset(0, START)
        assert robot.obs["image"].shape == (96, 96, 3) and robot.obs["image"].std() > 5
