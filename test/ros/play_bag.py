"""Publishes a bag's messages, as they were recorded and when, after a line on standard input."""

import sys
import time
from pathlib import Path

import rclpy
from mcap.reader import make_reader
from rclpy.qos import QoSProfile

from diffusion_policy_ros.ros.message_types import message_class

MATCH_S = 180.0


def main(bag: str) -> None:
    """Wait for the word and a subscriber of every topic, play, wait until they have gone."""
    rclpy.init()
    node = rclpy.create_node("player")
    (file,) = Path(bag).glob("*.mcap")
    with file.open("rb") as data:
        recorded = [
            (message.log_time / 1e9, channel.topic, schema.name, message.data)
            for schema, channel, message in make_reader(data).iter_messages()
        ]
    publishers = {
        topic: node.create_publisher(message_class(kind), topic, QoSProfile(depth=100))
        for topic, kind in sorted({(topic, kind) for _, topic, kind, _ in recorded})
    }
    deadline = time.monotonic() + MATCH_S
    observed = [p for topic, p in publishers.items() if topic != "/eef_command"]
    while not all(publisher.get_subscription_count() for publisher in observed):
        assert time.monotonic() < deadline, "nobody listens"
        rclpy.spin_once(node, timeout_sec=0.05)
    sys.stdin.readline()
    start = time.monotonic() - recorded[0][0]
    for log_s, topic, _, data in recorded:
        time.sleep(max(0.0, start + log_s - time.monotonic()))
        publishers[topic].publish(data)
    while any(publisher.get_subscription_count() for publisher in observed):
        rclpy.spin_once(node, timeout_sec=0.05)


if __name__ == "__main__":
    main(sys.argv[1])
