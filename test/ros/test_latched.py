"""Latched topics and the quality of service that is asked for, over DDS."""

import time

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from live import live  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.ros.message_types import message_class  # noqa: E402
from diffusion_policy_ros.ros.streams import Streams  # noqa: E402

pytestmark = pytest.mark.ros
TEXT = """
name: latched
rate_hz: 10
anchor: pose
observations:
  pose: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  goal: {topic: /goal, type: geometry_msgs/msg/PoseStamped, field: pose.position, static: true}
action:
  fields: [{name: way, kind: delta_position, state: pose}]
  record: next_state
"""
POSE = "geometry_msgs/msg/PoseStamped"
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def nodes(tmp_path):
    """Two nodes in a domain of their own, and what spins both until something holds."""
    with live(tmp_path) as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain.domain)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        made = [rclpy.create_node(name, context=context) for name in ("here", "there")]
        for node in made:
            executor.add_node(node)

        def until(holds):
            deadline = time.monotonic() + 30
            while not holds() and time.monotonic() < deadline:
                executor.spin_once(timeout_sec=0.05)
            assert holds()

        yield (*made, until)
        executor.shutdown()
        for node in made:
            node.destroy_node()
        rclpy.try_shutdown(context=context)


def test_what_was_latched_is_heard_by_who_was_there_first(nodes):
    """The publisher comes later, says it once, and before it is discovered."""
    here, there, until = nodes
    came = []
    streams = Streams(here, Contract.from_text(TEXT), lambda topic, _: came.append(topic))
    publisher = there.create_publisher(message_class(POSE), "/goal", LATCHED)
    publisher.publish(message_class(POSE)())
    until(lambda: "/goal" in came)
    streams.destroy()


def test_a_publisher_that_offers_less_is_heard_though_others_are(nodes):
    """Reliable was asked for, and is heard; then one comes that is not."""
    here, there, until = nodes
    reliable = there.create_publisher(message_class(POSE), "/pose", 1)
    until(lambda: here.count_publishers("/pose") == 1)
    came = []
    streams = Streams(
        here, Contract.from_text(TEXT), lambda _, msg: came.append(msg.header.frame_id)
    )
    less = there.create_publisher(message_class(POSE), "/pose", BEST_EFFORT)
    until(lambda: here.count_publishers("/pose") == 2)
    streams.attend("/pose", silent=False)

    def both():
        for name, publisher in (("reliable", reliable), ("less", less)):
            msg = message_class(POSE)()
            msg.header.frame_id = name
            publisher.publish(msg)
        return {"reliable", "less"} <= set(came)

    until(both)
    streams.destroy()


def test_less_than_the_contract_asks_for_is_named(nodes):
    """By the publisher's node."""
    here, there, until = nodes
    there.create_publisher(message_class(POSE), "/pose", BEST_EFFORT)
    until(lambda: here.count_publishers("/pose") == 1)
    text = TEXT.replace(
        "/pose, type: geometry_msgs/msg/PoseStamped", f"/pose, type: {POSE}, qos: reliable"
    )
    streams = Streams(here, Contract.from_text(text), lambda *_: None)
    assert streams.attend("/pose") == "there offers less than the contract's qos: reliable"
    streams.destroy()
