"""How messages are taken from the contract's topics."""

import contextlib
from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.ros.measured import Measured  # noqa: E402
from diffusion_policy_ros.ros.robot_link import RobotLink  # noqa: E402
from diffusion_policy_ros.ros.streams import ROUNDS, Streams  # noqa: E402

pytestmark = pytest.mark.ros
CONTRACT = Contract.load("mini_lift_state")


class Queue(contextlib.nullcontext):
    """A subscription's handle with so many messages in it."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def take_message(self, *_):
        self.count -= 1
        return (b"", None) if self.count >= 0 else None


class FakeNode:
    """Subscribes, and nobody publishes."""

    def __init__(self, counts):
        self.counts, self.callbacks = counts, {}

    def get_name(self):
        return "fake"

    def get_namespace(self):
        return "/"

    def resolve_topic_name(self, topic):
        return topic

    def get_publishers_info_by_topic(self, topic):
        return []

    def create_subscription(self, kind, topic, callback, qos, **_):
        self.callbacks[topic] = callback
        return SimpleNamespace(handle=Queue(self.counts[topic]), msg_type=kind)


def delivered(counts):
    """Topic → messages that one call of the executor hands over."""
    came = Counter()
    node = FakeNode(counts)
    Streams(node, CONTRACT, lambda topic, _: came.update([topic]))
    node.callbacks["/eef_pose"](b"")
    return came


def test_what_has_come_is_handed_over_at_once():
    """Also of the other topics: a frame needs one of each."""
    counts = dict.fromkeys(CONTRACT.topics, 3)
    came = delivered(counts)
    assert came == {**counts, "/eef_pose": 4}


def test_who_publishes_without_end_does_not_keep_the_executor():
    """It comes back, and every other topic has had its turn."""
    came = delivered({**dict.fromkeys(CONTRACT.topics, 5), "/eef_pose": 10**9})
    assert came["/eef_pose"] == 1 + ROUNDS
    assert {came[topic] for topic in CONTRACT.topics if topic != "/eef_pose"} == {5}


ARM = """
name: arm
rate_hz: 10
anchor: q
observations:
  q: {topic: /q, type: sensor_msgs/msg/JointState, names: [a], TIME}
action:
  fields: [{name: arm, kind: joint_position, size: 1, state: q, limits: {velocity: 1}}]
  record: next_state
"""


def joint(position, stamp_s=5):
    """A JointState."""
    stamp = SimpleNamespace(sec=stamp_s, nanosec=0)
    header = SimpleNamespace(stamp=stamp, frame_id="")
    return SimpleNamespace(header=header, name=["a"], position=position)


@pytest.mark.parametrize(("time", "expected"), [("header", 5), ("receipt", 9)])
def test_the_players_measurements_have_the_time_that_the_contract_says(time, expected):
    """A driver's own, or that of receipt where the driver's is of no use."""
    measured = Measured(Contract.from_text(ARM.replace("TIME", f"time: {time}")))
    measured.take("/q", joint([0.0]), 9 * 10**9)
    assert measured.times_ns == {"q": expected * 10**9}


def test_what_nobody_thought_of_is_a_problem_of_the_player():
    """By name, until a message can be read."""
    measured = Measured(Contract.from_text(ARM.replace("TIME", "time: header")))
    measured.take("/q", joint(None), 0)
    assert measured.problem.startswith("q (/q): TypeError") and measured.missing == ["q"]
    measured.take("/q", joint([0.5]), 0)
    assert not measured.problem and measured.arrays["q"] == [0.5]


def test_an_error_of_ours_holds_the_robot_and_does_not_end_the_node():
    """It is logged with its traceback, and told by the topic's name."""
    said = []

    class Loop(SimpleNamespace):
        def push(self, *_):
            raise ZeroDivisionError

        def refuse(self, *why):
            said.append(why[:2])

    link = object.__new__(RobotLink)
    link.runner = SimpleNamespace(turn=lambda: contextlib.nullcontext(Loop()))
    log = SimpleNamespace(error=lambda text, **_: said.append(text))
    link._node = SimpleNamespace(get_logger=lambda: log)
    link._on_message("/q", joint([0.0]))
    assert "Traceback" in said[0] and said[1] == ("/q", "/q: ZeroDivisionError()")


def test_what_has_no_header_is_believed_about_its_frame():
    """A type of one's own, or a bare Transform, whose action is in a frame by name."""
    text = """
name: arm
rate_hz: 10
anchor: tcp
observations:
  tcp: {topic: /tcp, type: geometry_msgs/msg/Transform, field: translation, shape: [3]}
action:
  fields: [{name: t, kind: position, frame: base_link, state: tcp}]
  record: next_state
"""
    measured = Measured(Contract.from_text(text))
    at, turn = SimpleNamespace(x=1.0, y=0.0, z=0.0), SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    measured.take("/tcp", SimpleNamespace(translation=at, rotation=turn, header=None), 0)
    assert not measured.problem and measured.arrays["tcp"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("quaternion", "type: geometry_msgs/msg/PoseStamped, field: pose.orientation"),
        ("position", "type: geometry_msgs/msg/Pose, field: position"),
        ("position", "type: geometry_msgs/msg/Pose, field: position, scale: [0.1, 0.1, 0.1]"),
    ],
)
def test_the_other_half_of_a_pose_is_read_as_what_it_is(kind, state):
    """A position is no quaternion, and is where the message has it; mm are no units of turns."""
    text = ARM.replace("action:", f"  tcp: {{topic: /tcp, {state}}}\naction:")
    before, after = text.split("fields:")
    rest = after.partition("\n")[2]
    text = f"{before}fields: [{{name: t, kind: {kind}, state: tcp}}]\n{rest}"
    contract = Contract.from_text(text.replace("TIME", "time: header"))
    contract.check_outputs()
    measured = Measured(contract)
    at, turn = SimpleNamespace(x=0.4, y=0.0, z=0.0), SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    pose = SimpleNamespace(position=at, orientation=turn, header=None)
    stamped = SimpleNamespace(header=joint([]).header, pose=pose)
    measured.take("/tcp", stamped if kind == "quaternion" else pose, 0)
    assert not measured.problem and not measured.missing
    whole = {len(value): value.tolist() for value in measured.arrays.values()}
    assert whole[4] == [0, 0, 0, 1] and whole[3][1:] == [0, 0]
