"""Poses from tf: chains, interpolation, and what is refused by name."""

from types import SimpleNamespace as Msg

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation, Slerp

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.contract.messages import TF, TF_STATIC
from diffusion_policy_ros.contract.stream import Tf
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.observe.history import Frame, History, Refused
from diffusion_policy_ros.observe.transforms import Pose, Transforms, slerp

MS = 1_000_000
SECOND = 1000 * MS


def transform(parent, child, at, turn=(0, 0, 0, 1), stamp=0):
    """One transform of a message."""
    return Msg(
        header=Msg(frame_id=parent, stamp=Msg(sec=stamp // SECOND, nanosec=stamp % SECOND)),
        child_frame_id=child,
        transform=Msg(
            translation=Msg(**dict(zip("xyz", map(float, at), strict=True))),
            rotation=Msg(**dict(zip("xyzw", map(float, turn), strict=True))),
        ),
    )


def tree(*edges, static=()):
    """Transforms of a tree."""
    found = Transforms()
    found.push(TF_STATIC, Msg(transforms=list(static)))
    for edge in edges:
        found.push(TF, Msg(transforms=[edge]))
    return found


def pose(parent, child, field="translation"):
    """A stream of the contract."""
    return Stream(tf=Tf(parent, child), field=field).resolved("tool")


TURNS = st.builds(lambda seed: Rotation.random(random_state=seed), st.integers(0, 10**6))


@settings(max_examples=30, deadline=None)
@given(TURNS, TURNS, TURNS)
def test_chains_are_composed_as_matrices_are(a, b, c):
    """Up one side of the tree and down the other, static edges among them."""
    found = tree(
        transform("base", "link", (1, 2, 3), a.as_quat(), SECOND),
        transform("base", "mast", (0.5, 0, 1), b.as_quat(), SECOND),
        static=[transform("mast", "camera", (0, 0.1, 0), c.as_quat())],
    )
    at = np.array([0.5, 0, 1]) + b.apply([0, 0.1, 0])
    expected = (b * c).inv().apply(np.array([1, 2, 3]) - at)
    assert found.at(pose("camera", "link"), SECOND)[0] == pytest.approx(expected, abs=1e-5)
    turn = Rotation.from_quat(found.at(pose("camera", "link", "rotation"), SECOND)[0])
    assert (turn.inv() * (b * c).inv() * a).magnitude() < 1e-5


@settings(max_examples=30, deadline=None)
@given(TURNS, TURNS, st.floats(0, 1))
def test_turns_are_interpolated_as_scipy_does(a, b, share):
    """The short way, whatever the quaternions' signs."""
    ours = Rotation.from_quat(slerp(tuple(a.as_quat()), tuple(-b.as_quat()), share))
    theirs = Slerp([0, 1], Rotation.concatenate([a, b]))(share)
    assert (ours.inv() * theirs).magnitude() < 1e-4


def test_between_two_stamps_it_is_between():
    """At the frame's time; past the newest it stands, and says how old it is."""
    moving = [transform("a", "b", (i, 0, 0), stamp=i * SECOND) for i in range(3)]
    found = tree(*moving)
    assert found.at(pose("a", "b"), SECOND // 2)[0].tolist() == [0.5, 0, 0]
    assert found.at(pose("b", "a"), SECOND // 2)[0].tolist() == [-0.5, 0, 0]
    value, age = found.at(pose("a", "b"), 2 * SECOND + 30 * MS)
    assert value.tolist() == [2, 0, 0] and age == 30 * MS


def test_an_inverse_is_undone():
    """A pose and its inverse make none."""
    one = Pose((1.0, 2.0, 3.0), tuple(Rotation.from_euler("xyz", [0.3, 0.2, 0.1]).as_quat()))
    both = one.then(one.inverse())
    assert both.at == pytest.approx((0, 0, 0)) and abs(both.turn[3]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (tree(), "tf has no frame base; it has none"),
        (tree(transform("base", "link", (0, 0, 0))), "tf has no frame tool; it has base, link"),
        (
            tree(transform("base", "link", (0, 0, 0)), transform("map", "tool", (0, 0, 0))),
            "tf does not connect tool with base",
        ),
        (
            tree(transform("base", "tool", (0, 0, 0)), transform("map", "tool", (0, 0, 0))),
            "tool has two parents, base and map; end one of the two publishers",
        ),
        (
            tree(transform("tool", "link", (0, 0, 0)), transform("link", "tool", (0, 0, 0))),
            "tf goes round: tool in link in tool",
        ),
        (
            tree(transform("base", "tool", (0, 0, 0), stamp=5 * SECOND)),
            "no transform of tool at or before the frame; the first is stamped 4.000 s after it",
        ),
        (
            tree(
                transform("base", "tool", (0, 0, 0), stamp=SECOND),
                static=[transform("base", "tool", (1, 0, 0))],
            ),
            "end one of the two publishers; what /tf_static told is known",
        ),
        (
            tree(transform("base", "tool", (0, 0, float("nan")))),
            "the transform of tool in base is none",
        ),
        (tree(transform("base", "tool", (1e300, 0, 0))), "the transform of tool in base is none"),
        (
            tree(
                *[transform("base", "tool", (0, 0, 0), [0] * 4, i * SECOND) for i in range(3)],
            ),
            "the transform of tool in base is none",
        ),
    ],
)
def test_what_tf_cannot_say_is_refused_by_name(found, expected):
    """A missing frame, two trees, two publishers, a loop, a time before all; what is no pose."""
    with pytest.raises(UserError, match=expected):
        found.at(pose("base", "tool"), SECOND)


def test_a_stamp_far_ahead_costs_no_transform_and_is_forgotten():
    """The next real one is believed; what lies before the wrong one stands, and ages."""
    found = tree(*[transform("a", "b", (i, 0, 0), stamp=i * SECOND) for i in range(3)])
    found.push(TF, Msg(transforms=[transform("a", "b", (9, 0, 0), stamp=3600 * SECOND)]))
    value, age = found.at(pose("a", "b"), 2 * SECOND + 500 * MS)
    assert value.tolist() == [2, 0, 0] and age == 500 * MS
    found.push(TF, Msg(transforms=[transform("a", "b", (3, 0, 0), stamp=3 * SECOND)]))
    assert found.at(pose("a", "b"), 2 * SECOND + 500 * MS)[0].tolist() == [2.5, 0, 0]
    assert found.newest_ns(pose("a", "b"), 3 * SECOND) == 3 * SECOND


def test_a_second_parent_is_forgotten_once_its_publisher_has_ended():
    """The pose is refused as long as both tell it, and a little more."""
    found = tree(*[transform("a", "b", (i, 0, 0), stamp=i * SECOND) for i in range(20)])
    found.push(TF, Msg(transforms=[transform("c", "b", (5, 0, 0), stamp=13 * SECOND)]))
    with pytest.raises(UserError, match="b has two parents, a and c"):
        found.at(pose("a", "b"), 18 * SECOND)
    assert found.at(pose("a", "b"), 19 * SECOND)[0].tolist() == [19, 0, 0]


@pytest.mark.parametrize("first", [TF, TF_STATIC])
def test_which_topic_told_first_does_not_matter(first):
    """An edge on both is refused, until what moved has not been told of for long."""
    found = Transforms()
    for topic in (first, TF if first == TF_STATIC else TF_STATIC):
        x = 1 if topic == TF else 2
        found.push(topic, Msg(transforms=[transform("a", "b", (x, 0, 0), stamp=SECOND)]))
    with pytest.raises(UserError, match="b is told of on /tf and on /tf_static"):
        found.at(pose("a", "b"), SECOND)
    assert found.at(pose("a", "b"), 19 * SECOND)[0].tolist() == [2, 0, 0]


TEXT = """
name: tf
rate_hz: 20
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a]}
  tool_pos: {tf: {parent: base, child: tool}}
  tool_quat: {tf: {parent: base, child: tool}, field: rotation}
action:
  fields:
    - {name: way, kind: delta_position, state: tool_pos}
    - {name: turn, kind: delta_axis_angle, state: tool_quat}
  record: next_state
"""


def test_the_contract_knows_its_topics():
    """Both of tf's, and what is measured."""
    contract = Contract.from_text(TEXT)
    assert contract.recorded_topics[TF_STATIC] == "tf2_msgs/msg/TFMessage"
    assert contract.topics[TF_STATIC][0].static and not contract.topics[TF][0].static
    assert [s.quantity for s in contract.topics[TF]] == ["position", "orientation"]


def test_frames_have_the_pose_at_their_own_time():
    """Of joints at 20 Hz and transforms at 30 Hz; static ones outlive resets."""
    contract = Contract.from_text(TEXT.replace("rate_hz: 20", "rate_hz: 20\nsettle_s: 0.04"))
    history, frames = History(contract, 1), []
    static = Msg(transforms=[transform("flange", "tool", (0, 0, 0.1))])
    history.push(TF_STATIC, static, 0)
    for life in range(2):
        start = (1 + 100 * life) * SECOND
        events = []
        for i in range(40):
            now = start + i * 33 * MS
            one = transform("base", "flange", (0.033 * i, 0, 0), stamp=now)
            events.append((now, TF, Msg(transforms=[one])))
        for i in range(20):
            now = start + 7 * MS + i * 50 * MS
            events.append((now, "/joint_states", joint(now)))
        for arrival, topic, msg in sorted(events, key=lambda event: event[0]):
            frames += history.push(topic, msg, arrival)
        history.reset()
    made = [frame for frame in frames if isinstance(frame, Frame)]
    assert len(made) >= 36 and not any(isinstance(frame, Refused) for frame in frames)
    for frame in made:
        seconds = (frame.time_ns % (100 * SECOND)) / SECOND - 1
        assert frame.arrays["tool_pos"] == pytest.approx([seconds, 0, 0.1], abs=2e-3)
        assert frame.ages_ns["tool_pos"] <= 33 * MS
    assert max(frame.ages_ns["tool_pos"] for frame in made[:-2]) == 0


def test_a_latency_is_taken_off_the_stamps_of_transforms():
    """A frame has the pose that was measured at its time, and waits for it; a newest one ages."""
    late = TEXT.replace("tool}", "tool}, observation_latency_s: 0.2")
    text = late.replace("rate_hz: 20", "rate_hz: 20\nsettle_s: 1.0")
    history = History(Contract.from_text(text), 1)

    def tells(i):
        one = transform("base", "tool", (0.1 * i, 0, 0), stamp=SECOND + i * 100 * MS)
        return history.push(TF, Msg(transforms=[one]), SECOND)

    assert not any(tells(i) for i in range(5))
    assert not history.push("/joint_states", joint(SECOND + 300 * MS), SECOND)
    (frame,) = tells(5)
    assert frame.arrays["tool_pos"] == pytest.approx([0.5, 0, 0])
    history.push("/joint_states", joint(SECOND + 400 * MS), SECOND)
    (frame,) = history.poll(3 * SECOND)
    assert frame.ages_ns["tool_pos"] == 100 * MS


def joint(stamp):
    """A JointState."""
    header = Msg(stamp=Msg(sec=stamp // SECOND, nanosec=stamp % SECOND), frame_id="")
    return Msg(header=header, name=["a"], position=[0.0])


def test_old_transforms_refuse_frames():
    """By the stream's name, with the age that the contract allows."""
    history, events = History(Contract.from_text(TEXT), 1), []
    history.push(TF, Msg(transforms=[transform("base", "tool", (0, 0, 0), stamp=SECOND)]), SECOND)
    for i in range(10):
        now = SECOND + i * 50 * MS
        events += history.push("/joint_states", joint(now), now)
    reasons = {event.reason for event in events if isinstance(event, Refused)}
    assert reasons and all("tool_pos (/tf): newest message is" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("child: tool}}", "child: base}}", "tf needs two frames"),
        (
            "child: tool}}",
            "child: tool}, topic: /tf}",
            "topic: tf says that, or has none; remove it",
        ),
        ("child: tool}}", "child: tool}, scale: [0.001]}", "scale: tf says that, or has none"),
        ("child: tool}}", "child: tool}, time: receipt}", "time: tf says that, or has none"),
        ("child: tool}}", "child: tool}, crop: [0, 0, 1, 1]}", "crop: tf says that, or has none"),
        ("field: rotation", "field: rotations", "did you mean 'rotation'"),
        ("anchor: joints", "anchor: tool_pos", "anchor frames to a stamped stream"),
        (
            "{tf: {parent: base, child: tool}}",
            "{field: x}",
            "topic: is missing; add 'topic:' here",
        ),
    ],
)
def test_mistakes_are_named(old, new, expected):
    """With their cures."""
    with pytest.raises(UserErrors) as caught:
        Contract.from_text(TEXT.replace(old, new, 1))
    assert expected in str(caught.value)
