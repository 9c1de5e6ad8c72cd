"""The simulated robot: chunks by time, episodes one after the other; no ROS."""

import json

import numpy as np
import pytest

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.sim.arm import MAX_STEPS, PERIOD_NS, SimArm
from diffusion_policy_ros.simulated_robot import SHOWN_AFTER_SUCCESS, SimulatedRobot

STATE = Contract.load("mini_lift_state")
START = 7 * PERIOD_NS
EAST = np.array([0.01, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


@pytest.fixture
def robot():
    """An arm at the start of the episode of seed 5, which begins at `START`."""
    with SimulatedRobot(STATE, cameras=False) as robot:
        robot.reset(5, START)
        yield robot


def chunk(stamp_ns: int, n: int = 8, action: np.ndarray = EAST) -> Chunk:
    """The same action `n` times."""
    return Chunk(stamp_ns, np.tile(action, (n, 1)), PERIOD_NS)


def commanded_x(robot: SimulatedRobot) -> float:
    """Where the arm was told to be, relative to where it was reset to, m."""
    start = SimArm(render=False).reset(robot.seed)["robot0_eef_pos"]
    return float(robot.player.set_point["translation"][0] - start[0])


def test_waits_for_the_first_action(robot):
    """Until the first action is due the arm stands as it was reset, and no step counts."""
    before = robot.obs
    for i in range(5):
        assert robot.advance(START + i * PERIOD_NS).holding == "no chunk yet"
    assert robot.waiting and robot.simulator.steps == 0
    assert robot.obs is before


def test_plays_a_chunk_by_time(robot):
    """A chunk that comes one period late begins with its second action; past its last it holds."""
    robot.offer(chunk(START, n=4))
    told = [robot.advance(START + i * PERIOD_NS) for i in range(1, 6)]
    assert commanded_x(robot) == pytest.approx(0.03, abs=1e-6)
    assert [bool(step.holding) for step in told] == [False] * 3 + [True] * 2


def test_stamps_that_jitter_lose_no_action(robot):
    """Frames up to 10 ms off their instants execute each action once."""
    robot.offer(chunk(START, n=8))
    for i, jitter_ms in enumerate([0, -9, 9, -3, 5, -10, 10, 0]):
        robot.advance(START + i * PERIOD_NS + jitter_ms * 1_000_000)
    assert commanded_x(robot) == pytest.approx(0.08, abs=1e-6)
    assert robot.player.dropped == 0


def test_empty_chunk_holds(robot):
    """After an empty chunk the arm stays where the stream was, between two actions."""
    robot.offer(chunk(START))
    robot.advance(START)
    robot.offer(Chunk(START, np.empty((0, 7)), PERIOD_NS))
    step = robot.advance(START + PERIOD_NS)
    assert step.holding == "told to hold"
    stays = commanded_x(robot)
    assert 0.01 < stays < 0.02
    robot.advance(START + 2 * PERIOD_NS)
    assert commanded_x(robot) == stays


def test_aged_chunk_holds(robot):
    """A chunk with actions left is not played on after the contract's timeout of a second."""
    robot.offer(chunk(START, n=100, action=EAST * 0.01))
    steps = [robot.advance(START + i * PERIOD_NS) for i in range(25)]
    holding = [step.holding for step in steps]
    assert holding[:21] == [""] * 21
    assert holding[21:] == ["the newest chunk has aged out"] * 4


def test_chunks_from_before_the_reset_are_not_played(robot):
    """A chunk of the episode before, still on its way at the reset, moves nothing."""
    robot.reset(6, START + 20 * PERIOD_NS)
    assert robot.offer(chunk(START + 15 * PERIOD_NS, n=16)) == "from before the reset"
    assert robot.advance(START + 20 * PERIOD_NS).holding == "no chunk yet"


def test_a_chunk_before_the_first_episode_is_not_played():
    """Whoever is quicker than the simulator's first frame is told so."""
    with SimulatedRobot(STATE, cameras=False) as robot:
        assert robot.offer(chunk(START)) == "before the first episode"


def test_reset_gives_the_seeds_episode(robot):
    """Whatever went on before, a seed's episode is the simulator's own for that seed."""
    robot.offer(chunk(START))
    robot.advance(START)
    robot.reset(5, START + 9 * PERIOD_NS)
    expected = SimArm(render=False).reset(5)
    assert all(np.array_equal(robot.obs[key], expected[key]) for key in expected)


def test_cutting_an_episode_short_gives_its_result(robot):
    """A reset after the first action ends the episode as `reset`; before it there is no result."""
    assert robot.reset(5, START) is None
    robot.offer(chunk(START, n=2))
    for i in range(3):
        robot.advance(START + i * PERIOD_NS)
    result = robot.reset(6, START + 9 * PERIOD_NS)
    assert (result.seed, result.success, result.ended, result.steps) == (5, False, "reset", 3)
    assert (result.seconds, result.holds) == (pytest.approx(0.15), 1)
    assert json.loads(result.to_json())["ended"] == "reset"


def test_an_episode_ends_after_its_last_step(robot):
    """An arm that only starts is given up after 200 steps, once."""
    robot.offer(chunk(START, n=1))
    steps = [robot.advance(START + i * PERIOD_NS) for i in range(MAX_STEPS + 5)]
    results = [step.result for step in steps if step.result is not None]
    assert len(results) == 1 and steps[MAX_STEPS - 1].result is results[0]
    assert (results[0].success, results[0].ended, results[0].steps) == (False, "steps", MAX_STEPS)


def test_expert_lifts_and_then_rests():
    """The expert's episode ends a little after success; then it commands no more."""
    with SimulatedRobot(STATE, cameras=False, expert=True) as robot:
        robot.reset(5, START)
        steps = [robot.advance(START + i * PERIOD_NS) for i in range(MAX_STEPS)]
    ended = next(i for i, step in enumerate(steps) if step.result is not None)
    result = steps[ended].result
    assert result.success and ended + 1 == result.steps + SHOWN_AFTER_SUCCESS
    assert all(step.command is not None for step in steps[: ended + 1])
    assert all(step.command is None and step.result is None for step in steps[ended + 1 :])


def test_clamped_and_rejected_are_in_the_result(robot):
    """What the limits clamped and what was rejected is counted by name."""
    robot.offer(chunk(START, n=2, action=EAST * 20))
    robot.offer(chunk(START, action=EAST * np.nan))
    robot.advance(START)
    result = robot.reset(6, START + 9 * PERIOD_NS)
    assert result.clamped["translation.step"] == 1
    assert result.rejected == {"not finite": 1}


def test_planned_path_is_what_is_commanded(robot):
    """The path drawn ahead begins at the commanded position and ends where the chunk leads."""
    small = EAST * 0.2
    robot.offer(chunk(START, n=8, action=small))
    robot.advance(START)
    robot.advance(START + PERIOD_NS)
    path = robot.planned(START + PERIOD_NS)
    places = [there["translation"] for there in path]
    assert len(places) == 7
    assert places[-1][0] - places[0][0] == pytest.approx(6 * small[0])
    for i in range(2, 8):
        robot.advance(START + i * PERIOD_NS)
    np.testing.assert_allclose(robot.player.goal["translation"], places[-1], atol=1e-9)


def test_no_path_without_a_chunk(robot):
    """Nothing is drawn before the first chunk."""
    assert robot.planned(START) == []


@pytest.mark.parametrize(
    ("name", "cameras", "expert", "what"),
    [
        ("mini_lift", False, False, "the contract has images"),
        ("example_arm", True, False, "a field of the action names no state"),
    ],
)
def test_other_robots_contracts_are_refused(name, cameras, expert, what):
    """What does not fit is named."""
    with pytest.raises(UserError, match=what):
        SimulatedRobot(Contract.load(name), cameras, expert)
