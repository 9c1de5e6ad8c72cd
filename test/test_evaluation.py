"""Closed-loop episodes without ROS: the loop is right when the expert, flying it, succeeds."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.evaluation import Pilot, evaluate, make_simulator, run_episode
from diffusion_policy_ros.runtime.joining import JOINS
from diffusion_policy_ros.runtime.runner import Runner, Sampling
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
def arm():
    """The simulated arm without cameras."""
    with make_simulator("mini_lift", CONTRACT) as arm:
        yield arm


def pilot(**changes):
    """A pilot that the expert flies."""
    return Pilot(ExpertEngine(), CONTRACT, 2, dataclasses.replace(SAMPLING, **changes))


def test_the_expert_succeeds_through_messages_windows_chunks_and_playback(arm):
    """Unseen seeds; if any part of the loop were off, the block would stay where it is."""
    result = evaluate(arm, pilot(), range(10_000, 10_005))
    assert result.summary()["success_rate"] == 1.0
    assert result.summary()["episodes"] == 5 and len(result.chunk_ms) > 50


def test_windows_begin_by_repeating_the_first_frame(arm):
    """As in training: the first window is the first frame twice, later ones move on by a frame."""
    flown = pilot()
    run_episode(arm, flown, 10_000)
    windows = np.concatenate(flown.engine.windows)
    assert np.array_equal(windows[0, 0], windows[0, 1])
    assert np.array_equal(windows[1:, 0], windows[:-1, 1])


def test_replan_steps_and_delay(arm):
    """A chunk every second frame; delayed by three, it arrives three frames after its stamp."""
    seen = []

    def note(arm, pilot, target):
        seen.append((arm.steps - 1, pilot.chunk and pilot.chunk.stamp_ns // CONTRACT.period_ns))

    flown = pilot(replan_steps=2)
    flown.delay_frames = 3
    run_episode(arm, flown, 10_000, note)
    arrived = dict(seen)
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
def test_the_node_joins_chunks_as_the_evaluation_does(arm, join):
    """The same frames and the same latency give the same chunks, to the bit."""
    sampling = dataclasses.replace(SAMPLING, replan_steps=2, chunk_join=join)
    flown = Pilot(FollowingEngine(), CONTRACT, 2, sampling, delay_frames=3)
    evaluated, lived, now = {}, [], [0]

    def note(arm, pilot, target):
        if pilot.chunk is not None:
            evaluated[pilot.chunk.stamp_ns] = pilot.chunk.actions

    run_episode(arm, flown, 10_000, note)
    runner = Runner(
        FollowingEngine(), CONTRACT, sampling, lived.append, lived.append, lambda: now[0]
    )
    runner.start()
    window = {"robot0_eef_pos": np.zeros((2, 3), np.float32)}
    for stamp in list(evaluated)[:20]:
        now[0], seen = stamp + 3 * CONTRACT.period_ns, len(lived)
        runner.offer(stamp, lambda: window)
        runner.offer(stamp + CONTRACT.period_ns, lambda: window)
        deadline = time.monotonic() + 60
        while len(lived) == seen:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert runner.stop()
    for chunk in lived:
        assert np.array_equal(chunk.actions, evaluated[chunk.stamp_ns])


def test_episodes_end_at_success_or_after_the_last_step(arm):
    """200 steps without success are the end."""
    idle = pilot()
    idle.engine.sample = lambda observation, **_: torch.zeros(1, 16, 7)
    episode = run_episode(arm, idle, 10_000)
    assert not episode.success and episode.steps == 200


def test_what_does_not_fit_the_simulator_is_refused():
    """An unknown simulator, and a robot that it is not."""
    with pytest.raises(UserError, match="did you mean 'mini_lift'"):
        make_simulator("mini_lft", CONTRACT)
    other = Contract.from_text(CONTRACT.text.replace("/object_pose", "/thing_pose"))
    with pytest.raises(UserError, match="no geometry_msgs/msg/PoseStamped on /thing_pose"):
        make_simulator("mini_lift", other)
