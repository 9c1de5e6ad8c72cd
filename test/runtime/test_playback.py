"""Chunks become set-points by time, within limits."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.rotations import TO_QUATERNION, convert
from diffusion_policy_ros.runtime.commander import Commander
from diffusion_policy_ros.runtime.playback import Chunk, Playback

MS = 1_000_000
CONTRACT = Contract.load("mini_lift")
HOME = {
    "robot0_eef_pos": np.array([0.0, 0.0, 0.2]),
    "robot0_eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
}
LOOSE = Contract.from_text(CONTRACT.text.replace(", lead: 0.05", ""))


def steps(*xs, gripper=-1.0):
    """Actions that move along x by so many mm each."""
    return np.array([[x / 1000, 0, 0, 0, 0, 0, gripper] for x in xs])


def chunk(stamp_ms, *xs, **how):
    """A chunk of moves along x, in mm, 50 ms apart."""
    return Chunk(stamp_ms * MS, steps(*xs, **how), 50 * MS)


def x_mm(playback, time_ms, measured=HOME):
    """The commanded x at a time, mm."""
    return round(playback.at(time_ms * MS, measured).position[0] * 1000, 6)


def test_actions_are_executed_once_when_their_time_has_come():
    """Asking more often than the frame rate integrates nothing twice."""
    playback = Playback(LOOSE)
    playback.offer(chunk(1000, 1, 10, 100))
    assert [x_mm(playback, t) for t in (1000, 1010, 1049, 1050, 1099, 1100)] == [
        1,
        1,
        1,
        11,
        11,
        61,
    ]


def test_late_actions_are_dropped_by_time():
    """A chunk that arrives 100 ms late starts with its third action."""
    playback = Playback(LOOSE)
    assert playback.at(1000 * MS, HOME).holding == "no chunk yet"
    playback.offer(chunk(1000, 1, 2, 4, 8))
    assert x_mm(playback, 1100) == 4
    assert x_mm(playback, 1150) == 12


def test_a_newer_chunk_replaces_the_tail_and_no_slot_runs_twice():
    """An action of a time that the old chunk has executed is not executed again."""
    playback = Playback(LOOSE)
    playback.offer(chunk(1000, 1, 1, 1, 1))
    assert [x_mm(playback, t) for t in (1000, 1050)] == [1, 2]
    playback.offer(chunk(1050, 10, 10, 10))
    assert [x_mm(playback, t) for t in (1060, 1100, 1150)] == [2, 12, 22]


def test_it_holds_and_says_why():
    """Before a chunk, past its end, after an empty one, and when it is too old."""
    playback = Playback(LOOSE)
    assert playback.at(0, HOME).holding == "no chunk yet"
    playback.offer(chunk(1000, 5, 5))
    playback.at(1000 * MS, HOME)
    playback.at(1050 * MS, HOME)
    held = playback.at(1100 * MS, HOME)
    assert held.holding == "past the last action" and held.position[0] == pytest.approx(0.01)
    playback.offer(Chunk(1100 * MS, np.zeros((0, 7)), 50 * MS))
    assert playback.at(1150 * MS, HOME).holding == "told to hold"
    playback.offer(Chunk(1200 * MS, steps(*[1] * 100), 50 * MS))
    assert playback.at(2100 * MS, HOME).holding == ""
    assert playback.at(2250 * MS, HOME).holding == "the newest chunk has aged out"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_chunk_that_is_not_finite_is_rejected_whole(value):
    """The arm goes on with the previous chunk; the rejection is counted."""
    playback = Playback(LOOSE)
    playback.offer(chunk(1000, 1, 1, 1))
    bad = steps(1, 1, 1)
    bad[2, 4] = value
    assert playback.offer(Chunk(1050 * MS, bad, 50 * MS)) == "not finite"
    assert playback.rejected == {"not finite": 1}
    assert x_mm(playback, 1000) == 1


def test_chunks_of_another_size_or_older_are_rejected():
    """A stale or foreign chunk never replaces a good one."""
    playback = Playback(LOOSE)
    playback.offer(chunk(1000, 1))
    assert playback.offer(chunk(950, 1)) == "older than the one before"
    assert playback.offer(Chunk(1050 * MS, np.zeros((3, 6)), 50 * MS)) == "actions of another size"


def test_the_gripper_keeps_its_last_command_while_holding():
    """A hold does not open the hand."""
    playback = Playback(LOOSE)
    assert playback.at(0, HOME).gripper is None
    playback.offer(chunk(1000, 1, gripper=1.0))
    assert playback.at(1000 * MS, HOME).gripper == 1.0
    assert playback.at(1200 * MS, HOME).gripper == 1.0


def test_rotations_multiply_from_the_left():
    """A delta about the base's z axis turns a tilted tool about the base's z axis."""
    commander, tilted = Commander(LOOSE), Rotation.from_euler("x", 90, degrees=True)
    commander.anchor({**HOME, "robot0_eef_quat": tilted.as_quat()})
    after = commander.apply(np.array([0, 0, 0, 0, 0, 0.2, -1.0]), HOME)
    expected = Rotation.from_rotvec([0, 0, 0.2]) * tilted
    assert (Rotation.from_quat(after.quaternion) * expected.inv()).magnitude() < 1e-9


vectors = st.lists(st.floats(-2, 2), min_size=7, max_size=7)


@settings(max_examples=100, deadline=None)
@given(st.lists(vectors, min_size=1, max_size=8))
def test_limits_hold_whatever_the_network_says(actions):
    """No step, turn or target goes beyond what the contract allows."""
    commander, limits = Commander(CONTRACT), CONTRACT.action.limits
    before = commander.anchor(HOME)
    for action in actions:
        after = commander.apply(np.array(action), HOME)
        turn = Rotation.from_quat(after.quaternion) * Rotation.from_quat(before.quaternion).inv()
        assert turn.magnitude() <= limits.rotation + 1e-9
        assert np.linalg.norm(after.position - HOME["robot0_eef_pos"]) <= limits.lead + 1e-9
        assert (after.position >= np.array(limits.workspace_min) - 1e-9).all()
        before = after


def test_clamping_is_counted():
    """What limits did is told, by name."""
    commander = Commander(CONTRACT)
    commander.apply(np.array([1.0, 0, 0, 0, 0, 2.0, 1.0]), HOME)
    assert commander.clamped["translation"] == 1 and commander.clamped["rotation"] == 1


def test_absolute_actions_move_towards_the_target_within_the_limits():
    """Absolute kinds are limited by the distance of one action too."""
    text = CONTRACT.text.replace("delta_position", "position").replace(
        "delta_axis_angle", "axis_angle"
    )
    commander = Commander(Contract.from_text(text))
    after = commander.apply(np.array([0.02, 0, 0.2, 0, 0, 0.1, 1.0]), HOME)
    assert after.position == pytest.approx([0.02, 0, 0.2])
    assert Rotation.from_quat(after.quaternion).as_rotvec() == pytest.approx([0, 0, 0.1])
    far = commander.apply(
        np.array([0.29, 0, 0.2, 0, 0, 0.1, 1.0]), {**HOME, "robot0_eef_pos": after.position}
    )
    assert far.position[0] == pytest.approx(0.07)


def test_joint_targets_are_clipped():
    """Joint limits of the contract hold."""
    contract = Contract.from_text("""
name: arm
rate_hz: 20
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
action:
  fields: [{name: arm, kind: joint_position, size: 2, state: joints}]
  record: next_state
  limits: {joint_min: [-1, -1], joint_max: [1, 1]}
""")
    commander = Commander(contract)
    assert contract.action_names == ["a", "b"]
    assert commander.apply(np.array([0.5, 3.0]), {"joints": np.zeros(2)}).joints.tolist() == [
        0.5,
        1.0,
    ]


ABSOLUTE = """
name: absolute
rate_hz: 20
anchor: at
observations:
  at: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  turn: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
action:
  fields:
    - {name: at, kind: position, state: at}
    - {name: turn, kind: KIND, state: turn}
  record: next_state
  limits: {rotation: 0.3}
"""


def absolute(kind):
    """A robot whose actions are absolute poses, with orientations of this kind."""
    return Contract.from_text(ABSOLUTE.replace("KIND", kind))


turns = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


@pytest.mark.parametrize("kind", TO_QUATERNION)
@settings(max_examples=50, deadline=None)
@given(turns, turns)
def test_absolute_orientations_are_approached_on_the_shortest_way(kind, start, goal):
    """Each kind leads to the same orientation, by at most the limit each time."""
    here, there = Rotation.from_rotvec(start), Rotation.from_rotvec(goal)
    commander = Commander(absolute(kind))
    commander.anchor({"at": np.zeros(3), "turn": here.as_quat()})
    action = np.concatenate([np.zeros(3), convert(there.as_quat(), "quaternion", kind)])
    distance = (there * here.inv()).magnitude()
    for _ in range(int(distance / 0.3) + 1):
        set_point = commander.apply(action, {})
        left = (there * Rotation.from_quat(set_point.quaternion).inv()).magnitude()
        assert left == pytest.approx(max(0.0, distance - 0.3), abs=1e-6)
        distance = left
    assert left < 1e-6


@pytest.mark.parametrize("kind", ["quaternion", "rotation_6d"])
def test_a_chunk_that_tells_no_rotation_is_rejected(kind):
    """Zeros in place of an orientation never reach the arm, nor stop its controller."""
    playback = Playback(absolute(kind))
    actions = np.zeros((2, 3 + len(convert([0, 0, 0, 1], "quaternion", kind))))
    assert playback.offer(Chunk(0, actions, 50 * MS)) == "no rotation"
    assert playback.rejected == {"no rotation": 1}
    actions[:, 3:] = convert([0, 0, 0, 1], "quaternion", kind)
    assert playback.offer(Chunk(0, actions, 50 * MS)) == ""
