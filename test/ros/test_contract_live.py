"""`contract check --live`: a contract beside robots that fit it, and that do not."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from diffusion_policy_ros.data.bags import message_types, serialize  # noqa: E402
from diffusion_policy_ros.ros.stand_in import stand_in  # noqa: E402

pytestmark = pytest.mark.ros
TF = "tf2_msgs/msg/TFMessage"
TEXT = """
name: live
rate_hz: 10
anchor: image
observations:
  image: {topic: /camera/image_raw, type: sensor_msgs/msg/Image, shape: [64, 64, 3], resize: none}
  pose: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [shoulder, elbow]}
  force:
    topic: /wrench
    type: geometry_msgs/msg/WrenchStamped
    qos: reliable
  torque: {topic: /wrench_2, type: geometry_msgs/msg/WrenchStamped, field: wrench.force}
  tool: {tf: {parent: base_link, child: tool0}}
action:
  fields:
    - {name: way, kind: delta_position, state: pose, frame: base_link, send: {topic: /target}}
    - {name: turn, kind: twist}
  record:
    - {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
    - {topic: /cmd_vel, type: geometry_msgs/msg/TwistStamped, field: twist.linear}
    - {topic: /cmd_vel, type: geometry_msgs/msg/TwistStamped, field: twist.angular}
"""
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Robot:
    """Publishes what the contract names at 20 Hz.

    Attributes:
        change: topic → what is done to its messages; they are not sent where that says False.
    """

    def __init__(self, domain, without=(), wrench_qos=10):
        self.node, self.change, self._ticks = domain.node, {}, 0
        kinds = {
            "/camera/image_raw": (Image, 10),
            "/pose": (PoseStamped, 10),
            "/joint_states": (JointState, 10),
            "/wrench": (WrenchStamped, wrench_qos),
            "/wrench_2": (WrenchStamped, 10),
            "/cmd_vel": (TwistStamped, 10),
        }
        self._publishers = {
            topic: (kind, self.node.create_publisher(kind, topic, qos))
            for topic, (kind, qos) in kinds.items()
            if topic not in without
        }
        self._tf = self.node.create_publisher(stand_in(TF), "/tf", 10)
        self.child = "tool0"
        self.node.create_timer(0.05, self._tick)

    def _tick(self):
        self._ticks += 1
        stamp = self.node.get_clock().now().to_msg()
        for topic, (kind, publisher) in self._publishers.items():
            message = kind()
            message.header.stamp = stamp
            self.fill(message)
            change = self.change.get(topic)
            if change is None or change(message) is not False:
                publisher.publish(message)
        self._tf.publish(serialize(TF, self._transforms(stamp)))

    def fill(self, message):
        """As the contract has it."""
        if isinstance(message, Image):
            message.height, message.width, message.step = 64, 64, 192
            message.encoding, message.data = "rgb8", np.zeros(64 * 192, np.uint8).tobytes()
        elif isinstance(message, PoseStamped):
            message.header.frame_id, message.pose.orientation.w = "base_link", 1.0
        elif isinstance(message, JointState):
            message.name, message.position = ["elbow", "shoulder"], [0.0, 1.0]

    def _transforms(self, stamp):
        time = message_types("builtin_interfaces/msg/Time")(sec=stamp.sec, nanosec=stamp.nanosec)
        header = message_types("std_msgs/msg/Header")(stamp=time, frame_id="base_link")
        zero = message_types("geometry_msgs/msg/Vector3")(x=0.0, y=0.0, z=0.0)
        turn = message_types("geometry_msgs/msg/Quaternion")(x=0.0, y=0.0, z=0.0, w=1.0)
        inner = message_types("geometry_msgs/msg/Transform")(translation=zero, rotation=turn)
        kind = message_types("geometry_msgs/msg/TransformStamped")
        edge = kind(header=header, child_frame_id=self.child, transform=inner)
        return message_types(TF)(transforms=[edge])

    def every(self, n):
        """Sends one of so many messages."""
        return lambda _: self._ticks % n == 0


def check(domain, tmp_path):
    """Exit code, topic → what is said of it, and all that is said."""
    (tmp_path / "live.yaml").write_text(TEXT)
    words = ["contract", "check", "--live", "--seconds", "2", str(tmp_path / "live.yaml")]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain.domain)}
    command = [sys.executable, "-m", "diffusion_policy_ros.cli.main", *words]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    domain.until(lambda: process.poll() is not None, 60, "it has looked")
    shown, found, topic = process.stdout.read(), {}, ""
    for line in shown.splitlines():
        topic = line.split()[0] if line.startswith(("  /", "  all")) else topic
        found[topic] = found.get(topic, "") + line
    return process.returncode, found, shown


def test_a_robot_that_is_what_the_contract_says(domain, tmp_path):
    """Each topic is ok, with its rate, age and frame."""
    Robot(domain)
    code, said, shown = check(domain, tmp_path)
    assert code == 0, shown
    topics = ("/camera/image_raw", "/pose", "/joint_states", "/wrench", "/wrench_2", "/cmd_vel")
    for topic in (*topics, "/tf"):
        assert said[topic].endswith(" ok") and " Hz " in said[topic] and "test" in said[topic], (
            shown
        )
    assert " base_link " in said["/pose"] and "made of what came" in shown


def test_each_thing_that_does_not_fit_is_told_with_its_cure(domain, tmp_path):
    """An encoding, a frame, a joint, a rate, a type, a quality of service, a way in tf."""
    robot = Robot(domain, without=("/cmd_vel", "/wrench_2"), wrench_qos=BEST_EFFORT)
    domain.another("second").create_publisher(PoseStamped, "/pose", 10)
    domain.node.create_publisher(TwistStamped, "/wrench_2", 10)
    domain.node.create_subscription(TwistStamped, "/target", lambda _: None, 10)
    robot.child = "elbow"
    robot.change = {
        "/camera/image_raw": lambda m: setattr(m, "encoding", "bgr8"),
        "/pose": lambda m: setattr(m.header, "frame_id", "world"),
        "/joint_states": lambda m: setattr(m, "name", ["shoulder", "wrist"]),
        "/wrench": robot.every(10),
    }
    code, said, shown = check(domain, tmp_path)
    assert code == 2 and "error: " in shown and "Traceback" not in shown, shown
    for topic, *texts in (
        ("/camera/image_raw", "the image is 'bgr8', the contract says 'rgb8'", "bgr8"),
        ("/pose", "it is told in 'world', the contract says 'base_link'", "frame_id"),
        ("/pose", "2 nodes publish it: second, test", "end all but one"),
        ("/joint_states", "q: no message has shoulder, elbow together", "mend names:"),
        ("/wrench", "max_age_s is 0.15", "write max_age_s: 1."),
        ("/wrench", "test offers best effort, the contract asks for reliable", "leave qos: out"),
        ("/wrench_2", "is geometry_msgs/msg/TwistStamped, the contract says", "mend type:"),
        ("/tf", "tool: tf has no frame tool0", "it has base_link, elbow"),
        ("/cmd_vel", "note: nobody publishes these commands", "to record"),
        ("/target", "who listens takes geometry_msgs/msg/TwistStamped", "mend send:"),
        ("all", "next to no frame could be made", ""),
    ):
        assert all(text in said[topic] for text in texts), (topic, texts, shown)
