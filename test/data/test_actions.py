"""Which action belongs to which frame, and where a demonstration begins and ends."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from made_bags import CONTRACT, MS, NEXT_STATE, PERIOD, START, TEXT, trajectory
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.actions import Commands, next_state_actions

TIMES = START + np.arange(4) * PERIOD


def commands(*stamps):
    """Commands with these stamps; the n-th has n everywhere."""
    found = Commands(CONTRACT)
    for number, stamp in enumerate(stamps):
        found.push("/command", trajectory(stamp, [number] * 7), stamp + 5 * MS, life=0)
    return found


def test_a_frame_gets_the_first_command_at_or_after_it():
    """A command with the frame's own stamp is its action, one a nanosecond earlier is not."""
    actions, valid = commands(START - 1, START, START + MS).actions(TIMES[:1], life=0)
    assert valid.tolist() == [True]
    assert actions.tolist() == [[1.0] * 7]


def test_a_command_belongs_to_frames_of_less_than_a_period_before_it():
    """A command one period after a frame is the next frame's."""
    found = commands(START + PERIOD)
    actions, valid = found.actions(TIMES[:2], life=0)
    assert valid.tolist() == [False, True]
    assert found.refused == {"no command on /command within one frame": 1}
    actions, valid = commands(START + PERIOD - 1).actions(TIMES[:1], life=0)
    assert valid.tolist() == [True]


def test_a_command_belongs_to_the_frame_at_which_it_took_effect():
    """Each field by its own latency; a command's own stamp may be late, too."""
    text = TEXT.replace("kind: binary", "kind: binary, actuation_latency_s: 0.1")
    text = text.replace("shape: [7]", "shape: [7], observation_latency_s: 0.02")
    found = Commands(Contract.from_text(text))
    for number in range(8):
        stamp = START + number * PERIOD + 20 * MS
        found.push("/command", trajectory(stamp, [number] * 7), stamp, life=0)
    actions, valid = found.actions(START + np.arange(6) * PERIOD, life=0)
    assert valid.tolist() == [False, False, True, True, True, True]
    assert actions[2:, 0].tolist() == [2, 3, 4, 5]
    assert actions[2:, 6].tolist() == [-1, 1, 1, 1]


GRIPPERS = {
    "width": ("open_value: 0.08, closed_value: 0.0", 0.079, 0.002),
    "width by its cut": ("threshold: 0.04", 0.08, 0.0),
    "angle": ("threshold: 0.4, closed: above", 0.0, 0.8),
    "zero and one": ("open_value: 0, closed_value: 1", 0.0, 1.0),
    "one and zero": ("open_value: 1, closed_value: 0", 1.0, 0.0),
    "percent": ("threshold: 30, open_value: 0, closed_value: 100", 29.0, 31.0),
}


@pytest.mark.parametrize("said", GRIPPERS)
@pytest.mark.parametrize("record", ["commands", "next_state"])
def test_a_gripper_is_minus_one_open_and_plus_one_closed(said, record):
    """Whatever it is recorded as, and whether the action is commanded or derived."""
    keys, opened, closed = GRIPPERS[said]
    values = np.array([opened, closed, closed, opened])
    if record == "next_state":
        text = TEXT[: TEXT.index("  record:")] + "  record: next_state\n"
        text = text.replace("kind: binary", f"kind: binary, state: grip, {keys}")
        text = text.replace(
            "action:",
            "  grip: {topic: /g, type: std_msgs/msg/Float32MultiArray, shape: [1]}\naction:",
        )
        states = {"position": np.zeros((4, 3)), "orientation": np.tile([0, 0, 0, 1.0], (4, 1))}
        found = next_state_actions(Contract.from_text(text), {**states, "grip": values[:, None]})
        assert found[:, 6].tolist() == [1, 1, -1]
        return
    commands = Commands(Contract.from_text(TEXT.replace("kind: binary", f"kind: binary, {keys}")))
    for time, value in zip(TIMES, values, strict=True):
        commands.push("/command", trajectory(time, [0] * 6 + [value]), time, life=0)
    actions, valid = commands.actions(TIMES, life=0)
    assert valid.all() and actions[:, 6].tolist() == [-1, 1, 1, -1]


def test_commands_of_another_life_are_not_mixed_in():
    """After simulated time restarted, the same stamps mean other commands."""
    found = commands(START)
    found.push("/command", trajectory(START, [9] * 7), 2 * START, life=1)
    assert found.actions(TIMES[:1], life=0)[0][0, 0] == 0
    assert found.actions(TIMES[:1], life=1)[0][0, 0] == 9


def test_a_command_that_is_not_finite_is_no_action():
    """NaN in a command takes the frame out, with the reason."""
    found = Commands(CONTRACT)
    found.push("/command", trajectory(START, [np.nan] * 7), START, life=0)
    assert not found.actions(TIMES[:1], life=0)[1].any()
    assert "not finite" in next(iter(found.refused))


def test_next_state_actions_worked_out_by_hand():
    """Positions are subtracted; a turn about z after one about x is about the base's z."""
    x, z = Rotation.from_euler("x", 90, degrees=True), Rotation.from_euler("z", 90, degrees=True)
    states = {
        "position": np.array([[0, 0, 0], [1, 2, 3]], np.float32),
        "orientation": np.stack([x.as_quat(), (z * x).as_quat()]).astype(np.float32),
    }
    expected = [[1, 2, 3, 0, 0, np.pi / 2]]
    assert next_state_actions(NEXT_STATE, states) == pytest.approx(np.array(expected), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 6), min_size=2, max_size=6))
def test_following_next_state_actions_leads_through_the_states(poses):
    """Delta actions, applied one after the other in the base frame, give each state."""
    positions = np.array([p[:3] for p in poses])
    turns = Rotation.from_rotvec([p[3:] for p in poses])
    states = {"position": positions, "orientation": turns.as_quat()}
    actions = next_state_actions(NEXT_STATE, states).astype(np.float64)
    for i, action in enumerate(actions):
        assert positions[i] + action[:3] == pytest.approx(positions[i + 1], abs=1e-5)
        reached = Rotation.from_rotvec(action[3:]) * turns[i]
        assert (reached * turns[i + 1].inv()).magnitude() < 1e-5


def test_every_kind_of_absolute_action_is_the_next_state():
    """Joints, turns and positions are the next ones, a gripper closed below its threshold."""
    contract = Contract.from_text("""
name: kinds
rate_hz: 10
anchor: joints
observations:
  joints: {topic: /j, type: sensor_msgs/msg/JointState, names: [a, b]}
  turn: {topic: /p, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
  at: {topic: /p, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields:
    - {name: j, kind: joint_position, size: 2, state: joints}
    - {name: q, kind: quaternion, state: turn}
    - {name: v, kind: axis_angle, state: turn}
    - {name: p, kind: position, state: at}
    - {name: g, kind: binary, state: joints, threshold: 0.5}
    - {name: r, kind: rotation_6d, state: turn}
  record: next_state
""")
    turn = Rotation.from_rotvec([0, 0, 0.3]).as_quat()
    states = {
        "joints": np.array([[0, 0], [0.2, 7], [0.8, 8]]),
        "turn": np.array([[0, 0, 0, 1], turn, turn]),
        "at": np.array([[0, 0, 0], [1, 2, 3], [4, 5, 6]]),
    }
    rows = [np.cos(0.3), -np.sin(0.3), 0, np.sin(0.3), np.cos(0.3), 0]
    expected = [
        [0.2, 7, *turn, 0, 0, 0.3, 1, 2, 3, 1, *rows],
        [0.8, 8, *turn, 0, 0, 0.3, 4, 5, 6, -1, *rows],
    ]
    assert next_state_actions(contract, states) == pytest.approx(np.array(expected), abs=1e-6)
