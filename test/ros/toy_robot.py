"""A robot of kinematics only: it is where it was told to be, or where a test puts it."""

import numpy as np

from diffusion_policy_ros.ros.chunks import chunk_msg, time_msg
from diffusion_policy_ros.ros.message_types import message_class
from diffusion_policy_ros.runtime.tail import Chunk

POSE, TRAJECTORY = "geometry_msgs/msg/PoseStamped", "trajectory_msgs/msg/JointTrajectory"


def seconds(message):
    """Its stamp, s."""
    return message.header.stamp.sec + message.header.stamp.nanosec / 1e9


class ToyRobot:
    """Publishes what measures a contract's action, sends chunks, hears what it is told.

    Args:
        domain: where.
        contract: of the player.
        at: key of what is measured → where it is at first.
        player: its name; a relative topic of the contract is in its namespace.
        policy: the node whose chunks it plays.
        now_ns: the time, where it is not the system's.

    Attributes:
        at: key → where it is; a test may change it.
        told: topic, as the contract has it → every message so far.
        once: topics that are published no more.
        frames: topic → frame_id, where it is not the field's.
        actions: (n, Da), the next chunks.
    """

    def __init__(
        self, domain, contract, at, player="/action_player", policy="/policy_node", now_ns=None
    ):
        self.domain, self.node, self.contract = domain, domain.node, contract
        self.at = {key: np.array(at[key], dtype=float) for key in contract.measured}
        self.frames, self._player, self.actions = {}, player, None
        self.once, self._since_s = set(), 0.0
        self.now_ns = now_ns or (lambda: self.node.get_clock().now().nanoseconds)
        self.namespace = player.rpartition("/")[0]
        kinds = {s.topic: s.type for s in contract.measured.values()}
        self._states = {
            topic: self.node.create_publisher(message_class(kind), self.name(topic), 10)
            for topic, kind in kinds.items()
        }
        self._kinds = kinds
        self.told = {
            output.topic: domain.listen(message_class(output.type), self.name(output.topic), 1000)
            for output in contract.outputs
        }
        kind = message_class("trajectory_msgs/msg/JointTrajectory")
        self._chunks = self.node.create_publisher(kind, f"{policy}/action_chunk", 10)
        self.measures = self.node.create_timer(0.02, self.measure)
        self.acts = self.node.create_timer(0.1, self.send)

    def name(self, topic):
        """A topic of the contract in full."""
        if topic.startswith("~/"):
            return f"{self._player}/{topic[2:]}"
        return topic if topic.startswith("/") else f"{self.namespace}/{topic}"

    def measure(self):
        """Publish where it is."""
        for topic, kind in self._kinds.items():
            if topic in self.once:
                continue
            streams = {k: s for k, s in self.contract.measured.items() if s.topic == topic}
            message = message_class(kind)()
            message.header.stamp = time_msg(self.now_ns())
            wanted = {self.contract.frames.get(key, "") for key in streams}
            message.header.frame_id = self.frames.get(topic, max(wanted))
            (self._fill_pose if kind == POSE else self._fill_joints)(message, streams)
            self._states[topic].publish(message)

    def _fill_pose(self, message, streams):
        message.pose.orientation.w = 1.0
        for key, stream in streams.items():
            part = getattr(message.pose, stream.field.rpartition(".")[2])
            for name, value in zip("xyzw", self.at[key].tolist(), strict=False):
                setattr(part, name, value)

    def _fill_joints(self, message, streams):
        for key, stream in streams.items():
            message.name = [*message.name, *stream.names]
            message.position = [*message.position, *self.at[key].tolist()]

    @property
    def poses(self):
        """The set-points of a hand so far, without what is forgotten."""
        return [pose for pose in self.told["~/pose"] if seconds(pose) > self._since_s]

    def forget(self, player):
        """Set-points that were meant for before the player's newest report, heard or not.

        By the player's own clock: a busy test hears of things late.
        """
        self._since_s = player.said_s

    def follow(self):
        """Be where the newest set-points say: poses and what has names, as a robot would."""
        for output in self.contract.outputs:
            heard = self.told[output.topic]
            if not heard or output.type not in (POSE, TRAJECTORY):
                continue
            if output.type == POSE:
                place, turn = heard[-1].pose.position, heard[-1].pose.orientation
                now = [place.x, place.y, place.z], [turn.x, turn.y, turn.z, turn.w]
                values = {"position": now[0], "rotation": now[1]}
                told = {part.state: values[part.role] for part in output.fields}
            else:
                names = list(heard[-1].joint_names)
                place = dict(zip(names, heard[-1].points[0].positions, strict=True))
                told = {
                    part.state: [place[name] for name in self.contract.measured[part.state].names]
                    for part in output.fields
                }
            self.at |= {key: np.array(value) for key, value in told.items()}

    def end(self):
        """Publish nothing any more."""
        self.measures.cancel()
        self.acts.cancel()

    def chunk_message(self, actions):
        """A chunk from now on."""
        chunk = Chunk(self.now_ns(), np.atleast_2d(actions), self.contract.period_ns)
        return chunk_msg(chunk, self.contract)

    def send(self, actions=None):
        """A chunk; of `actions` where none are given."""
        actions = self.actions if actions is None else actions
        if actions is not None:
            self._chunks.publish(self.chunk_message(actions))
