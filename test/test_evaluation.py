"""Closed-loop episodes without ROS: the loop is right when the expert, flying it, succeeds."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.evaluation import (
    START_NS,
    ClosedLoop,
    evaluate,
    make_simulator,
    run_episode,
)
from diffusion_policy_ros.runtime.joining import JOINS
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.runner import Runner
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim.expert import Expert

CONTRACT = Contract.load("mini_lift_state")
SAMPLING = Sampling(num_inference_steps=1, sampler="ddim", replan_steps=1, n_action_steps=8)


class ExpertEngine:
    """Stands in for a policy: answers the newest observation with the expert's action."""

    def __init__(self):
        self.windows = []

    def sample(self, observation, **_):
        """(1, 16, 7): what the expert would do now, then nothing but the gripper's command."""
        obs = {key: value[0, -1] for key, value in observation.items()}
        self.windows.append(observation["robot0_eef_pos"].copy())
        pose = obs["robot0_eef_pos"], obs["robot0_eef_quat"]
        action = Expert(1, noise=0.0).act(obs, *pose)[0]
        chunk = np.tile(np.append(np.zeros(6), action[6]), (1, 16, 1))
        chunk[0, 1] = action
        return torch.from_numpy(chunk)


@pytest.fixture(scope="module")
def robot():
    """The simulated arm without cameras."""
    with make_simulator("mini_lift", CONTRACT) as robot:
        yield robot


def expert(**changes):
    """A policy that is the expert."""
    return ClosedLoop(ExpertEngine(), CONTRACT, 2, dataclasses.replace(SAMPLING, **changes))


def frame_of(time_ns):
    """Which frame of an episode a time is."""
    return (time_ns - START_NS) // CONTRACT.period_ns


def test_the_expert_succeeds_through_messages_windows_chunks_and_playback(robot):
    """Unseen seeds; if any part of the loop were off, the block would stay where it is."""
    result = evaluate(robot, expert(), range(10_000, 10_005))
    assert result.summary()["success_rate"] == 1.0
    assert result.summary()["episodes"] == 5 and len(result.chunk_ms) > 50


def test_windows_begin_by_repeating_the_first_frame(robot):
    """As in training: the first window is the first frame twice, later ones move on by a frame."""
    flown = expert()
    run_episode(robot, flown, 10_000)
    windows = np.concatenate(flown.engine.windows)
    assert np.array_equal(windows[0, 0], windows[0, 1])
    assert np.array_equal(windows[1:, 0], windows[:-1, 1])


def test_replan_steps_and_delay(robot):
    """A chunk every second frame; delayed by three, it arrives three frames after its stamp."""
    arrived = {}

    def note(robot, policy, step):
        chunk = policy.chunk if len(policy.chunk.actions) else None
        arrived[frame_of(policy.now_ns) - 1] = chunk and frame_of(chunk.stamp_ns)

    flown = expert(replan_steps=2)
    flown.delay_frames = 3
    run_episode(robot, flown, 10_000, note)
    assert arrived[2] is None and arrived[3] == 0 and arrived[4] == 0 and arrived[5] == 2


class FollowingEngine:
    """Stands in for a policy: other numbers each time, drawn towards what it is to follow."""

    def __init__(self):
        self.calls = 0

    def sample(self, observation, *, follow=None, **_):
        """(1, 16, 7)."""
        self.calls += 1
        chunk = 0.01 * torch.sin(self.calls + torch.arange(16.0))[None, :, None].repeat(1, 1, 7)
        if follow is None:
            return chunk
        return chunk + follow.weights[:, None] * (follow.actions - chunk)


@pytest.mark.parametrize("join", JOINS)
def test_a_thread_makes_the_chunks_that_the_evaluation_makes(robot, join):
    """The same messages and the same latency give the same chunks, to the bit."""
    sampling = dataclasses.replace(SAMPLING, replan_steps=4, chunk_join=join)
    flown = ClosedLoop(FollowingEngine(), CONTRACT, 2, sampling, delay_frames=3)
    evaluated, heard, lived = {}, [], []

    def note(robot, policy, step):
        if len(policy.chunk.actions):
            evaluated[policy.chunk.stamp_ns] = policy.chunk.actions

    made = robot.messages

    def record(time_ns, types):
        heard.append(made(time_ns, types))
        return heard[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robot, "messages", record)
        run_episode(robot, flown, 10_000, note)
    now = [START_NS]
    loop = PolicyLoop(
        FollowingEngine(), CONTRACT, 2, sampling, lived.append, lambda: now[0], seed=10_000
    )
    loop.delay_frames = 3
    loop.start(START_NS)
    runner = Runner(loop)
    runner.start()
    for number, stamped in enumerate(heard[:40]):
        time_ns = START_NS + number * CONTRACT.period_ns
        with runner.turn():  # within it: the chunk before is taken whole by its own time
            now[0] = time_ns + 3 * CONTRACT.period_ns  # when what is sampled now arrives
            for topic, _, message in stamped:
                if topic in CONTRACT.topics:
                    loop.push(topic, message, time_ns)
        deadline = time.monotonic() + 60
        while len(lived) < 2 + number // 4:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert runner.stop()
    hold, *chunks = lived
    assert not len(hold.actions) and len(chunks) == 10
    for chunk in chunks:
        assert np.array_equal(chunk.actions, evaluated[chunk.stamp_ns])


def test_episodes_end_at_success_or_after_the_last_step(robot):
    """200 steps without success are the end."""
    idle = expert()
    idle.engine.sample = lambda observation, **_: torch.zeros(1, 16, 7)
    episode = run_episode(robot, idle, 10_000)
    assert not episode.success and episode.steps == 200


@pytest.mark.parametrize("value", [float("nan"), RuntimeError("no memory left")])
def test_an_inference_that_fails_ends_the_evaluation_by_name(robot, value):
    """The robot would hold; here nobody is to wait for a success rate of nothing."""
    failing = expert()

    def sample(observation, **_):
        if isinstance(value, Exception):
            raise value
        return torch.full((1, 16, 7), value)

    failing.engine.sample = sample
    with pytest.raises(UserError, match="output is not finite|no memory left"):
        run_episode(robot, failing, 10_000)


def test_one_that_is_never_told_to_move_ends_too(robot):
    """Chunks that no player takes: the arm stays where it is, and that is no success."""
    late = expert()
    late.delay_frames = 30
    episode = run_episode(robot, late, 10_000)
    assert not episode.success and episode.steps == 0


LIMITED = CONTRACT.text.replace("limits: {", "limits: {velocity: 0.05, acceleration: 0.2, ")


def test_the_stream_s_limits_act_between_the_robot_s_steps():
    """As on the robot: no faster than the contract allows, at the player's rate."""
    contract, places = Contract.from_text(LIMITED), []

    def note(robot, policy, step):
        places.append(step.set_point["translation"])

    flown = dataclasses.replace(expert(), contract=contract)
    with make_simulator("mini_lift", contract) as robot:
        run_episode(robot, flown, 10_000, note)
        clamped, late_ticks = robot.player.clamped, robot.player.late_ticks
    speeds = np.linalg.norm(np.diff(places, axis=0), axis=1) * CONTRACT.rate_hz
    assert 0.049 < speeds.max() < 0.05 + 1e-6
    assert np.abs(np.diff(speeds)).max() * CONTRACT.rate_hz < 0.2 + 1e-6
    assert sum(clamped.values()) > 0 and late_ticks == 0, "it ticks between the steps, too"


def test_what_does_not_fit_the_simulator_is_refused():
    """An unknown simulator, and a robot that it is not."""
    with pytest.raises(UserError, match="did you mean 'mini_lift'"):
        make_simulator("mini_lft", CONTRACT)
    other = Contract.from_text(CONTRACT.text.replace("/object_pose", "/thing_pose"))
    with pytest.raises(UserError, match="no geometry_msgs/msg/PoseStamped on /thing_pose"):
        make_simulator("mini_lift", other)
