"""The task with two right answers: what tells them apart, and that their mean is none."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

if find_spec("mujoco") is None:  # not importorskip: the package chooses OpenGL before it imports
    pytest.skip("mujoco is missing: pip install -e '.[sim]'", allow_module_level=True)

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.evaluation import ClosedLoop, evaluate, make_simulator
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim.bypass import START, STEP
from diffusion_policy_ros.simulated_robot import SimulatedRobot
from diffusion_policy_ros.ways import Ways, drawn_ways, entropy

CONTRACT = Contract.load("mini_bypass")
SAMPLING = Sampling(num_inference_steps=1, sampler="ddim", replan_steps=4, n_action_steps=8)


@pytest.fixture(scope="module")
def robot():
    """The arm before the post."""
    with make_simulator("mini_bypass", CONTRACT) as robot:
        yield robot


class Answers:
    """Stands in for a policy: around the post on one side, by chance or always; or the mean."""

    def __init__(self, share_left):
        self.share = share_left

    def sample(self, observation, *, generator=None, **_):
        here = observation["robot0_eef_pos"][0, -1].astype(float)
        block = observation["object_pos"][0, -1].astype(float)
        left = np.sign(here[1]) if abs(here[1]) > 0.03 else self._drawn(generator)
        actions = []
        for _ in range(16):
            goal = np.array([0.0, 0.16 * left, START[2]])
            if here[0] > -0.01:
                goal = np.array([*block[:2], START[2]])
            way = goal - here
            actions.append(way * min(1.0, STEP / max(np.linalg.norm(way), 1e-9)))
            here = here + actions[-1]
        return torch.from_numpy(np.array(actions, np.float32))[None]

    def _drawn(self, generator):
        if self.share == "mean":
            return 0.0
        return 1.0 if float(torch.rand(1, generator=generator)) < self.share else -1.0


def flown(robot, share):
    """The result of ten episodes, and what was watched."""
    policy, ways = ClosedLoop(Answers(share), CONTRACT, 2, SAMPLING), Ways(robot.simulator.ways)
    return evaluate(robot, policy, range(10_000, 10_010), on_step=ways).summary(), ways.summary()


def test_the_expert_goes_both_ways_as_often_and_touches_nothing():
    """By the seed alone; what is observed at first does not show which."""
    taken, first = {"left": 0, "right": 0}, {"left": [], "right": []}
    with SimulatedRobot(CONTRACT, False, True, "mini_bypass") as robot:
        for seed in range(20):
            robot.reset(seed, time_ns := 10**9)
            begun = np.concatenate([robot.obs["robot0_eef_pos"], robot.obs["object_pos"]])
            while (step := robot.advance(time_ns)).result is None:
                time_ns += CONTRACT.period_ns
            assert step.result.success and robot.simulator.collisions == 0
            taken[robot.simulator.way] += 1
            first[robot.simulator.way].append(begun)
    assert taken == {"left": 10, "right": 10}
    means = [np.mean(first[way], axis=0) for way in first]
    assert np.abs(means[0] - means[1]).max() < 0.02


def test_both_ways_succeed_and_are_told_apart(robot):
    """Always left, always right, either: what is counted is what was done."""
    for share, way in ((1.0, "left"), (0.0, "right")):
        result, ways = flown(robot, share)
        assert result["success_rate"] == 1.0 and ways["ways"][way] == 10
        assert (ways["entropy_bits"], ways["collisions"], ways["changes_of_mind"]) == (0, 0, 0)
    result, ways = flown(robot, 0.5)
    assert result["success_rate"] == 1.0 and ways["entropy_bits"] > 0.8


def test_the_mean_of_two_right_answers_is_wrong(robot):
    """As a regression would answer: it runs into the post, and that is the end."""
    result, ways = flown(robot, "mean")
    assert result["success_rate"] == 0.0
    assert ways["collisions"] == 10 and result["mean_steps"] < 20


def test_one_observation_is_answered_in_both_ways(robot):
    """As often as the policy's chance has it."""
    policy = ClosedLoop(Answers(0.7), CONTRACT, 2, SAMPLING)
    drawn = drawn_ways(robot, policy, [10_000, 10_001], draws=50)
    assert drawn["left"] / 100 == pytest.approx(0.7, abs=0.15) and drawn[""] == 0
    mean = ClosedLoop(Answers("mean"), CONTRACT, 2, SAMPLING)
    assert drawn_ways(robot, mean, [10_000], draws=5) == {"": 5}


def test_who_changes_its_mind_is_counted(robot):
    """A chunk that leads left after one that led right."""
    fickle = Answers(0.0)
    policy, ways = ClosedLoop(fickle, CONTRACT, 2, SAMPLING), Ways(robot.simulator.ways)

    def turn(robot, loop, step):
        fickle.share = 1.0 if robot.simulator.steps >= 1 else 0.0
        ways(robot, loop, step)

    policy.sampling = Sampling(1, "ddim", replan_steps=1, n_action_steps=8)
    evaluate(robot, policy, [10_000], on_step=turn)
    assert ways.changes >= 1


def test_entropy():
    """In bit."""
    assert entropy({"left": 5, "right": 5}) == 1.0
    assert entropy({"left": 7, "right": 0}) == 0.0


def test_eval_tells_of_the_ways(tmp_path, capsys):
    """A line more, of tasks that have some."""
    tiny = "policy: {denoiser: {name: mlp, hidden_size: 8, num_layers: 1}}"
    torch.manual_seed(0)
    policy = DiffusionPolicy(Recipe.from_text(tiny), CONTRACT)
    where = save_checkpoint(tmp_path / "tiny", policy)
    words = ["--sim", "mini_bypass", "--episodes", "1", "--steps", "1", "--engine", "eager"]
    assert main(["eval", str(where), *words]) == 0
    assert "ways: left 0, right " in capsys.readouterr().out


def test_a_contract_that_the_expert_does_not_lead():
    """It gives positions alone."""
    with pytest.raises(UserError, match="the expert does not give delta_position, delta_axis"):
        SimulatedRobot(Contract.load("mini_lift_state"), False, True, "mini_bypass")
