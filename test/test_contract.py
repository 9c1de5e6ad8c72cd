"""The contract: what it accepts, and that every mistake is named with its key, line and cure."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from diffusion_policy_ros.contract import (
    MESSAGE_TYPES,
    ActionField,
    Contract,
    Limits,
    Stream,
    same_meaning,
)
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
        ("kind: binary", "kind: binary, closed: above", "of what?; give threshold:"),
        ("kind: binary", "kind: binary, open_value: 1", "give both open_value and closed_value"),
        ("kind: binary", "kind: binary, open_value: 1, closed_value: 1", "is that of open, too"),
        (
            "kind: binary",
            "kind: binary, open_value: 1, closed_value: 0, closed: above",
            "contradicts open_value and closed_value",
        ),
        (
            "kind: binary",
            "kind: binary, open_value: 1, closed_value: 0, threshold: 2",
            "is not between open_value and closed_value",
        ),
        ("kind: delta_position", "kind: delta_position, closed: above", "neither open nor closed"),
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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("010", "rate_hz: YAML 1.1 takes '010' for 8; write it in decimal"),
        ("1:30", "rate_hz: YAML 1.1 takes '1:30' for 90; write it in decimal"),
        ("1:30.5", "rate_hz: YAML 1.1 takes '1:30.5' for 90.5; write it in decimal"),
        ("1" + "0" * 310, "rate_hz: expected a number, got '1000"),
        ("0" + "7" * 5000, "rate_hz: expected a number, got '0777"),
    ],
)
def test_numbers_that_are_not_what_people_take_them_for_are_refused(value, expected):
    """Octal, of base 60, or beyond all counting; what says ten is ten."""
    (line,) = mistakes(MINI_LIFT.replace("rate_hz: 20", f"rate_hz: {value}"))
    assert expected in line
    for ten in ("10", "1e1", "0x0a", "010.0", "1_0"):
        assert (
            Contract.from_text(MINI_LIFT.replace("rate_hz: 20", f"rate_hz: {ten}")).rate_hz == 10
        )


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
    "example_arm": "m4adb5a593d7429b1",
    "mini_lift": "m4e68ca199d15fc15",
    "mini_lift_state": "m4101f8403442d8ea",
    "robomimic_can": "m1ef58654078f6de0",
    "robomimic_can_lowdim": "m1ab3e57e6ad981c9",
    "robomimic_square": "m3bdae9a00a526c70",
    "robomimic_square_lowdim": "mab715892343c3455",
}


@pytest.mark.parametrize("name", HASHES)
def test_keys_to_come_leave_what_was_recorded_and_trained_valid(name):
    """Bags, datasets and checkpoints hold these hashes."""
    assert Contract.load(name).hash == HASHES[name]


def test_hashes_of_before_are_not_held_against_a_contract():
    """They were of topics and limits as well; whether the text was edited cannot be told."""
    ours = Contract.load("mini_lift").hash
    assert same_meaning(ours, "3fbd4d36d95973f4") and same_meaning(ours, ours)
    assert not same_meaning(ours, Contract.load("mini_lift_state").hash)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("lead: 0.05", "lead: 0.06", "action.limits.lead"),
        ("topic: /eef_command", "topic: /command", "action.record.0.topic"),
        (
            "topic: /agentview/image_raw, type: sensor_msgs/msg/Image",
            "topic: /front/compressed, type: sensor_msgs/msg/CompressedImage",
            "observations.agentview_image.topic, observations.agentview_image.type",
        ),
        ("kind: binary", "kind: binary, actuation_latency_s: 0.1", "actuation_latency_s"),
        ("max_age_s: 0.1", "max_age_s: 0.2", "observations.robot0_eef_pos.max_age_s"),
        ("anchor: agentview_image", "anchor: robot0_eef_pos", "anchor"),
        (
            "type: geometry_msgs/msg/PoseStamped, field: pose.position",
            "type: geometry_msgs/msg/TransformStamped, field: transform.translation",
            "observations.robot0_eef_pos.type, observations.robot0_eef_pos.field",
        ),
    ],
)
def test_the_cell_is_not_of_the_meaning(old, new, key):
    """Topics, types, fields, limits, latencies: another robot, the same network."""
    assert old in MINI_LIFT
    contract = Contract.from_text(MINI_LIFT)
    text = MINI_LIFT.replace(old, new)
    other = Contract.from_text(
        text.replace(
            "topic: /eef_pose, type: geometry_msgs/msg/PoseStamped",
            "topic: /turn, type: geometry_msgs/msg/PoseStamped",
        )
        if "Transform" in new
        else text
    )
    assert other.hash == contract.hash and contract.difference(other) == ""
    assert key in ", ".join(contract.cell_difference(other))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("kind: delta_position", "kind: position", "action.fields.0.kind"),
        ("kind: binary, frame: base", "kind: binary, frame: tool", "action.fields.2.frame"),
        ("names: [left, right]", "names: [right, left]", "robot0_gripper_qpos.names"),
        (
            "field: position, names",
            "field: velocity, names",
            "observations.robot0_gripper_qpos.quantity",
        ),
        ("shape: [84, 84, 3]", "shape: [84, 84, 1]", "observations.agentview_image.shape"),
    ],
)
def test_the_meaning_is_hashed(old, new, key):
    """Kinds, frames, joints, quantities and sizes: another robot."""
    assert old in MINI_LIFT
    contract, other = (Contract.from_text(t) for t in (MINI_LIFT, MINI_LIFT.replace(old, new)))
    assert other.hash != contract.hash and key in contract.difference(other)
    assert key not in ", ".join(contract.cell_difference(other))


def test_every_key_is_explained_in_the_example():
    """Whoever copies the example finds every key in it, if only in a comment."""
    text = config_path("contracts", "example_arm").read_text()
    for part in (Stream, ActionField, Limits):
        keys = {f.name for f in dataclasses.fields(part) if not f.metadata.get("derived")}
        assert [key for key in keys if f"{key}:" not in text] == []


def test_what_has_a_decoder_of_its_own_is_known_to_the_contract():
    """All others are read by the path of their field."""
    assert DECODERS.keys() <= MESSAGE_TYPES.keys()
    special = {name for name, known in MESSAGE_TYPES.items() if known.image}
    assert special <= DECODERS.keys()


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
