"""Windows become chunks on a thread of their own; what goes wrong is counted and named."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.runtime.runner import Runner, Sampling, make_chunk, noise_generator

CONTRACT = Contract.load("mini_lift_state")
WINDOW = {"robot0_eef_pos": np.zeros((2, 3), np.float32)}
SAMPLING = Sampling(num_inference_steps=4, sampler="ddim", replan_steps=1, n_action_steps=8)
PERIOD = CONTRACT.period_ns


class Engine:
    """Stands in for a policy: gives the action's index, when it is let."""

    def __init__(self):
        self.steps, self.follows = [], []
        self.may_go = threading.Event()
        self.may_go.set()
        self.error = None

    def sample(self, observation, *, steps, follow=None, **_):
        """(1, 16, 7), every component the index in the horizon."""
        self.steps.append(steps)
        self.follows.append(follow)
        assert self.may_go.wait(60)
        if self.error is not None:
            raise self.error
        return torch.arange(16.0)[None, :, None].expand(1, 16, 7)


class Rig:
    """A runner with a stand-in engine; collects what comes out."""

    def __init__(self, sampling=SAMPLING):
        self.engine, self.chunks, self.faults, self.now = Engine(), [], [], 0
        self.runner = Runner(
            self.engine,
            CONTRACT,
            sampling,
            self.chunks.append,
            self.faults.append,
            lambda: self.now,
            seed=0,
        )
        self.runner.start()

    def offer(self, frame):
        """Tell of frame number ``frame``."""
        self.runner.offer(frame * PERIOD, lambda: WINDOW)

    def wait(self, condition):
        """Until it holds, or fail."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def rig():
    """A running rig, stopped at the end."""
    rig = Rig()
    yield rig
    rig.engine.may_go.set()
    assert rig.runner.stop()


def test_a_chunk_begins_at_the_newest_frame(rig):
    """Of H=16 predicted actions, Ta=8 are handed over, the first at the newest of To=2 frames."""
    rig.offer(3)
    rig.wait(lambda: rig.chunks)
    (chunk,) = rig.chunks
    assert chunk.stamp_ns == 3 * PERIOD and chunk.actions[:, 0].tolist() == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
    ]


def test_the_newest_window_wins(rig):
    """While one is computed, later windows replace each other; the count says how many."""
    rig.engine.may_go.clear()
    rig.offer(0)
    rig.wait(lambda: rig.engine.steps)
    for frame in (1, 2, 3):
        rig.offer(frame)
    rig.engine.may_go.set()
    rig.wait(lambda: len(rig.chunks) == 2)
    assert [chunk.stamp_ns // PERIOD for chunk in rig.chunks] == [0, 3]
    assert rig.runner.counts.replaced == 2


def test_a_thread_that_was_left_behind_ends_when_it_can(rig):
    """Stopped while it samples and started again: there is one inference thread, not two."""
    rig.engine.may_go.clear()
    rig.offer(0)
    rig.wait(lambda: rig.engine.steps)
    before = rig.runner._thread
    assert not rig.runner.stop(timeout_s=0.0)
    rig.runner.start()
    rig.offer(1)
    rig.wait(lambda: rig.runner._mailbox is None)
    assert len(rig.engine.steps) == 1, "an engine is not made for two at once"
    rig.engine.may_go.set()
    rig.wait(lambda: rig.chunks)
    assert [chunk.stamp_ns // PERIOD for chunk in rig.chunks] == [1]
    before.join(10)
    assert not before.is_alive()


def test_replan_steps_frames_lie_between_inferences():
    """With replan_steps 4, every fourth frame is sampled from."""
    rig = Rig(Sampling(4, "ddim", replan_steps=4, n_action_steps=8))
    for frame in range(9):
        rig.offer(frame)
        rig.wait(lambda n=frame // 4 + 1: len(rig.chunks) == n)
    assert [chunk.stamp_ns // PERIOD for chunk in rig.chunks] == [0, 4, 8]
    assert rig.runner.stop()


def test_settings_change_from_the_next_chunk_on(rig):
    """A chunk is sampled with one set of settings, whole."""
    rig.offer(0)
    rig.wait(lambda: rig.chunks)
    rig.runner.sampling = Sampling(7, "ddim", 1, 8)
    rig.offer(1)
    rig.wait(lambda: len(rig.chunks) == 2)
    assert rig.engine.steps == [4, 7]


def test_nothing_comes_out_after_cancel(rig):
    """A chunk that is being computed when the node begins to hold is dropped."""
    rig.engine.may_go.clear()
    rig.offer(0)
    rig.wait(lambda: rig.engine.steps)
    rig.runner.cancel()
    rig.engine.may_go.set()
    rig.offer(5)
    rig.wait(lambda: rig.chunks)
    assert [chunk.stamp_ns // PERIOD for chunk in rig.chunks] == [5]


def test_the_way_of_joining_changes_from_the_next_chunk_on(rig):
    """What came before is known, whichever way it was joined."""
    rig.offer(0)
    rig.wait(lambda: len(rig.chunks) == 1)
    rig.runner.sampling = dataclasses.replace(SAMPLING, chunk_join="rtc")
    rig.offer(2)
    rig.wait(lambda: len(rig.chunks) == 2)
    free, follow = rig.engine.follows
    assert free is None and follow.kind == "rtc"
    assert follow.actions[0, :14, 0].tolist() == list(range(2, 16)), "at the same times"


@pytest.mark.parametrize("join", ["rtc", "temporal_ensemble"])
def test_nothing_joins_what_was_before_a_hold(rig, join):
    """Neither a chunk that was published nor one that was in the making then."""
    rig.runner.sampling = dataclasses.replace(SAMPLING, chunk_join=join)
    rig.offer(0)
    rig.wait(lambda: rig.chunks)
    rig.engine.may_go.clear()
    rig.offer(1)
    rig.wait(lambda: len(rig.engine.steps) == 2)
    rig.runner.cancel()
    rig.engine.may_go.set()
    rig.offer(2)
    rig.wait(lambda: len(rig.chunks) == 2)
    assert rig.engine.follows[-1] is None
    assert rig.chunks[-1].actions[:, 0].tolist() == list(range(1, 9)), "an average would be less"


def test_the_delay_to_reckon_with_is_the_measured_one(rig):
    """From frame to publication, the median of late, in whole frames; clocks may disagree."""
    assert rig.runner.delay_frames == 0
    for frame, late in enumerate((2.3, 2.4, 7.0)):
        rig.now = round((frame + late) * PERIOD)
        rig.offer(frame)
        rig.wait(lambda n=frame + 1: len(rig.chunks) == n)
    rig.wait(lambda: rig.runner.delay_frames == 3)
    for frame in range(3, 7):
        rig.now = (frame - 5) * PERIOD
        rig.offer(frame)
        rig.wait(lambda n=frame + 1: len(rig.chunks) == n)
    rig.wait(lambda: rig.runner.delay_frames == 0)


def test_a_chunk_after_the_last_one_ran_out_is_a_deadline_miss(rig):
    """Counted by the clock that frames are stamped by."""
    rig.offer(0)
    rig.wait(lambda: rig.chunks)
    rig.now = 8 * PERIOD
    rig.offer(1)
    rig.wait(lambda: len(rig.chunks) == 2)
    rig.now = 10 * PERIOD
    rig.offer(8)
    rig.wait(lambda: len(rig.chunks) == 3)
    assert rig.runner.counts.deadline_misses == 1


def test_a_failing_inference_is_named_and_survived(rig):
    """The reason comes out, and the next window is tried."""
    rig.engine.error = RuntimeError("out of memory")
    rig.offer(0)
    rig.wait(lambda: rig.faults)
    assert "out of memory" in rig.faults[0] and rig.runner.counts.failures == 1
    rig.engine.error = None
    rig.offer(1)
    rig.wait(lambda: rig.chunks)


def test_an_output_that_is_not_finite_is_no_chunk(rig, monkeypatch):
    """NaN of the network never reaches the robot."""
    monkeypatch.setattr(
        rig.engine, "sample", lambda observation, **_: torch.full((1, 16, 7), float("nan"))
    )
    rig.offer(0)
    rig.wait(lambda: rig.faults)
    assert "not finite" in rig.faults[0] and not rig.chunks


@pytest.mark.parametrize(
    "change",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 101},
        {"replan_steps": 9},
        {"sampler": "ddmi"},
        {"chunk_join": "temporal_assemble"},
    ],
)
def test_settings_that_the_policy_cannot_take_are_refused(change):
    """With the valid ones in words."""
    settings = PolicySettings(n_action_steps=8, num_train_timesteps=100)
    assert (
        Sampling.of(settings, num_inference_steps=None).num_inference_steps
        == settings.num_inference_steps
    )
    with pytest.raises(UserError, match="use 1 to|did you mean"):
        Sampling.of(settings, **change)


def test_guidance_is_for_policies_that_were_trained_for_it():
    """Any scale from 0 on with observation dropout, only 1 without."""
    trained = PolicySettings(observation_dropout=0.1)
    assert Sampling.of(trained, guidance_scale=3.0).guidance_scale == 3.0
    with pytest.raises(UserError, match="guidance_scale: -1; use 0 or more"):
        Sampling.of(trained, guidance_scale=-1.0)
    with pytest.raises(UserError, match="guidance_scale: 3; use 1"):
        Sampling.of(PolicySettings(), guidance_scale=3.0)


def test_chunks_begin_at_the_newest_frame_s_action():
    """It is the second of all H predicted, the first where only executed ones are."""
    every = Sampling.of(PolicySettings())
    steps_only = Sampling.of(PolicySettings(pred_action_steps_only=True))
    for sampling, first in ((every, 1.0), (steps_only, 0.0), (SAMPLING, 1.0)):
        chunk = make_chunk(Engine(), CONTRACT, WINDOW, 0, sampling)
        assert chunk.actions[0, 0] == first
        assert len(chunk.actions) == 8


def noise(seed, time_ns):
    """What the noise of a chunk begins with."""
    return torch.randn(3, generator=noise_generator(seed, time_ns)).tolist()


def test_a_chunks_noise_follows_from_seed_and_frame_alone():
    """Whatever was sampled before or left out: so a recorded run can be replayed."""
    assert noise(7, 3 * PERIOD) == noise(7, 3 * PERIOD)
    drawn = [noise(7, 3 * PERIOD), noise(7, 4 * PERIOD), noise(8, 3 * PERIOD), noise(7, -PERIOD)]
    assert len({tuple(values) for values in drawn}) == 4
