"""What is odd about recordings is said: order, sign, units, streams that die, uneven rates."""

import numpy as np
import pytest
from made_bags import (
    CONTRACT,
    MS,
    START,
    TEXT,
    demonstration,
    image,
    joint_state,
    make_bag,
    pose,
    write_bag,
)

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import open_bag
from diffusion_policy_ros.data.comparison import Comparison
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.survey import survey
from diffusion_policy_ros.errors import UserError

ARM = """
name: arm
rate_hz: 20
anchor: q
observations:
  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b, c]}
  tip: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields:
    - {name: arm, kind: joint_position, size: 3, state: q}
    - {name: way, kind: delta_position, state: tip}
  record: {topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [6]}
"""


def moved(change, noise=0.0, lag=2):
    """What is said of an arm that follows its commands ``lag`` frames later."""
    time = np.arange(120)[:, None] / 20
    way = np.sin(time * [1.0, 1.7, 2.6] + [0, 1, 2])
    rng = np.random.default_rng(0)
    told = np.concatenate([way[lag:], np.diff(way, axis=0)[lag - 1 :]], axis=1)
    seen = way[:-lag] + noise * rng.normal(size=way[:-lag].shape)
    states, actions = {"q": seen.copy(), "tip": seen.copy()}, told
    change(states, actions)
    comparison = Comparison(Contract.from_text(ARM))
    comparison.add({k: v.astype(np.float32) for k, v in states.items()}, actions)
    return list(comparison.remarks())


def test_nothing_is_said_of_an_arm_that_follows():
    """With lag and some noise, and of one that reaches a half of what it is told."""
    assert moved(lambda states, actions: None, noise=0.002) == []

    def halves(states, actions):
        actions[:, 3:] *= 2

    assert moved(halves) == []


ODD = {
    "joints in another order": (
        lambda s, a: a[:, :3].__setitem__(slice(None), a[:, [1, 0, 2]]),
        ["the command of a moves as q does in b", "the command of b moves as q does in a"],
    ),
    "a joint turned round": (
        lambda s, a: a.__setitem__((slice(None), 2), -a[:, 2]),
        ["the command of c moves against q: is its sign right?"],
    ),
    "a tip turned round": (
        lambda s, a: a.__setitem__((slice(None), 4), -a[:, 4]),
        ["the command of way.1 moves against tip"],
    ),
    "degrees": (
        lambda s, a: a[:, :3].__imul__(180 / np.pi),
        ["the command of a is 57", "as degrees for rad would be: give scale:", "of c is"],
    ),
    "millimetres": (
        lambda s, a: a[:, 3:].__imul__(1000),
        [" times what tip does, as mm for m would be: give scale:"],
    ),
    "a velocity for a step": (
        lambda s, a: a[:, 3:].__imul__(20),
        ["as a second for a frame would be"],
    ),
    "a state in degrees": (
        lambda s, a: s["q"].__imul__(180 / np.pi),
        ["q reaches 57.3: are these degrees?", "as degrees for rad, in the state would be"],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_order_sign_and_units_are_named(case):
    """Component by component."""
    change, expected = ODD[case]
    said = "\n".join(moved(change))
    assert [words for words in expected if words not in said] == [], said


def test_a_grippers_number_is_not_taken_for_degrees():
    """Many tell 0 to 100."""
    driver = "w: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [g]}"
    text = ARM.replace("state: tip}", "state: tip}\n    - {name: g, kind: scalar, state: w}")
    text = text.replace("  tip:", f"  {driver}\n  tip:").replace("[6]", "[7]")
    comparison = Comparison(Contract.from_text(text))
    states = {"q": np.zeros((3, 3)), "w": np.full((3, 1), 99.0), "tip": np.zeros((3, 3))}
    comparison.add(states, np.zeros((3, 7)))
    assert list(comparison.remarks()) == []


def test_convert_and_inspect_say_it(tmp_path, capsys):
    """In the report of the bag, and of the dataset that came of it."""
    bags = tmp_path / "bags"
    messages = [
        (t, ns, m) if t != "/command" else (t, ns, turned_round(m)) for t, ns, m in wavy(60)
    ]
    write_bag(bags, messages, metadata={"contract": TEXT})
    out = str(tmp_path / "data")
    assert main(["convert", str(bags), "--out", out]) == 0
    expected = "the command of translation.0 moves against position: is its sign right?"
    assert expected in capsys.readouterr().out
    assert main(["inspect", out]) == 0
    assert expected in capsys.readouterr().out


def wavy(frames):
    """A demonstration that goes to and fro."""
    for topic, ns, msg in demonstration(frames):
        i = round((ns - START) / (50 * MS))
        if topic == "/pose":
            msg.pose.position.x = float(0.1 * np.sin(0.3 * i))
        if topic == "/command":
            msg.points[0].positions[0] = 0.1 * (np.sin(0.3 * (i + 1)) - np.sin(0.3 * i))
        yield topic, ns, msg


def turned_round(command):
    """The same, the other way."""
    command.points[0].positions[0] *= -1
    return command


def test_a_camera_that_dies_is_named(tmp_path):
    """By convert and by inspect, though frames that were made are good."""
    late = START + 20 * 50 * MS
    messages = [m for m in demonstration(60) if m[0] != "/camera" or m[1] < late]
    bag = write_bag(tmp_path / "bag", messages)
    report = convert([bag], CONTRACT, tmp_path / "data", options=Options(keep_idle=True)).bags[0]
    assert report.status == "kept"
    assert any("/camera says nothing in the last 2.0 s: did it die?" in n for n in report.notes)
    remarks = list(survey(open_bag(bag))["/camera"].remarks())
    assert any("nothing in the last 2.0 s" in remark for remark in remarks)
    whole = make_bag(tmp_path / "whole", frames=60)
    assert not any("die" in n for n in convert([whole], CONTRACT, tmp_path / "d").bags[0].notes)
    assert not any("die" in r for t in survey(open_bag(whole)).values() for r in t.remarks())


def test_a_rate_that_does_not_divide_the_cameras_is_named(tmp_path):
    """A 30 Hz camera at 20 Hz: steps of 33 and 67 ms; at 15 and 10 Hz nothing is said."""
    period = 1_000_000_000 // 30
    messages = []
    for i in range(60):
        ns, pixels = START + i * period, np.zeros((4, 6, 3), np.uint8)
        messages += [("/pose", ns, pose(ns, (0.01 * i, 0, 0))), ("/camera", ns, image(ns, pixels))]
    derived = TEXT.replace("    - {name: gripper, kind: binary}\n", "")
    derived = derived[: derived.index("  record:")] + "  record: next_state\n"
    bag = write_bag(tmp_path / "bag", messages, Contract.from_text(derived))

    def notes(hz):
        contract = Contract.from_text(derived.replace("rate_hz: 20", f"rate_hz: {hz}"))
        out = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        return " ".join(convert([bag], contract, out).bags[0].notes)

    assert "does not divide the 30.0 Hz at which /camera comes" in notes(20)
    assert "33 and 67 ms apart in turn; 15 or 30 Hz would be even" in notes(20)
    assert "divide" not in notes(15) + notes(10)


def test_reasons_of_refusal_are_counted_apart(tmp_path):
    """Seven frames of a stream that is too old, four of one and three commands without meaning.

    Of each the numbers differ from frame to frame.
    """
    messages = []
    for topic, ns, msg in demonstration(40):
        i = (ns - START) // (50 * MS)
        if topic == "/pose" and 10 <= i < 20:
            continue
        if topic == "/pose" and 25 <= i < 29:
            msg.pose.position.x, msg.pose.position.y = float("nan"), 0.1 * i
        if topic == "/command" and 32 <= i < 35:
            msg.points[0].positions[:2] = float("inf"), 0.1 * i
        messages.append((topic, ns, msg))
    report = convert([write_bag(tmp_path / "bag", messages)], CONTRACT, tmp_path / "data").bags[0]
    counts = {reason: count for reason, count in report.refused.items() if "position" in reason}
    (old,) = [count for reason, count in counts.items() if "old" in reason]
    (unreadable,) = [count for reason, count in counts.items() if "not finite" in reason]
    (lost,) = [count for reason, count in report.refused.items() if "/command" in reason]
    assert (old, unreadable, lost) == (7, 4, 3)


def test_a_bag_is_refused_for_what_refused_most_of_its_frames(tmp_path):
    """One frame before the first message, and eight whose driver does not know the joint."""
    joint = "  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a]}\naction:"
    contract, messages = Contract.from_text(TEXT.replace("action:", joint)), []
    for topic, ns, msg in demonstration(9):
        messages.append((topic, ns, msg))
        if topic == "/pose" and ns > START + 50 * MS:
            messages.append(("/joint_states", ns, joint_state(ns - MS, ["z"], [0.0])))
    bag = write_bag(tmp_path / "bag", messages, contract)
    said = r"no position of joint 'a'; the message has z \(8 of 9 frames\)"
    with pytest.raises(UserError, match=f"not a single frame: .*{said}"):
        convert([bag], contract, tmp_path / "data")


def test_frames_that_were_all_left_out_say_nothing():
    """As those before the first command of an episode."""
    comparison = Comparison(Contract.from_text(ARM))
    comparison.add({"q": np.empty((0, 3)), "tip": np.empty((0, 3))}, np.empty((0, 6)))
    assert list(comparison.remarks()) == []
