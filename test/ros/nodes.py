"""A robot that can be made to misbehave, and the policy node as a process of its own."""

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from trajectory_msgs.msg import JointTrajectory

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.observe.codecs import stamp_ns
from diffusion_policy_ros.ros.message_types import message_class
from diffusion_policy_ros.sim.messages import messages, ros_array

CONTRACT = Contract.load("mini_lift")
PERIOD_NS = CONTRACT.period_ns
JOINTS = """
name: joints
rate_hz: 20
anchor: q
observations:
  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [shoulder, elbow]}
action:
  fields: [{name: arm, kind: joint_position, size: 2, state: q}]
  record: next_state
  limits: {joint_velocity: [1.0]}
"""
TINY = """
policy:
  num_inference_steps: 2
  replan_steps: 2
  image_encoder: {name: small_conv, keypoints: 4, features: 0}
  denoiser: {name: unet1d, down_dims: [8, 16], n_groups: 4}
"""


class Robot:
    """Publishes two cameras, a pose and a gripper by a timer, which runs while the domain waits.

    Args:
        domain: in which.
        without: topics that somebody else publishes.
        namespace: before the topics' names.

    Attributes:
        change: (topic, message) → the message to send instead, or None for none.
        stamps: of the frames sent so far.
    """

    def __init__(self, domain, without=(), namespace=""):
        self.domain, self.stamps, self._namespace = domain, [], namespace
        self._topics = set(CONTRACT.topics) - set(without)
        self.change = lambda topic, message: message
        self._publishers = {}
        self._random = np.random.default_rng(0)
        self._clock = domain.node.get_clock()
        self._timer = domain.node.create_timer(PERIOD_NS / 1e9, self._tick)

    def observation(self):
        """Random images, a pose that moves."""
        image = self._random.integers(0, 256, (84, 84, 3), dtype=np.uint8)
        up = np.array([0.0, 0.0, 0.0, 1.0])
        position = self._random.normal(size=3) * 0.1
        return {
            "agentview_image": image,
            "robot0_eye_in_hand_image": image[::-1],
            "robot0_eef_pos": position,
            "robot0_eef_quat": up,
            "robot0_gripper_qpos": np.zeros(2),
            "object_pos": position,
            "object_quat": up,
            "gripper_to_object_pos": position,
        }

    def _tick(self):
        self.send(self._clock.now().nanoseconds)

    def send(self, stamp):
        """Publish one frame, cameras last."""
        self.stamps.append(stamp)
        made = messages(self.observation(), stamp, message_class, ros_array)
        for topic, kind, message in reversed(made):
            if topic not in self._topics:
                continue
            if topic not in self._publishers:
                create = self.domain.node.create_publisher
                name = self._namespace + topic
                self._publishers[topic] = create(message_class(kind), name, 10)
            message = self.change(topic, message)
            if message is not None:
                self.publish(topic, message)

    def publish(self, topic, message):
        """Send it."""
        self._publishers[topic].publish(message)

    def silence(self):
        """Publish nothing any more."""
        self._timer.cancel()

    def resume(self):
        """Publish again."""
        self._timer.reset()


class Policy:
    """The policy node's process and what it publishes.

    Attributes:
        outputs: every chunk and hold, in order.
        arrays: all diagnostics that were heard.
        reports: every status that it published.
    """

    def __init__(self, domain, checkpoint, namespace="", **parameters):
        self.domain, self.name = domain, f"{namespace}/policy_node"
        self.outputs = domain.listen(JointTrajectory, f"{self.name}/action_chunk")
        self.arrays = domain.listen(DiagnosticArray, "/diagnostics")
        self.process = self.start(domain, {"checkpoint": checkpoint, **parameters})

    def start(self, domain, parameters):
        """Its process."""
        words = ["--ros-args", "-r", f"__ns:={self.name.removesuffix('/policy_node') or '/'}"]
        return domain.start("policy_node", *words, **{"threads": 1, **parameters})

    @property
    def reports(self):
        every = [array.status[0] for array in self.arrays]
        return [status for status in every if status.name == f"{self.name}: policy"]

    @property
    def values(self):
        """The newest report's values."""
        return {entry.key: entry.value for entry in self.reports[-1].values}

    @property
    def chunks(self):
        return [message for message in self.outputs if message.points]

    @property
    def holds(self):
        return [message for message in self.outputs if not message.points]

    def until_running(self):
        """Wait until chunks flow and it says so."""
        seen = len(self.chunks)
        self.domain.until(lambda: len(self.chunks) > seen, why="chunks come")
        self.until_says("running")

    def until_says(self, text):
        """Wait for a report with this in its message, and return it."""
        seen = len(self.reports)

        def found():
            new = self.reports[max(seen - 1, 0) :]
            return next((status for status in new if text in status.message), None)

        return self.domain.until(found, why=f"it reports {text!r}")

    def until_holds(self):
        """Wait for the next hold and return its stamp."""
        seen = len(self.holds)
        self.domain.until(lambda: len(self.holds) > seen, why="it holds")
        return stamp_ns(self.holds[-1])
