"""What is compared with what, in which unit, at which time."""

import numpy as np
import pytest

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.replay import figures
from diffusion_policy_ros.replay.live_run import LiveRun
from diffusion_policy_ros.replay.reading import Replayed
from diffusion_policy_ros.runtime.tail import Chunk

CONTRACT = Contract.load("mini_lift_state")
PERIOD, FRAMES, HORIZON = CONTRACT.period_ns, 20, 6


def recording(every=3, late=0, segment=None):
    """A recording whose chunks are what was done, or what was done `late` frames later."""
    random = np.random.default_rng(0)
    done = random.uniform(-0.01, 0.01, (FRAMES + HORIZON + late, 7))
    done[:, 6] = np.where(done[:, 6] > 0, 1.0, -1.0)
    times = [frame * PERIOD for frame in range(FRAMES)]
    chunks = {
        frame: Chunk(times[frame], done[frame + late : frame + late + HORIZON], PERIOD)
        for frame in range(0, FRAMES, every)
    }
    return Replayed("made", times, segment or [0] * FRAMES, {}, done[:FRAMES], "made", chunks)


def test_a_policy_that_does_what_was_done_has_no_error():
    """Step k of a chunk is compared with the action k frames after its newest frame."""
    policy, repeated = figures.errors(recording(), CONTRACT)
    assert list(policy) == ["translation", "way of translation", "rotation", "gripper"]
    for values in policy.values():
        assert np.nanmax(values) == 0 and np.isfinite(values[0]).all()
    assert np.nanmax(repeated["translation"]) > 0.005
    late, _ = figures.errors(recording(late=1), CONTRACT)
    assert np.nanmin(late["translation"]) > 0


def test_nothing_is_compared_beyond_a_gap():
    """What follows a gap is another motion; steps that lie beyond it count nowhere."""
    one = recording(segment=[0] * 8 + [1] * 12)
    policy, _ = figures.errors(one, CONTRACT)
    known = np.isfinite(policy["translation"]).sum(axis=1)
    assert known.tolist() == [6, 5, 2, 6, 6, 5, 2]
    pairs = figures.disagreement(one, CONTRACT)["translation"]
    assert len(pairs) == 5 and np.nanmax(pairs) == 0
    assert np.isfinite(pairs[0]).tolist() == [True] * 3 + [False] * 3


def test_a_continuous_joint_is_compared_the_short_way_round():
    """Half a turn to either side is the same place; a joint that stops there is not."""
    (part,) = Contract.load("mobile_manipulator").action.of_role("joints")
    place = slice(0, part.size)
    told, done = np.zeros((2, part.size)), np.zeros((2, part.size))
    told[0, -1], done[0, -1] = 3.1, -3.1
    told[1, 0], done[1, 0] = 3.1, -3.1
    distance = figures._measure(part, place).distance
    assert distance(told, done) == pytest.approx([2 * np.pi - 6.2, 6.2])


def test_units_are_those_of_the_fields():
    """Lengths of translations, angles of rotations, shares of what is closed or open."""
    one = recording(every=FRAMES)
    actions = one.chunks[0].actions.copy()
    actions[:, 0] += 0.003
    actions[:, 1] += 0.004
    actions[1, 3:6] = one.done[1, 3:6] * (1 + 0.2 / np.linalg.norm(one.done[1, 3:6]))
    actions[2, 6] *= -0.1
    one.chunks[0] = Chunk(0, actions, PERIOD)
    policy, _ = figures.errors(one, CONTRACT)
    assert policy["translation"][0] == pytest.approx([0.005] * 6)
    assert policy["way of translation"][0] == pytest.approx(0.005 * np.arange(1, 7))
    assert policy["rotation"][0] == pytest.approx([0, 0.2, 0, 0, 0, 0], abs=1e-7)
    assert policy["gripper"][0].tolist() == [0, 0, 1, 0, 0, 0]


def test_saturation_says_which_limit_and_how_often():
    """Actions beyond the contract's limits, of those that are executed only."""
    one = recording(every=FRAMES)
    one.states = {"robot0_eef_pos": np.zeros((FRAMES, 3)) + [0, 0, 0.2]}
    one.states["robot0_eef_quat"] = np.tile([0.0, 0, 0, 1], (FRAMES, 1))
    one.chunks[0].actions[[1, 5], 0] = 0.2
    found = figures.saturation([one], CONTRACT, executed=4)
    assert found["actions"] == 4 and found["clamped"]["translation.step"] == 0.25
    one.chunks[0].actions[0] = np.nan
    assert figures.saturation([one], CONTRACT, 4)["rejected_chunks"] == {"not finite": 1}


def test_live_chunks_are_compared_from_the_first_whole_window_on():
    """Only chunks that the recording has all of are compared: its first windows it cannot know."""
    one = recording(every=1)
    one.live = LiveRun("/chunks", {s.stamp_ns: s.actions[:4] for s in one.chunks.values()})
    one.live.delays_s = [0.02] * FRAMES
    one.live.values = {"engine": "openvino", "dtype": "int8", "frames": "9"}
    one.live.chunks[0] = one.live.chunks[0] + 1
    one.live.chunks[5 * PERIOD] = one.live.chunks[5 * PERIOD] + 2e-5
    one.whole = set(range(1, FRAMES))
    found = figures.against_live([one])
    assert (found["chunks"], found["compared"], found["same"]) == (20, 19, 18)
    assert found["largest_difference"] == pytest.approx(2e-5)
    assert found["delay_ms_p50"] == 20 and found["engine"] == "openvino int8"


def test_velocities_and_grippers_are_not_in_rad():
    """A base's twist, joints, and what opens by a number of the driver's."""
    found = figures.measures(Contract.load("mobile_manipulator"))
    assert [measure.unit for measure in found] == ["m/s or rad/s", "rad or m", "in its unit"]
