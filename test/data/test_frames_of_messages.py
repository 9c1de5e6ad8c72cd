"""The tf frame of states and commands is compared with the contract's."""

import pytest
from made_bags import CONTRACT, TEXT, demonstration, write_bag

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.history import History, Refused

FRAMED = TEXT.replace("kind: delta_position", "kind: delta_position, frame: base_link").replace(
    "kind: delta_axis_angle", "kind: delta_axis_angle, frame: base_link"
)


def told_in(topic, frame, frames=20):
    """A demonstration whose messages of a topic are told in a frame."""
    for name, ns, msg in demonstration(frames):
        if name in ("/pose", "/command"):
            msg.header.frame_id = frame if name == topic else "base_link"
        yield name, ns, msg


def converted(tmp_path, text, messages):
    """The report of a bag."""
    contract = Contract.from_text(text)
    bag = write_bag(tmp_path / "bag", messages, contract)
    return convert([bag], contract, tmp_path / "data", options=Options(keep_idle=True)).bags[0]


@pytest.mark.parametrize("frame", ["base_link", "/base_link", ""])
def test_the_contracts_frame_is_accepted(frame, tmp_path):
    """As tf1 wrote it, too; a message that says none is believed."""
    assert converted(tmp_path, FRAMED, told_in("/pose", frame)).status == "kept"


def test_a_pose_in_the_world_is_refused(tmp_path):
    """By name, in a bag and live, in the words of both frames."""
    with pytest.raises(UserError, match="it is told in 'world', the contract says 'base_link'"):
        converted(tmp_path, FRAMED, told_in("/pose", "world"))
    history = History(Contract.from_text(FRAMED), 1)
    events = [
        e
        for t, ns, m in told_in("/pose", "world")
        if t != "/command"
        for e in history.push(t, m, ns)
    ]
    assert {type(event) for event in events} == {Refused}


def test_the_cure_is_accepted(tmp_path):
    """A stream may have a frame of its own name."""
    cured = FRAMED.replace("field: pose.", "frame_id: world, field: pose.")
    assert converted(tmp_path, cured, told_in("/pose", "world")).status == "kept"


def test_a_twist_of_the_tool_is_refused(tmp_path):
    """A command in another frame than its field's."""
    text = FRAMED[: FRAMED.index("    - {name: rotation")] + (
        "  record: {topic: /twist, type: geometry_msgs/msg/TwistStamped, field: twist.linear}\n"
    )
    (stream,) = Contract.from_text(text).action.commands
    assert stream.frame_id == "base_link"


def test_a_field_that_says_no_frame_only_makes_a_note(tmp_path):
    """Contracts of before are read as they were; the frame to give is told."""
    report = converted(tmp_path, TEXT, told_in("/pose", "world"))
    assert report.status == "kept"
    assert "/pose is told in 'world': give translation frame: world" in report.notes
    assert CONTRACT.observations["position"].frame_id == ""
