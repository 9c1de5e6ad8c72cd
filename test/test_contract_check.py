"""What contradicts itself in a contract is refused by name, though every size fits."""

import pytest

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserErrors

POSE, TWIST = "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/TwistStamped"
JOINTS = "sensor_msgs/msg/JointState"
TEXT = """
name: arm
rate_hz: 10
anchor: position
observations:
  position: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  orientation: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b, c, d]}
action:
  fields:
    - {name: arm, kind: KIND, state: STATE}
  record: {topic: /command, type: TYPE}
"""


def written(tmp_path, kind, state, command, text=TEXT):
    """The contract's file."""
    path = tmp_path / "arm.yaml"
    path.write_text(text.replace("KIND", kind).replace("STATE", state).replace("TYPE", command, 1))
    return path


WRONG = {
    "a twist as a position": ("position", "position", f"{TWIST}, field: twist.linear"),
    "linear as a turn": ("delta_axis_angle", "orientation", f"{TWIST}, field: twist.linear"),
    "angular as a way": ("delta_position", "position", f"{TWIST}, field: twist.angular"),
    "joints as a quaternion": ("quaternion", "orientation", f"{JOINTS}, names: [a, b, c, d]"),
    "a quaternion as joints": (
        "joint_position, size: 4",
        "joints",
        f"{POSE}, field: pose.orientation",
    ),
    "efforts as joints": (
        "joint_position, size: 4",
        "joints",
        f"{JOINTS}, field: effort, names: [a, b, c, d]",
    ),
    "joints in another order": (
        "joint_position, size: 4",
        "joints",
        f"{JOINTS}, names: [b, a, c, d]",
    ),
    "joints as a state of a turn": (
        "quaternion",
        "joints",
        f"{POSE}, field: pose.orientation",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_command_that_cannot_be_what_its_field_is_is_refused(case, tmp_path, capsys):
    """By `contract check`, in one line; a bag that was recorded so can still be looked into."""
    path = written(tmp_path, *WRONG[case])
    assert main(["contract", "check", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "action.record.0" in line or "action.fields.0.state" in line
    assert Contract.from_text(path.read_text()).action_dim


RIGHT = {
    "a pose": ("position", "position", f"{POSE}, field: pose.position"),
    "a turn": ("quaternion", "orientation", f"{POSE}, field: pose.orientation"),
    "a target pose as a delta": (
        "delta_position",
        "position",
        f"{POSE}, field: pose.position",
    ),
    "a twist": ("delta_position", "position", f"{TWIST}, field: twist.linear, scale: [0.1]"),
    "joints": ("joint_position, size: 4", "joints", f"{JOINTS}, names: [a, b, c, d]"),
    "a bare array": ("delta_position", "position", "std_msgs/msg/Float64MultiArray, shape: [3]"),
    "a trajectory": (
        "joint_position, size: 4",
        "joints",
        "trajectory_msgs/msg/JointTrajectory, names: [a, b, c, d]",
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_fits_or_says_nothing_of_itself_is_accepted(case, tmp_path):
    """Among them the cures that refusals tell."""
    assert Contract.load(written(tmp_path, *RIGHT[case])).action_dim


def test_the_cure_of_a_wrong_kind_is_accepted(tmp_path):
    """A twist is told to be a delta, which it may be."""
    with pytest.raises(UserErrors, match="give arm a kind that it is: delta_position"):
        Contract.load(written(tmp_path, *WRONG["a twist as a position"]))


def test_check_says_which_recorded_value_feeds_which_component(tmp_path, capsys):
    """By joint, by place, with its scale, and where a gripper is cut."""
    text = """
name: arm
rate_hz: 10
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
action:
  fields:
    - {name: arm, kind: joint_position, size: 2, state: joints}
    - {name: grip, kind: binary, open_value: 0.08, closed_value: 0}
  record:
    - {topic: /command, type: sensor_msgs/msg/JointState, names: [a, b], scale: [0.1, 1.0]}
    - {topic: /grip, type: std_msgs/msg/Float32MultiArray, shape: [1]}
"""
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    assert main(["contract", "check", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a /command position[a] * 0.1 b /command position[b] grip /grip data[0]" in out
    assert "data[0], closed below 0.04" in out
    derived = text[: text.index("  record:")] + "  record: next_state\n"
    path.write_text(derived.replace("kind: binary", "kind: binary, state: joints"))
    assert main(["contract", "check", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "b joints[b] one frame later" in out and "grip joints one frame later, closed be" in out


@pytest.mark.parametrize(
    ("crop", "refused"),
    [([0, 80, 480, 480], False), ([0, 161, 480, 480], True), ([1, 0, 480, 480], True)],
)
def test_a_crop_beyond_the_picture_is_refused(crop, refused):
    """Before every bag is."""
    text = TEXT.replace("anchor: position", "anchor: eye").replace(
        "observations:",
        "observations:\n  eye: {topic: /eye, type: sensor_msgs/msg/Image, shape: [96, 96, 3], "
        f"source_size: [480, 640], crop: {crop}}}",
    )
    text = text.replace("KIND", "position").replace("STATE", "position")
    text = text.replace("TYPE", f"{POSE}, field: pose.position", 1)
    if not refused:
        assert Contract.from_text(text)
        return
    with pytest.raises(UserErrors, match=r"crop: .* is beyond a picture of \[480, 640\]"):
        Contract.from_text(text)
