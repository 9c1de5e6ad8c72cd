"""Messages of types that nobody knows but a bag, or a file that the contract names."""

import json

import numpy as np
import pytest
from made_bags import MS, PERIOD, START, header
from mcap.writer import Writer

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data import definitions
from diffusion_policy_ros.data.bags import BagWriter, message_types, open_bag, serialize
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.mcap_file import Schema

STATE = """std_msgs/Header header
float64[16] o_t_ee
bool in_contact
string[] name
float32[] load
Finger[2] fingers
string mode
================================================================================
MSG: arm_msgs/Finger
float64 width
geometry_msgs/Vector3 force
"""
KIND = "arm_msgs/msg/ArmState"
TEXT = """
name: custom
rate_hz: 20
anchor: position
observations:
  position: {topic: /arm, type: arm_msgs/msg/ArmState, field: 'o_t_ee[12:15]', quantity: position}
  contact: {topic: /arm, type: arm_msgs/msg/ArmState, field: in_contact, shape: [1]}
  load: {topic: /arm, type: arm_msgs/msg/ArmState, field: 'load[name=elbow]'}
  width: {topic: /arm, type: arm_msgs/msg/ArmState, field: 'fingers[1].width', shape: [1]}
  force: {topic: /arm, type: arm_msgs/msg/ArmState, field: 'fingers[0].force', shape: [3]}
action:
  fields:
    - name: way
      kind: delta_position
      state: position
      send: {topic: /way, type: geometry_msgs/msg/TwistStamped}
  record: next_state
"""


@pytest.fixture
def known(monkeypatch):
    """As a recorder has it, whose robot's packages are installed."""
    monkeypatch.setattr(definitions, "_NAMED", {})
    definitions.name_type(KIND, STATE)


def state(ns, i):
    """One message."""
    finger, vector = (
        message_types("arm_msgs/msg/Finger"),
        message_types("geometry_msgs/msg/Vector3"),
    )
    fingers = [finger(width=w, force=vector(x=1.0, y=2.0, z=float(i))) for w in (0.01, 0.02)]
    pose = np.arange(16.0)
    pose[12:15] = (0.01 * i, 0.5, 0.25)
    return message_types(KIND)(
        header=header(ns),
        o_t_ee=pose,
        in_contact=i % 2 == 1,
        name=["wrist", "elbow"],
        load=np.array([1.0, 2.0 + i], np.float32),
        fingers=fingers,
        mode="running",
    )


@pytest.fixture
def bag(tmp_path, known, monkeypatch):
    """A recording of the type, which afterwards nobody knows but the bag."""
    monkeypatch.setattr(definitions, "message_types", message_types)
    definitions.name_type("arm_msgs/msg/Finger", "float64 width\ngeometry_msgs/Vector3 force\n")
    with BagWriter(tmp_path / "bag", {"/arm": KIND}) as writer:
        for i in range(12):
            ns = START + i * PERIOD
            writer.write("/arm", ns + MS, serialize(KIND, state(ns, i)))
    definitions._NAMED.clear()
    return tmp_path / "bag"


def test_a_bags_own_definitions_are_enough(bag, tmp_path):
    """Slices, flags, picks by name, nested arrays."""
    contract = Contract.from_text(TEXT)
    report = convert([bag], contract, tmp_path / "data", options=Options(keep_idle=True))
    assert report.bags[0].status == "kept", report.bags[0].reason
    found = Dataset(tmp_path / "data").episode(0)
    assert found["position"][3] == pytest.approx([0.03, 0.5, 0.25])
    assert found["contact"][:4, 0].tolist() == [0, 1, 0, 1]
    assert found["load"][:3, 0].tolist() == [2, 3, 4]
    assert found["width"][0] == pytest.approx([0.02])
    assert found["force"][5].tolist() == [1, 2, 5]


def test_a_file_that_is_not_here_is_not_needed_for_a_bag_that_has_the_definition(bag, tmp_path):
    """It was there where the bag was recorded."""
    text = TEXT.replace("ArmState,", "ArmState, definition: ArmState.msg,")
    report = convert([bag], Contract.from_text(text), tmp_path / "data", options=Options(True))
    assert report.bags[0].status == "kept"


def test_a_missing_field_refuses_frames_by_name(bag, tmp_path):
    """At conversion, where nothing was known of the type before."""
    contract = Contract.from_text(TEXT.replace("in_contact", "in_kontact"))
    with pytest.raises(Exception, match="there is no 'in_kontact'; did you mean 'in_contact'?"):
        convert([bag], contract, tmp_path / "data")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("in_contact", "mode", "observations.contact.field: mode is text; name a number"),
        ("o_t_ee[12:15]", "o_t_ee[14:17]", "o_t_ee has 16 values, not 17"),
        (
            "load[name=elbow]",
            "loads[name=elbow]",
            "there is no 'loads' in it; did you mean 'load'",
        ),
        ("fingers[1].width", "fingers[2].width", "fingers has 2 values, not 3"),
        ("shape: [3]", "shape: [4]", "has 3 values, not 4; write shape: [3]"),
        ("field: in_contact", "field: 'in_contact[0]'", "in_contact is no array"),
    ],
)
def test_check_reads_the_file_that_the_contract_names(old, new, expected, tmp_path, capsys, known):
    """A path into text, a slice beyond an array, a field that is not there."""
    definitions._NAMED.clear()
    (tmp_path / "ArmState.msg").write_text(STATE)
    text = TEXT.replace("ArmState,", f"ArmState, definition: {tmp_path / 'ArmState.msg'},", 1)
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    assert main(["contract", "check", str(path)]) == 0
    path.write_text(text.replace(old, new))
    assert main(["contract", "check", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_check_says_what_it_cannot_know(tmp_path, capsys, known):
    """A type that is only on the robot; a misspelt path in one that everybody knows is refused."""
    definitions._NAMED.clear()
    path = tmp_path / "arm.yaml"
    path.write_text(TEXT)
    assert main(["contract", "check", str(path)]) == 0
    assert "note: observations.position.type: the definition of arm_msgs/msg/ArmState is not" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("name", "stamped"), [("header", True), ("head", False)])
def test_a_header_of_another_name_is_no_stamp(name, stamped, known):
    """A node takes it for a field like others, by the definition of a file; so does a bag."""
    text = STATE.replace("Header header", f"Header {name}")
    definitions.name_type(KIND, text)
    assert definitions.is_stamped(KIND) is stamped
    assert definitions.is_stamped(KIND, Schema(KIND, "ros2msg", text)) is stamped


def test_a_json_channel_does_not_refuse_the_bag(bag, tmp_path):
    """It is left aside, and said."""
    path = tmp_path / "mixed.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2")
        schema = writer.register_schema("std_msgs/msg/Float64", "ros2msg", b"float64 data\n")
        data = serialize("std_msgs/msg/Float64", message_types("std_msgs/msg/Float64")(data=2.0))
        numbers = writer.register_channel("/number", "cdr", schema)
        other = writer.register_schema("note", "jsonschema", b"{}")
        notes = writer.register_channel("/notes", "json", other)
        writer.add_message(numbers, 5, data, 5)
        writer.add_message(notes, 6, json.dumps({"a": 1}).encode(), 6)
        writer.finish()
    mixed = open_bag(path)
    assert [(t, m.data) for t, _, m in mixed.messages()] == [("/number", 2.0)]
    assert mixed.notes == ["/notes is encoded as 'json': left aside"]
