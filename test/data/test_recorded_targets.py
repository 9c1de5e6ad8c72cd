"""Recorded targets, poses and joints, feed fields of any form; turns that cannot be are told."""

import numpy as np
import pytest
from made_bags import PERIOD, START, joint_state, pose

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data import remarks
from diffusion_policy_ros.data.actions import Commands
from diffusion_policy_ros.data.comparison import Comparison
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.policy.rotations import (
    apply_delta,
    axis_angle_to_quaternion,
    convert,
    quaternion_to_rotation_6d,
)

TEXT = """
name: arm
rate_hz: 20
anchor: position
observations:
  position: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  turn: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
action:
  fields:
    - {{name: move, kind: {position}, state: position{from_}}}
    - {{name: turn, kind: {rotation}, state: turn{from_}}}
  record:
    - {{topic: /target, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
    - {{topic: /target, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
"""
TIMES = START + PERIOD * np.arange(5)


def arm(position="position", rotation="quaternion", measured=False):
    """A robot whose target poses are recorded."""
    from_ = ", deltas_from: measured" if measured else ""
    return Contract.from_text(TEXT.format(position=position, rotation=rotation, from_=from_))


def recorded(contract, seed=0, lost=()):
    """Targets, what was measured, and the actions that are made of them."""
    random = np.random.default_rng(seed)
    positions, states = random.normal(size=(5, 3)), random.normal(size=(5, 3))
    turns, at = (convert(random.normal(size=(5, 3)), "axis_angle", "quaternion") for _ in "12")
    turns *= random.choice([-1.0, 1.0], (5, 1))
    commands = Commands(contract)
    for i, time_ns in enumerate(TIMES):
        if i not in lost:
            commands.push("/target", pose(time_ns, positions[i], turns[i]), time_ns, 0)
    measured = {"position": states, "turn": at}
    actions, valid = commands.actions(TIMES, 0, measured)
    assert np.flatnonzero(~valid).tolist() == list(lost)
    return positions, turns, measured, actions


@pytest.mark.parametrize("rotation", ["axis_angle", "rotation_6d"])
def test_a_target_pose_is_written_as_its_field_has_it(rotation):
    """Seven values are recorded, the fields have six or nine; no sign of a driver matters."""
    contract = arm("position", rotation)
    positions, turns, _, actions = recorded(contract)
    assert actions.shape == (5, contract.action_dim)
    np.testing.assert_allclose(actions[:, :3], positions, atol=1e-6)
    np.testing.assert_allclose(actions[:, 3:], convert(turns, "quaternion", rotation), atol=1e-6)


@pytest.mark.parametrize("lost", [(), (2,)])
def test_deltas_of_targets_lead_through_the_targets(lost):
    """Added up from the measured pose, as the player does; after a gap they begin there anew."""
    contract = arm("delta_position", "delta_axis_angle")
    positions, turns, measured, actions = recorded(contract, lost=lost)
    here, turn = measured["position"][0], measured["turn"][0]
    for i in range(5):
        if i in lost:
            here, turn = measured["position"][i + 1], measured["turn"][i + 1]
            continue
        here, turn = here + actions[i, :3], apply_delta(actions[i, 3:], turn)
        np.testing.assert_allclose(here, positions[i], atol=1e-5)
        rows = quaternion_to_rotation_6d(turn), quaternion_to_rotation_6d(turns[i])
        np.testing.assert_allclose(*rows, atol=1e-5)


def test_deltas_from_what_is_measured_begin_there_in_every_frame():
    """As robomimic's controllers add them."""
    contract = arm("delta_position", "delta_axis_angle", measured=True)
    positions, turns, measured, actions = recorded(contract)
    np.testing.assert_allclose(actions[:, :3], positions - measured["position"], atol=1e-6)
    led = quaternion_to_rotation_6d(apply_delta(actions[:, 3:], measured["turn"]))
    np.testing.assert_allclose(led, quaternion_to_rotation_6d(turns), atol=1e-5)


def test_recorded_joints_become_deltas_the_short_way_round():
    """From 3.1 rad to -3.1 it is 0.083 rad for a joint that goes round."""
    text = """
name: arm
rate_hz: 20
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
action:
  fields:
    - {name: arm, kind: delta_joint_position, size: 2, state: joints, wrap: [true, false]}
  record: {topic: /target, type: sensor_msgs/msg/JointState, names: [a, b]}
"""
    commands = Commands(Contract.from_text(text))
    targets = np.array([[3.1, 0.0], [-3.1, 0.5]])
    for time_ns, target in zip(TIMES, targets, strict=False):
        commands.push("/target", joint_state(time_ns, ["a", "b"], target), time_ns, 0)
    actions, _ = commands.actions(TIMES[:2], 0, {"joints": np.array([[3.0, 0.0], [3.0, 0.0]])})
    assert actions == pytest.approx(np.array([[0.1, 0.0], [2 * np.pi - 6.2, 0.5]]), abs=1e-5)


def test_one_stream_tells_the_targets_of_two_arms():
    """Each arm's become deltas, also behind a gripper: the second's went out as they were told."""
    names = ["grip", "l", "r"]
    text = """
name: arms
rate_hz: 20
anchor: left
observations:
  left: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [l]}
  right: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [r]}
action:
  fields:
    - {name: gripper, kind: scalar}
    - {name: left, kind: delta_joint_position, size: 1, state: left}
    - {name: right, kind: delta_joint_position, size: 1, state: right}
  record: {topic: /leader, type: sensor_msgs/msg/JointState, names: [grip, l, r]}
"""
    commands = Commands(Contract.from_text(text))
    for time_ns, target in zip(TIMES, ([0.5, 1.1, 2.1], [0.6, 1.2, 2.3]), strict=False):
        commands.push("/leader", joint_state(time_ns, names, target), time_ns, 0)
    states = {"left": np.ones((2, 1)), "right": np.full((2, 1), 2.0)}
    actions, _ = commands.actions(TIMES[:2], 0, states)
    assert actions == pytest.approx(np.array([[0.5, 0.1, 0.1], [0.6, 0.1, 0.2]]), abs=1e-5)


def test_deltas_of_targets_need_to_know_where_the_arm_is(tmp_path):
    """`contract check` says so, and so does a conversion of what was recorded before."""
    text = TEXT.format(position="delta_position", rotation="quaternion", from_="")
    text = text.replace(", state: position", "")
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    with pytest.raises(UserErrors, match="name the observation of where it is"):
        Contract.load(path)
    with pytest.raises(UserError, match="name what measures it as the field's state"):
        Commands(Contract.from_text(text))


def test_check_says_what_becomes_of_a_recorded_target(tmp_path, capsys):
    """All nine components by what they are made of."""
    path = tmp_path / "arm.yaml"
    path.write_text(TEXT.format(position="delta_position", rotation="rotation_6d", from_=""))
    assert main(["contract", "check", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "move.2 /target pose.position, as delta_position" in out
    assert "turn.5 /target pose.orientation, as rotation_6d" in out


def test_a_turn_of_more_than_a_radian_between_frames_is_told():
    """Once for each array; a quaternion's sign is none, that of axis-angle is named."""
    contract = arm("position", "axis_angle")
    still = np.tile([0.0, 0.0, 0.0, 1.0], (5, 1))
    flipping = still * np.array([[1], [-1], [1], [1], [-1]])
    down = np.array([[3.1, 0, 0], [-3.1, 0, 0], [3.1, 0, 0], [3.1, 0, 0], [3.1, 0, 0]])
    quick = axis_angle_to_quaternion([[0, 0, angle] for angle in (0, 0.1, 1.3, 1.4, 1.5)])

    def said(turn, commanded):
        comparison = Comparison(contract)
        actions = np.concatenate([np.zeros((5, 3)), commanded], axis=1)
        comparison.add({"position": np.zeros((5, 3)), "turn": turn}, actions)
        return list(comparison.remarks())

    none = np.zeros((5, 3))
    assert said(flipping, none) == []
    (line,) = said(quick, none)
    assert line == "turn turns by more than 1 rad between frames (1x): is that so?"
    (line,) = said(flipping, down)
    assert "turn as axis_angle jumps by 6.20 rad between frames in which it hardly turns" in line


def test_commands_that_are_told_in_another_frame_are_reported():
    """A twist of the tool's is not one of the base's, and a pose in the world none in the base."""
    for frame in ("base", ""):
        assert list(remarks.frames({"/target": frame}, arm())) == []
    said = list(remarks.frames({"/target": "tool0"}, arm()))
    assert "/target is told in 'tool0': give turn frame: tool0" in said
    unchecked = Contract.from_text(arm().text.replace("state:", "check_frame: false, state:"))
    assert list(remarks.frames({"/target": "tool0"}, unchecked)) == []
