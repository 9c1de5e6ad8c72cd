"""How messages are taken from the contract's topics."""

import contextlib
from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diffusion_policy_ros.contract import Contract  # noqa: E402
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
