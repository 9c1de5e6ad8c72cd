"""Messages that are taken by a thread of their own."""

import threading
import time

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

import rclpy  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from live import START_S  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.ros.streams_thread import FOREVER_NS, StreamsThread  # noqa: E402

pytestmark = pytest.mark.ros
CONTRACT = Contract.load("mini_lift_state")
TOPIC = "/eef_pose"


@pytest.fixture
def node(domain):
    """A node that nobody spins."""
    rclpy.init(domain_id=domain.domain)
    made = rclpy.create_node("takes")
    yield made
    made.destroy_node()
    rclpy.shutdown()


def until(done, publisher):
    """Publish until a condition holds."""
    deadline = time.monotonic() + START_S
    while not done():
        assert time.monotonic() < deadline
        publisher.publish(PoseStamped())
        time.sleep(0.02)


def test_messages_come_while_the_executor_does_not_spin(node):
    """Also after it subscribed anew, to a publisher that wants it otherwise."""
    came = []
    streams = StreamsThread(node, CONTRACT, lambda *got: came.append(got[0]), lambda: FOREVER_NS)
    streams.start()
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = node.create_publisher(PoseStamped, TOPIC, latched)
    until(lambda: came, publisher)
    streams._subscribe_anew(TOPIC)
    count = len(came)
    until(lambda: len(came) > count + 3, publisher)
    assert set(came) == {TOPIC}
    streams.destroy()


def test_an_error_on_the_thread_ends_the_spinning(node):
    """As one in a callback does; the thread itself ends without a word."""
    failed = threading.Event()

    def on_message(topic, _):
        failed.set()
        raise ValueError(topic)

    streams = StreamsThread(node, CONTRACT, on_message, lambda: FOREVER_NS)
    streams.start()
    until(failed.is_set, node.create_publisher(PoseStamped, TOPIC, 10))
    with pytest.raises(ValueError, match=TOPIC):
        rclpy.spin_once(node, timeout_sec=START_S)
    streams.destroy()


def test_it_waits_no_longer_than_it_may_and_can_be_woken(node):
    """What is due is done in time, without any message."""
    waits = iter([0, 1_000_000])
    asked = threading.Semaphore(0)

    def on_time():
        asked.release()
        return next(waits, FOREVER_NS)

    streams = StreamsThread(node, CONTRACT, lambda *_: None, on_time)
    streams.start()
    for _ in range(3):
        assert asked.acquire(timeout=START_S)
    streams.wake()
    assert asked.acquire(timeout=START_S)
    streams.destroy()
