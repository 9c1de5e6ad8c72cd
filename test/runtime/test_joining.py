"""Chunks side by side by time: weights and averages as one reckons them by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.following import KINDS
from diffusion_policy_ros.policy.rotations import angle_between, convert
from diffusion_policy_ros.runtime.joining import Joiner, ensemble, follow_weights
from diffusion_policy_ros.runtime.tail import Chunk

CONTRACT = Contract.load("mini_lift_state")
PERIOD = CONTRACT.period_ns
MOVE, TURN, GRIP = slice(0, 3), slice(3, 6), slice(6, 7)


def chunk(frame, value=0.0, steps=16):
    """All that was predicted from a frame on; every component is `value`."""
    return Chunk(frame * PERIOD, np.full((steps, 7), float(value)), PERIOD)


def numbered(frame, steps=16):
    """Each action is the frame that it is meant for."""
    times = np.arange(frame, frame + steps, dtype=float)
    return Chunk(frame * PERIOD, np.tile(times[:, None], 7), PERIOD)


def test_weights_are_those_of_real_time_chunking():
    """By hand, of the paper's equation: H - s = 6 known, d = 2 of them fixed."""
    weights = follow_weights(steps=10, first=1, known=7, delay_frames=2)

    def soft(i):
        c = (6 - i) / (6 - 2 + 1)
        return c * (math.exp(c) - 1) / (math.e - 1)

    assert weights == pytest.approx([1, 1, 1, soft(2), soft(3), soft(4), soft(5), 0, 0, 0])


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 40), st.integers(0, 60))
def test_weights_fall_from_one_to_zero(steps, first, known, delay):
    """Whatever the latency, however little is known: 0 to 1, never rising, 0 for the unknown."""
    weights = follow_weights(steps, first, known, delay)
    assert np.isfinite(weights).all() and (weights >= 0).all() and (weights <= 1).all()
    assert (np.diff(weights) <= 0).all()
    assert (weights[known:] == 0).all()
    assert (weights[: min(first + delay, known)] == 1).all()


def test_an_average_is_weighted_by_age():
    """Of three chunks that know a time, the oldest weighs most: exp(-0.01 i)."""
    joined = ensemble(CONTRACT, [chunk(0, 1), chunk(4, 2), chunk(12, 5)])
    w = np.exp(-0.01 * np.arange(3))
    assert joined[0, MOVE] == pytest.approx(w @ [1, 2, 5] / w.sum())
    assert joined[4, MOVE] == pytest.approx(w[:2] @ [2, 5] / w[:2].sum()), "only two know it"
    assert joined[8, MOVE] == pytest.approx(5), "only the newest does"
    assert (joined[:, GRIP] == 5).all(), "the gripper is the newest's"


def test_rotations_are_averaged_as_rotations():
    """As SciPy does it, also where numbers alone would give nonsense."""
    pair = Rotation.from_rotvec([[0.0, 0.0, 3.0], [0.0, 0.3, -3.0]])
    chunks = [chunk(0), chunk(1)]
    for one, turn in zip(chunks, pair.as_rotvec(), strict=True):
        one.actions[:, TURN] = turn
    expected = pair.mean(np.exp([0.0, -0.01])).as_quat()
    joined = Rotation.from_rotvec(ensemble(CONTRACT, chunks)[0, TURN]).as_quat()
    assert angle_between(joined, expected) == pytest.approx(0, abs=1e-7)
    assert Rotation.from_quat(joined).magnitude() > 2.9, "numbers alone would hardly turn"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.floats(-1.5, 1.5))
def test_an_average_of_equals_is_their_value(gaps, value):
    """However many chunks, whatever they know."""
    frames = np.cumsum(gaps)
    joined = ensemble(CONTRACT, [chunk(frame, value) for frame in frames])
    assert joined == pytest.approx(np.full((16, 7), value))


def test_continuous_joints_are_averaged_on_the_circle():
    """3.1 and -3.1 rad lie beside pi; of a joint that ends somewhere, on both sides of 0."""
    text = ABSOLUTE.replace("KIND", "joint_position, size: 2, wrap: [true, false]")
    contract = Contract.from_text(text.replace("SIZE", "2"))
    chunks = [Chunk(0, np.full((4, 2), side * 3.1), PERIOD) for side in (1, -1)]
    joined = ensemble(contract, chunks)[0]
    assert joined == pytest.approx([-np.pi, 0], abs=0.02)


def test_six_numbers_and_quaternions_are_averaged_too():
    """Absolute orientations of every kind, with chunks that know only a part of the times."""
    for kind, told in {
        "quaternion": [[0.0, 0, 0, 1], [0, 0, math.sin(0.2), math.cos(0.2)]],
        "rotation_6d": [[1.0, 0, 0, 0, 1, 0], Rotation.from_rotvec([0, 0, 0.4]).as_matrix()[:2]],
    }.items():
        size = str(np.size(told[0]))
        contract = Contract.from_text(ABSOLUTE.replace("KIND", kind).replace("SIZE", size))
        actions = [np.tile(np.ravel(row), (4, 1)) for row in told]
        chunks = [Chunk(0, actions[0], PERIOD), Chunk(PERIOD, actions[1], PERIOD)]
        joined = ensemble(contract, chunks)
        assert joined[3] == pytest.approx(np.ravel(told[1])), "only the newest knows it"
        back = convert(joined[0], kind, "axis_angle")
        assert back == pytest.approx([0, 0, 0.199], abs=1e-3), "halfway, nearly"


ABSOLUTE = """
name: absolute
rate_hz: 20
anchor: pose
observations:
  pose: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields: [{name: turn, kind: KIND}]
  record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [SIZE]}
"""


@pytest.mark.parametrize("first", [1, 0])
def test_what_is_followed_belongs_to_the_same_times(first):
    """Whether a chunk begins at the oldest observed frame or at the newest."""
    joiner = Joiner(CONTRACT)
    assert joiner.follow("rtc", 10 * PERIOD, first, 2) is None, "there is none before"
    joiner.join("rtc", numbered(10 - first), first + 2)
    follow = joiner.follow("rtc", 14 * PERIOD + PERIOD // 4, first, 2)
    known = 12
    assert follow.actions[0, :known, 0].tolist() == list(range(14 - first, 26 - first))
    assert (follow.actions[0, known:] == 0).all() and (follow.weights[known:] == 0).all()
    assert (follow.weights[: first + 2] == 1).all() and follow.weights[first + 2] < 1
    assert joiner.follow("replace", 14 * PERIOD, first, 2) is None


def test_what_was_executed_is_followed_not_what_came_too_late():
    """The first actions of a late chunk are never executed: those of the one before are."""
    joiner = Joiner(CONTRACT)
    joiner.join("rtc", chunk(0, 1), fixed=0)
    joiner.join("rtc", chunk(4, 2), fixed=6)
    follow = joiner.follow("rtc", 8 * PERIOD, 0, 6)
    assert follow.actions[0, :, 0].tolist() == [1] * 2 + [2] * 10 + [0] * 4


@pytest.mark.parametrize("join", ["replace", *KINDS])
def test_only_averages_change_what_was_predicted(join):
    """Bit by bit."""
    joiner = Joiner(CONTRACT)
    for frame in (0, 4, 8):
        predicted = numbered(frame)
        assert joiner.join(join, predicted, 1) is predicted.actions


def test_the_way_may_change_between_two_chunks():
    """An average takes in what was predicted before it was asked for; rtc follows the average."""
    joiner = Joiner(CONTRACT)
    joiner.join("replace", chunk(0, 0), 0)
    joined = joiner.join("temporal_ensemble", chunk(4, 2), 0)
    assert 0.9 < joined[0, 0] < 1.0
    follow = joiner.follow("rtc", 8 * PERIOD, 0, 0)
    assert follow.actions[0, 0, 0] == pytest.approx(joined[4, 0])


def test_chunks_without_a_common_time_have_nothing_to_join():
    """After a long pause in one run of frames."""
    joiner = Joiner(CONTRACT)
    joiner.join("temporal_ensemble", chunk(0, 1), 0)
    assert joiner.follow("rtc", 100 * PERIOD, 1, 0) is None
    assert (joiner.join("temporal_ensemble", chunk(100, 2), 0)[:, MOVE] == 2).all()
