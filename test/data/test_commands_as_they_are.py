"""Commands as operators give them: seldom, quickly, without stamps."""

import numpy as np
import pytest
from made_bags import (
    CONTRACT,
    MS,
    PERIOD,
    POSE,
    START,
    TEXT,
    demonstration,
    filled,
    pose,
    stamped,
    trajectory,
    write_bag,
)

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.actions import Commands
from diffusion_policy_ros.data.bags import message_types
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset

TIMES = START + np.arange(8) * PERIOD


def told(keys, stamps, values):
    """First component of the actions of eight frames, and which have one."""
    commands = Commands(Contract.from_text(TEXT.replace("shape: [7]", f"shape: [7], {keys}")))
    for stamp, value in zip(stamps, values, strict=True):
        commands.push("/command", trajectory(stamp, [value] * 6 + [1.0]), stamp, life=0)
    actions, valid = commands.actions(TIMES, life=0)
    return actions[:, 0].tolist(), valid.tolist()


def test_a_command_holds_for_as_long_as_it_is_said_to():
    """A gripper on a button press, commands at 5 Hz; beyond that there is none."""
    stamps = START + np.array([0, 4]) * PERIOD
    assert told("hold_s: 10", stamps, [1, 2]) == ([1, 1, 1, 1, 2, 2, 2, 2], [True] * 8)
    _, valid = told("hold_s: 0.1", stamps, [1, 2])
    assert valid == [True, True, True, False, True, True, True, False]
    _, valid = told("hold_s: 0", stamps, [1, 2])
    assert valid == [True, False, False, False, True, False, False, False]
    _, valid = told("hold_s: 10", stamps + 2 * PERIOD, [1, 2])
    assert valid == [False, False] + [True] * 6


@pytest.mark.parametrize(
    ("how", "expected"), [("first", 0.0), ("last", 4.0), ("mean", 2.0), ("sum", 10.0)]
)
def test_quick_commands_are_combined(how, expected):
    """A 100 Hz twist at 20 Hz frames: one of five, their mean, or how far they go together."""
    stamps = START + np.arange(40) * 10 * MS
    values, valid = told(f"combine: {how}", stamps, np.arange(40) % 5)
    assert values == [expected] * 8 and all(valid)


def test_commands_with_zero_stamps_have_the_time_of_receipt(tmp_path):
    """What clients of trajectory controllers publish; convert says so."""
    messages = list(demonstration(12))
    for topic, _, msg in messages:
        if topic == "/command":
            msg.header.stamp.sec = msg.header.stamp.nanosec = 0
    bag = write_bag(tmp_path / "bag", messages)
    report = convert([bag], CONTRACT, tmp_path / "data", options=Options(keep_idle=True)).bags[0]
    assert report.status == "kept" and report.episodes[0][1] == 12
    assert "/command has stamps of zero: those of receipt are taken" in report.notes
    assert Dataset(tmp_path / "data").episode(0)["action"][:, 0] == pytest.approx(0.01)


def test_observations_with_zero_stamps_are_named_and_the_cure_works(tmp_path):
    """Not "its messages make no frame"."""
    messages = list(demonstration(12))
    for topic, _, msg in messages:
        if topic == "/pose":
            msg.header.stamp.sec = msg.header.stamp.nanosec = 0
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(Exception, match="all stamps of /pose are zero; give its streams time: re"):
        convert([bag], CONTRACT, tmp_path / "data")
    cured = TEXT.replace("field: pose.", "time: receipt, field: pose.")
    kept = Options(keep_idle=True)
    report = convert([bag], Contract.from_text(cured), tmp_path / "data", options=kept).bags[0]
    assert report.status == "kept" and sum(count for _, count in report.episodes) >= 10


def test_the_zero_stamp_of_a_latched_goal_does_not_matter(tmp_path):
    """It holds whenever it was said, as in the node; `ros2 topic pub` stamps so."""
    extra = f"  goal: {{topic: /goal, type: {POSE}, field: pose.position, static: true}}\naction:"
    contract = Contract.from_text(TEXT.replace("action:", extra))
    messages = [("/goal", START, pose(0, (1, 2, 3))), *demonstration(12)]
    bag = write_bag(tmp_path / "bag", messages, contract)
    convert([bag], contract, tmp_path / "data", options=Options(keep_idle=True))
    assert Dataset(tmp_path / "data").episode(0)["goal"].tolist() == [[1, 2, 3]] * 12


@pytest.mark.parametrize(
    ("topic", "old"), [("/camera", "resize:"), ("/pose", "field:"), ("/command", "shape: [7]")]
)
def test_a_clock_of_its_own_is_named_and_the_cure_works(topic, old, tmp_path):
    """A camera, a driver or a commander that stamps by the time since its boot."""
    messages, booted = list(demonstration(12)), list(demonstration(12))
    for name, ns, msg in booted:
        if name == topic:
            since_boot = ns - START + 5_000 * 10**9
            msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(since_boot, 10**9)
    bag = write_bag(tmp_path / "bag", booted)
    said = f"the stamps of {topic} are 4999 s from the others': of another clock; give its"
    with pytest.raises(Exception, match=said):
        convert([bag], CONTRACT, tmp_path / "data")
    cured = Contract.from_text(TEXT.replace(old, f"time: receipt, {old}"))
    for path, contract in ((bag, cured), (write_bag(tmp_path / "clean", messages), CONTRACT)):
        convert([path], contract, tmp_path / f"{path.name}s", options=Options(keep_idle=True))
    found, clean = (Dataset(tmp_path / name).episode(0) for name in ("bags", "cleans"))
    assert len(found["position"]) >= 11
    # A pose that counts from its receipt on is a frame's that begins after that: the next one's.
    later = int(topic == "/pose")
    for key, first in (("position", 0), ("camera", later), ("action", later)):
        np.testing.assert_array_equal(found[key][:10], clean[key][first : first + 10])


def test_simulated_stamps_beside_a_stream_without_any(tmp_path):
    """The recorder's clock is years away; the simulation's is taken for the time of receipt."""
    extra = "  wrench: {topic: /w, type: std_msgs/msg/Float64MultiArray, shape: [1]}\naction:"
    contract = Contract.from_text(TEXT.replace("action:", extra))

    array, layout = (
        message_types(f"std_msgs/msg/{n}") for n in ("Float64MultiArray", "MultiArrayLayout")
    )
    years = 1_700_000_000 * 10**9
    messages = []
    for topic, ns, msg in demonstration(12):
        if topic == "/pose":
            data = array(layout=layout(dim=[], data_offset=0), data=np.array([float(ns)]))
            messages.append(("/w", ns + years - MS // 2, data))
        messages.append((topic, ns + years, msg))
    bag = write_bag(tmp_path / "bag", messages, contract)
    report = convert([bag], contract, tmp_path / "data", options=Options(keep_idle=True)).bags[0]
    assert report.status == "kept" and report.episodes[0][1] >= 10


@pytest.mark.parametrize("pace", [0.3, 0.6, 2.0])
def test_a_simulation_that_is_slower_or_quicker_than_real_time(pace, tmp_path):
    """What has no stamps stays beside what has: the node hears them by the simulation's clock."""
    array, layout = (
        message_types(f"std_msgs/msg/{n}") for n in ("Float64MultiArray", "MultiArrayLayout")
    )
    text = TEXT[: TEXT.index("action:")] + (
        "  wrench: {topic: /w, type: std_msgs/msg/Float64MultiArray, shape: [1]}\n"
        "action:\n  fields: [{name: grip, kind: scalar}]\n"
        "  record: {topic: /grip, type: std_msgs/msg/Float64MultiArray, shape: [1]}\n"
    )
    contract, messages = Contract.from_text(text), []
    for topic, ns, msg in demonstration(40):
        if topic != "/command":
            messages.append((topic, ns, msg))
            continue
        for i in range(5):
            for name, at in (("/w", ns + 10 * i * MS), ("/grip", ns + (10 * i + 1) * MS)):
                data = np.array([(at - START) / PERIOD])
                messages.append((name, at, array(layout=layout(dim=[], data_offset=0), data=data)))
    years = 1_700_000_000 * 10**9
    messages = [(topic, years + round((ns - START) / pace), msg) for topic, ns, msg in messages]
    bag = write_bag(tmp_path / "bag", messages, contract)
    report = convert([bag], contract, tmp_path / "data", options=Options(keep_idle=True)).bags[0]
    assert not report.resets and report.episodes[0][1] >= 38
    found = Dataset(tmp_path / "data").episode(0)
    frames = (found["stamp_ns"] - START) / PERIOD
    assert found["wrench"][2:, 0] - frames[2:] == pytest.approx(-0.1, abs=0.02)
    assert found["action"][2:, 0] - frames[2:] == pytest.approx(0.12, abs=0.02)


@pytest.mark.parametrize(("keys", "noted"), [("", True), (", combine: mean", False)])
def test_velocities_that_are_passed_over_are_noted(keys, noted, tmp_path):
    """A 100 Hz twist at 20 Hz frames is sampled, unless the contract combines it."""
    text = TEXT[: TEXT.index("    - {name: rotation")] + (
        "  record: {topic: /twist, type: geometry_msgs/msg/TwistStamped, field: twist.linear"
        f"{keys}}}\n"
    )
    contract, messages = Contract.from_text(text), []
    for topic, ns, msg in demonstration(12):
        if topic == "/command":
            for i in range(5):
                twist = filled("geometry_msgs/msg/TwistStamped")
                messages.append(("/twist", ns + i * 10 * MS, stamped(twist, ns + i * 10 * MS)))
        else:
            messages.append((topic, ns, msg))
    messages.sort(key=lambda message: message[1])
    bag = write_bag(tmp_path / "bag", messages, contract)
    report = convert([bag], contract, tmp_path / "data", options=Options(keep_idle=True)).bags[0]
    said = " ".join(report.notes)
    assert ("of which one is taken: combine: mean takes all" in said) is noted, said
