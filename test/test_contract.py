"""The contract: what it accepts, and that every mistake is named with its key, line and cure."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from diffusion_policy_ros.contract import MESSAGE_TYPES, ActionField, Contract, Limits, Stream
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.observe.codecs import DECODERS
from diffusion_policy_ros.shipped import config_names, config_path

MINI_LIFT = config_path("contracts", "mini_lift").read_text()


def mistakes(text):
    """Each mistake of a contract on a line of its own."""
    with pytest.raises(UserErrors) as caught:
        Contract.from_text(text, "arm.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", config_names("contracts"))
def test_shipped_contracts_are_valid(name):
    """Every shipped contract loads by its name."""
    assert Contract.load(name).name == name


def test_mini_lift_has_seven_named_action_components():
    """7-D actions: translation, rotation, gripper."""
    contract = Contract.load("mini_lift")
    assert contract.action_dim == 7
    assert contract.action_names[-2:] == ["rotation.2", "gripper"]
    assert contract.action.slices["rotation"] == slice(3, 6)
    assert contract.topics["/eef_pose"][1].shape == (4,)
    assert contract.recorded_topics["/eef_command"] == "trajectory_msgs/msg/JointTrajectory"


@pytest.mark.parametrize("task", ["can", "square"])
def test_robomimic_contracts_have_the_datasets_sizes(task):
    """Agentview and eye-in-hand 84x84, position 3, quaternion 4, gripper 2; action 7."""
    contract = Contract.load(f"robomimic_{task}")
    shapes = {key: stream.shape for key, stream in contract.observations.items()}
    assert list(shapes.values()) == [(84, 84, 3), (84, 84, 3), (3,), (4,), (2,)]
    assert contract.action_dim == 7


def test_all_mistakes_are_reported_at_once_with_line_and_cure():
    """Three mistakes in three places: three lines, in the file's order."""
    text = MINI_LIFT.replace("rate_hz", "rate_hs").replace("[84, 84, 3]", "[84, many, 3]", 1)
    lines = mistakes(text.replace("field: pose.position", "field: pose.positions"))
    assert any("unknown key; did you mean 'rate_hz'?" in line for line in lines)
    assert any("shape.1: expected a whole number, got 'many'" in line for line in lines)
    assert any("has no 'pose.positions'; did you mean 'pose.position'?" in line for line in lines)
    numbers = [int(re.match(r"arm\.yaml:(\d+)", line)[1]) for line in lines]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rate_hz: 20", "rate_hz:\t20\n\tx: 1", "tab"),
        ("rate_hz: 20", "rate_hz: 20\nrate_hz: 30", "stands twice"),
        ("rate_hz: 20", "rate_hz: fast", "expected a number, got 'fast'"),
        ("rate_hz: 20", "rate_hz: 0", "out of range"),
        ("rate_hz: 20", "rate_hz: .nan", "expected a number"),
        ("translation: 0.05", "translation: -1", "-1.0 is out of range; use 0.0 or more"),
        ("anchor: agentview_image", "anchor: agent_view_image", "did you mean 'agentview_image'?"),
        (
            "sensor_msgs/msg/JointState",
            "sensor_msgs/JointState",
            "did you mean 'sensor_msgs/msg/JointState'?",
        ),
        ("shape: [7]", "shape: [6]", "gives 6 values, the fields need 7"),
        ("kind: binary", "kind: boolean", "not a valid choice"),
        ("topic: /eef_command", "topic: /eef_pose", "is geometry_msgs/msg/PoseStamped elsewhere"),
        ("state: robot0_eef_quat", "state: robot0_eef_pos", "has 3 values, rotation needs 4"),
        (
            "kind: binary",
            "kind: joint_position, size: 3, state: robot0_gripper_qpos",
            "size: 'robot0_gripper_qpos' has 2 values, gripper needs 3; set size: 2",
        ),
        ("kind: delta_axis_angle", "kind: rotation_6D", "did you mean 'rotation_6d'?"),
        ("kind: delta_axis_angle", "kind: rotation_6d", "gives 7 values, the fields need 10"),
        (
            "workspace_min: [-0.3, -0.3, 0.0]",
            "workspace_min: [0.4, -0.3, 0.0]",
            "above the maximum",
        ),
        ("names: [left, right]", "names: [left, left]", "stands twice"),
        ("topic: /agentview/image_raw", "topic: /agentview//image-raw", "is no topic name"),
        ("topic: /agentview/image_raw", "topic: /1st/image_raw", "is no topic name"),
        ("lead: 0.05", "lead: 0.05, velocity: 0", "out of range"),
        ("lead: 0.05", "lead: 0.05, veloctiy: 1", "did you mean 'velocity'?"),
        ("lead: 0.05", "lead: 0.05, on_stale: wait", "not a valid choice"),
        ("lead: 0.05", "lead: 0.05, joint_velocity: [1, 1]", "2 numbers for 0 joints"),
        ("lead: 0.05", "lead: 0.05, joint_jump: [-1]", "is not above zero"),
        ("lead: 0.05", "lead: 0.05, joint_velocity: 0.5", "write it as [0.5], or [a, b, c] of"),
        ("kind: binary", "kind: binary, actuation_latency_s: -1", "out of range"),
        (
            "field: pose.position",
            "field: pose.position, observation_latency_s: 0.1",
            "/eef_pose has 0.1 elsewhere",
        ),
    ],
)
def test_a_mistake_is_named(old, new, expected):
    """One mistake, its words."""
    assert old in MINI_LIFT
    assert any(expected in line for line in mistakes(MINI_LIFT.replace(old, new)))


def test_an_empty_file_is_told_what_it_should_have():
    """The keys of what was to be read, whichever kind of file it is."""
    (line,) = mistakes("")
    assert "the file is empty; write its keys: name, rate_hz, anchor" in line


@pytest.mark.parametrize(
    "text", ["", "- a list", "a: &a [*a]", "x: !!python/object:os.system 1", "\x00", "{", "'"]
)
def test_what_is_no_contract_is_refused_in_words(text):
    """Whatever the file holds, a user's error comes out."""
    assert mistakes(text)


@pytest.mark.parametrize(
    "value",
    ["2024-13-45", "!!int abc", "0x_", "!!bool maybe", "!!binary a#", "!unknown x", ".nan"],
)
def test_a_value_that_is_not_what_it_looks_like_is_one_mistake(value):
    """A date that is none, a tag that does not fit: one line that shows it, at its line."""
    found = mistakes(MINI_LIFT.replace("rate_hz: 20", f"rate_hz: {value}"))
    assert len(found) == 1 and "rate_hz: expected a number, got " in found[0]


def test_a_missing_file_names_the_shipped_contracts(tmp_path):
    """The cure lists what could have been meant."""
    with pytest.raises(UserError, match=r"no such contract; .*mini_lift"):
        Contract.load(tmp_path / "nothing.yaml")


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    """Permissions are named as the reason."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: open_forbidden())
    with pytest.raises(UserError, match="may not be read"):
        Contract.load(tmp_path / "mine.yaml")


def open_forbidden():
    """As the system refuses a file of somebody else."""
    raise PermissionError(13, "Permission denied")


def test_the_hash_is_of_the_meaning():
    """Comments and layout change nothing; a value or the order of observations does."""
    contract = Contract.from_text(MINI_LIFT)
    assert (
        Contract.from_text("# note\n" + MINI_LIFT.replace("rate_hz: 20", "rate_hz:  20.0")).hash
        == contract.hash
    )
    other = Contract.from_text(MINI_LIFT.replace("rate_hz: 20", "rate_hz: 10"))
    assert other.hash != contract.hash and contract.difference(other) == "rate_hz"
    lines = MINI_LIFT.splitlines()
    first = next(i for i, line in enumerate(lines) if "robot0_eef_pos:" in line)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    swapped = Contract.from_text("\n".join(lines))
    assert swapped.hash != contract.hash and "order" in contract.difference(swapped)


HASHES = {
    "example_arm": "2b727caf6a4b23e0",
    "mini_lift": "3fbd4d36d95973f4",
    "mini_lift_state": "9737ce655226ff25",
    "robomimic_can": "55e7d2e8807c77d8",
    "robomimic_can_lowdim": "70f08fb35d945ad8",
    "robomimic_square": "ce2c8ba2be9248f8",
    "robomimic_square_lowdim": "e64b242977003bce",
}


@pytest.mark.parametrize("name", HASHES)
def test_keys_that_came_later_leave_old_recordings_valid(name):
    """Bags, datasets and checkpoints of the first release hold these hashes."""
    assert Contract.load(name).hash == HASHES[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lead: 0.05", "lead: 0.05, velocity: 0.2"),
        ("lead: 0.05", "lead: 0.05, on_stale: stop"),
        ("kind: binary", "kind: binary, actuation_latency_s: 0.1"),
    ],
)
def test_a_later_key_changes_the_hash_where_it_is_used(old, new):
    """Two robots with other limits or latencies are not the same robot."""
    assert old in MINI_LIFT
    used = Contract.from_text(MINI_LIFT.replace(old, new))
    assert used.hash != Contract.from_text(MINI_LIFT).hash


def test_every_key_is_explained_in_the_example():
    """Whoever copies the example finds every key in it, if only in a comment."""
    text = config_path("contracts", "example_arm").read_text()
    for part in (Stream, ActionField, Limits):
        keys = {f.name for f in dataclasses.fields(part) if not f.metadata.get("derived")}
        assert [key for key in keys if f"{key}:" not in text] == []


def test_every_message_type_has_a_decoder():
    """The contract accepts exactly the types that can be read."""
    assert MESSAGE_TYPES.keys() == DECODERS.keys()


@given(st.text(max_size=200))
def test_any_text_is_a_contract_or_a_users_error(text):
    """No text ends in a traceback."""
    with pytest.raises(UserError):
        Contract.from_text(text)


@given(st.integers(0, len(MINI_LIFT) - 1), st.text(max_size=3))
def test_any_small_edit_is_a_contract_or_a_users_error(place, edit):
    """A typo anywhere is survived."""
    try:
        Contract.from_text(MINI_LIFT[:place] + edit + MINI_LIFT[place + 1 :])
    except UserError as error:
        assert str(error)
