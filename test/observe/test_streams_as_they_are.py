"""Streams as robots have them: shared topics, latched ones, and stamps of no use."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserErrors
from diffusion_policy_ros.observe.history import Frame, History, Refused, Reset
from diffusion_policy_ros.observe.receipt import ReceiptClock

MS = 1_000_000
PERIOD = 50 * MS
TEXT = """
name: arm
rate_hz: 20
anchor: arm
observations:
  arm: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
  grip: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [g]}
  goal: {topic: /goal, type: std_msgs/msg/Float64MultiArray, shape: [2], static: true}
action:
  fields: [{name: arm, kind: joint_position, size: 2, state: arm}]
  record: next_state
"""
CONTRACT = Contract.from_text(TEXT)


def joints(stamp_ns, **values):
    """A JointState."""
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    header = SimpleNamespace(stamp=stamp, frame_id="")
    return SimpleNamespace(header=header, name=list(values), position=list(values.values()))


def goal(*values):
    """A Float64MultiArray."""
    return SimpleNamespace(data=np.array(values))


def frames(history, messages):
    """What comes of (topic, arrival, message)."""
    return [e for topic, arrival, msg in messages for e in history.push(topic, msg, arrival)]


def driven(grip_late_ns, count=12):
    """An arm's and a gripper's driver on one topic, each with its own stamps."""
    yield "/goal", 0, goal(1, 2)
    for i in range(count):
        ns = 10**9 + i * PERIOD
        late = ns + grip_late_ns
        both = [
            (ns + MS, joints(ns, a=float(i), b=2.0 * i)),
            (max(late, ns) + 2 * MS, joints(late, g=100.0 + i)),
        ]
        yield from (("/joint_states", arrival, msg) for arrival, msg in both)


@pytest.mark.parametrize("grip_late_ns", [0, 3 * MS, -3 * MS, -20 * MS, 20 * MS, -120 * MS])
def test_two_drivers_share_a_topic(grip_late_ns):
    """Each stream has the newest message that holds its joints; none is dropped as a duplicate."""
    history = History(CONTRACT, 2)
    events = frames(history, driven(grip_late_ns)) + history.poll(10**12)
    made = [event for event in events if isinstance(event, Frame)]
    assert not any(isinstance(event, Reset) for event in events)
    assert len(made) >= 10 and len(made) + sum(isinstance(e, Refused) for e in events) == 12
    for frame in made:
        i = round((frame.time_ns - 10**9) / PERIOD)
        assert frame.arrays["arm"].tolist() == [i, 2 * i]
        seen = frame.arrays["grip"][0] - 100
        assert (i * PERIOD - (seen * PERIOD + grip_late_ns)) >= 0
        assert i - seen <= 1 - min(grip_late_ns, 0) // PERIOD + (grip_late_ns > 0)


def test_equal_stamps_of_a_shared_topic_are_dropped_as_duplicates():
    """One of each driver is kept, as where simulated time stands still and drivers go on."""
    history = History(CONTRACT, 2)
    for i in range(50):
        for ns in (10**9, 10**9 + MS, 10**9):
            history.push("/joint_states", joints(ns, a=1.0, b=2.0), i)
            history.push("/joint_states", joints(ns, g=float(i)), i)
    assert len(history._topics["/joint_states"].messages) == 4


def test_joints_that_nobody_publishes_are_named():
    """As before, with what there is."""
    history = History(CONTRACT, 2)
    messages = [m for m in driven(0) if "g" not in getattr(m[2], "name", "")]
    (reason,) = {
        e.reason
        for e in frames(history, messages) + history.poll(10**12)
        if isinstance(e, Refused)
    }
    assert "no position of joint 'g'" in reason and "a, b" in reason


def test_a_latched_message_holds_over_resets_and_has_no_age():
    """A goal that was said once, long ago; a newer one takes its place."""
    history = History(CONTRACT, 1)
    assert any(isinstance(event, Frame) for event in frames(history, driven(0)))
    history.reset()
    later = [m for m in driven(0) if m[0] != "/goal"]
    made = [event for event in frames(history, later) if isinstance(event, Frame)]
    assert made and made[0].arrays["goal"].tolist() == [1, 2] and made[0].ages_ns["goal"] == 0
    history.push("/goal", goal(3, 4), 10**10)
    history.reset()
    made = [event for event in frames(history, later) if isinstance(event, Frame)]
    assert made[0].arrays["goal"].tolist() == [3, 4]


def test_without_a_latched_message_frames_are_refused_by_name():
    """Nothing is filled in."""
    history = History(CONTRACT, 1)
    events = frames(history, [m for m in driven(0) if m[0] != "/goal"])
    assert {event.key for event in events} == {"goal"}


def test_a_driver_with_useless_stamps_is_timed_by_receipt():
    """A boot clock, or zero: what is said in the contract."""
    text = TEXT.replace("names: [a, b]}", "names: [a, b], time: receipt}")
    text = text.replace("names: [g]}", "names: [g], time: receipt}")
    history = History(Contract.from_text(text), 1)
    events = frames(history, [(t, at, retimed(m)) for t, at, m in driven(0)])
    made = [event for event in events if isinstance(event, Frame)]
    assert len(made) >= 10
    assert {round((frame.time_ns - 10**9) % PERIOD / MS) for frame in made} == {1}


def retimed(msg):
    """The same with a stamp of zero."""
    if hasattr(msg, "header"):
        msg.header.stamp.sec = msg.header.stamp.nanosec = 0
    return msg


def test_the_receipt_clock_follows_a_simulation():
    """Its stamps are of another clock than the recorder's; those of a robot are not touched."""
    clock = ReceiptClock(CONTRACT)
    clock.note("/joint_states", 1_700_000_000 * 10**9 - 5 * MS, 1_700_000_000 * 10**9)
    assert clock.at(1_700_000_001 * 10**9) == 1_700_000_001 * 10**9
    clock.note("/joint_states", 100 * 10**9, 1_700_000_000 * 10**9)
    assert clock.at(1_700_000_000 * 10**9 + 7) == 100 * 10**9 + 7
    clock.note("/joint_states", None, 5)
    clock.note("/joint_states", 0, 5)
    clock.note("/goal", 1, 5)  # latched long ago: that is no clock
    assert clock.at(1_700_000_000 * 10**9 + 7) == 100 * 10**9 + 7


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("names: [g]}", "names: [g], time: receipt}", "/joint_states has header elsewhere"),
        ("names: [g]}", "names: [g], qos: reliable}", "give all streams of a topic the same"),
        ("names: [g]}", "names: [g], hold_s: 1}", "is of recorded commands"),
        ("names: [g]}", "names: [g], combine: sum}", "is of recorded commands"),
        ("anchor: arm", "anchor: goal", "have no stamp"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(old, new, expected):
    """With the cure."""
    with pytest.raises(UserErrors) as caught:
        Contract.from_text(TEXT.replace(old, new))
    assert expected in str(caught.value)
