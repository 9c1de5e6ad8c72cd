"""Measure what this machine's DDS does to camera images: two processes, real sizes, real rates.

`python -m diffusion_policy_ros.demo.loopback` publishes two 640x480 rgb8 cameras at 20 Hz from a
child process, receives them here, best effort as cameras are, and prints one line of JSON.
`diffusion-policy doctor` reads it.
"""

from __future__ import annotations

import argparse
import array
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image

WIDTH, HEIGHT, CHANNELS = 640, 480, 3
CAMERAS = 2
RATE_HZ = 20.0
IMAGES = 40
MATCH_S = 30.0  # discovery without multicast takes a second; a busy machine takes long to begin
DRAIN_S = 1.0  # what has not come by then never will


@dataclass
class Result:
    """What was measured.

    Attributes:
        distro: name of the ROS release, empty when nothing tells it.
        rmw: the middleware in use.
        matched: whether the two processes found each other.
        sent: number of images published.
        received: number of those that arrived whole.
        ages_ms: time from stamp to callback of each one that arrived, ms.
    """

    distro: str
    rmw: str
    matched: bool = False
    sent: int = 0
    received: int = 0
    ages_ms: list[float] = field(default_factory=list)


def topics(run_id: int) -> list[str]:
    """Name the topics of one measurement, so that two at a time do not mix."""
    return [f"/diffusion_policy_doctor_{run_id}/camera_{i}" for i in range(CAMERAS)]


def spin_until(node: Node, done: Callable[[], bool], limit_s: float) -> bool:
    """Serve callbacks until `done()` or until the time is over; return what `done()` says then."""
    deadline = time.monotonic() + limit_s
    while not done() and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.02)
    return done()


def publish(run_id: int) -> int:
    """Wait for the receiver, send every image and return how many were sent."""
    node = rclpy.create_node(f"doctor_cameras_{run_id}")
    publishers = [
        node.create_publisher(Image, topic, qos_profile_sensor_data) for topic in topics(run_id)
    ]
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=WIDTH * CHANNELS)
    message.data = array.array("B", os.urandom(WIDTH * HEIGHT * CHANNELS))
    if not spin_until(node, lambda: all(p.get_subscription_count() for p in publishers), MATCH_S):
        return 0
    due = time.monotonic()
    for _ in range(IMAGES):
        message.header.stamp = node.get_clock().now().to_msg()
        for publisher in publishers:
            publisher.publish(message)
        due += 1.0 / RATE_HZ
        spin_until(node, lambda: False, due - time.monotonic())
    # Leaving at once would take unread images along: they lie in this process' shared memory.
    spin_until(node, lambda: not any(p.get_subscription_count() for p in publishers), MATCH_S)
    return IMAGES * CAMERAS


def receive(run_id: int) -> Result:
    """Start the publisher, collect what arrives, and return the result."""
    node = rclpy.create_node(f"doctor_receiver_{run_id}")
    result = Result(os.environ.get("ROS_DISTRO", ""), get_rmw_implementation_identifier())

    def on_image(message: Image) -> None:
        stamp = message.header.stamp
        age_ns = node.get_clock().now().nanoseconds - (stamp.sec * 10**9 + stamp.nanosec)
        result.ages_ms.append(age_ns / 1e6)

    subscriptions = [
        node.create_subscription(Image, topic, on_image, qos_profile_sensor_data)
        for topic in topics(run_id)
    ]
    command = [
        sys.executable,
        "-m",
        "diffusion_policy_ros.demo.loopback",
        "--publish",
        str(run_id),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        collect(node, result)
        for subscription in subscriptions:
            node.destroy_subscription(subscription)
        sent = child.communicate()[0].strip()
    result.sent = int(sent) if sent.isdigit() else 0
    result.received = len(result.ages_ms)
    result.matched = result.sent > 0
    return result


def collect(node: Node, result: Result) -> None:
    """Receive until all have come, or none has come for a while."""
    start_s = MATCH_S + 4.0  # the child's own start included
    seen = 0
    while seen < IMAGES * CAMERAS:
        came = spin_until(
            node, functools.partial(more_than, result, seen), DRAIN_S if seen else start_s
        )
        if not came:
            return
        seen = len(result.ages_ms)


def more_than(result: Result, seen: int) -> bool:
    """Say whether images have come since `seen` were counted."""
    return len(result.ages_ms) > seen


def main() -> int:
    """Print the measurement as JSON; with `--publish`, be its other half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publish", type=int, metavar="RUN", help="send the images of this run")
    args = parser.parse_args()
    rclpy.init()
    try:
        if args.publish is not None:
            print(publish(args.publish))
        else:
            print(json.dumps(asdict(receive(os.getpid()))))
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
