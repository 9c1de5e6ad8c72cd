"""Any robot that a contract describes, as kinematics: it is led along a path, or follows."""

import io
from array import array

import numpy as np
from builtin_interfaces.msg import Time
from PIL import Image as Picture
from trajectory_msgs.msg import JointTrajectoryPoint

from diffusion_policy_ros.data.bags import message_types, serialize
from diffusion_policy_ros.ros.chunks import time_msg
from diffusion_policy_ros.ros.message_types import message_class, serialized_class

LOOP_S = 2.0
"""How long it takes to be where it was."""
TF, IMAGE, JPEG = (
    "tf2_msgs/msg/TFMessage",
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
)
JOINTS, TRAJECTORY = "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"


class ToyCell:
    """Publishes all that a contract observes at its rate; commands, and hears set-points.

    Args:
        domain: where.
        contract: of the robot.

    Attributes:
        at: key of each vector → where it is.
        led: whether it is moved along its path, and commanded; else it is where it is told to be.
        ticks: so far.
        told: topic → set-points that were heard.
    """

    def __init__(self, domain, contract):
        self.node, self.contract, self.led, self.ticks = domain.node, contract, True, 0
        vectors = {k: s for k, s in contract.observations.items() if not s.is_image}
        self.at = {key: path(stream, 0.0) for key, stream in vectors.items()}
        streams = {**contract.recorded_topics}
        self._publishers = {
            topic: self.node.create_publisher(serialized_class(kind), topic, 10)
            for topic, kind in streams.items()
        }
        self.told = {
            output.topic: domain.listen(message_class(output.type), self._topic(output.topic))
            for output in contract.outputs
        }
        self.timer = self.node.create_timer(1 / contract.rate_hz, self._tick)

    def follow(self):
        """Be led no more."""
        self.led = False
        for heard in self.told.values():
            heard.clear()  # of its own commands

    def _topic(self, name):
        return name.replace("~", "/action_player")

    def _tick(self):
        """States, then the commands, then pictures: a frame has the newest of all."""
        self.ticks += 1
        seconds = self.ticks / self.contract.rate_hz
        stamp = time_msg(self.node.get_clock().now().nanoseconds)
        if self.led:
            self.at = {key: path(self.contract.observations[key], seconds) for key in self.at}
        else:
            self._follow()
        seen = sorted(self.contract.topics.items(), key=lambda entry: entry[1][0].is_image)
        pictures = [entry for entry in seen if entry[1][0].is_image]
        for topic, streams in [entry for entry in seen if entry not in pictures]:
            self._send(topic, streams, [self.at.get(s.name) for s in streams], stamp)
        if self.led:
            self._command(seconds + 1 / self.contract.rate_hz, stamp)
        for topic, streams in pictures:
            self._send(topic, streams, [self.ticks], stamp)

    def _send(self, topic, streams, values, stamp, frame=""):
        """One message of all streams of a topic."""
        kind = streams[0].type
        if kind == TF:
            if topic == "/tf":
                self._publishers[topic].publish(serialize(TF, transforms(streams, values, stamp)))
            return
        message = message_class(kind)()
        if hasattr(message, "header"):
            message.header.stamp = Time() if kind == TRAJECTORY else stamp
            message.header.frame_id = frame or streams[0].frame_id
        for stream, value in zip(streams, values, strict=True):
            fill(message, stream, value)
        if kind == TRAJECTORY and not streams[0].names:
            message.joint_names = [
                n for o in self.contract.outputs if o.topic == topic for n in o.names
            ]
        self._publishers[topic].publish(message)

    def _command(self, seconds, stamp):
        """Where to be next, as an operator tells it; a gripper now and then."""
        whole = np.concatenate([self._wanted(p, seconds) for p in self.contract.action.recorded])
        found, begin = {}, 0
        for stream in self.contract.action.commands:
            found.setdefault(stream.topic, []).append((stream, whole[begin:][: stream.size]))
            begin += stream.size
        for topic, parts in found.items():
            streams, values = zip(*parts, strict=True)
            if not streams[0].hold_s or self.ticks % 3 == 0:
                self._send(topic, streams, values, stamp)

    def _wanted(self, part, seconds):
        if part.kind == "binary":
            return np.array([part.open_value if seconds % LOOP_S < 1 else part.closed_value])
        if part.kind == "twist":
            return 0.1 * np.sin(np.arange(6) + seconds * 2 * np.pi / LOOP_S)
        return path(self.contract.observations[part.state], seconds)

    def _follow(self):
        """Be where the newest set-points say."""
        for output in self.contract.outputs:
            for message in self.told[output.topic][-1:]:
                self.at |= {
                    part.state: value
                    for part, value in set_points(output, message, self.contract).items()
                    if part.state in self.at
                }


def path(stream, seconds):
    """Where a stream's values are at a time, on a loop of a few centimetres."""
    turn = seconds * 2 * np.pi / LOOP_S
    if stream.quantity == "orientation":
        half = 0.05 * np.sin(turn)
        return np.array([0.0, 0.0, np.sin(half), np.cos(half)])
    if stream.quantity == "position":
        return np.array([0.4, 0.0, 0.3]) + 0.02 * np.sin(turn + np.arange(3))
    return 0.04 + 0.02 * np.sin(turn + np.arange(stream.size)) + 0.1 * np.arange(stream.size)


def fill(message, stream, value):
    """Say a stream's value."""
    if stream.type in (IMAGE, JPEG):
        picture(message, stream, value)
    elif stream.type == JOINTS:
        scale = np.array(stream.scale or [1.0])
        message.name = [*message.name, *stream.names]
        message.position = [*message.position, *(value / scale).tolist()]
    elif stream.type == TRAJECTORY:
        message.joint_names = list(stream.names)
        message.points = [JointTrajectoryPoint(positions=value.tolist())]
    elif stream.type == "std_msgs/msg/Float64MultiArray":
        message.data = value.tolist()
    elif stream.type == "std_msgs/msg/Float64":
        message.data = float(value[0])
    else:
        for name in stream.field.split("."):
            message = getattr(message, name)
        for name, number in zip("xyzw", value.tolist(), strict=False):
            setattr(message, name, number)


def picture(message, stream, tick):
    """A picture that differs from tick to tick, of the size that the contract has."""
    height, width = stream.source_size or stream.shape[:2]
    if stream.type == JPEG:
        data = io.BytesIO()
        Picture.fromarray(np.full((height, width, 3), tick % 256, np.uint8)).save(data, "JPEG")
        message.format, message.data = "jpeg", array("B", data.getvalue())
        return
    kind, size = (np.uint16, 2) if stream.is_depth else (np.uint8, 3)
    pixels = np.full((height, width * size // kind().itemsize), 150 + tick % 100, kind)
    message.height, message.width, message.step = height, width, width * size
    message.encoding, message.data = stream.encoding, array("B", pixels.tobytes())


def transforms(streams, values, stamp):
    """An edge for each child, from the streams of its translation and its rotation."""
    found = {}
    for stream, value in zip(streams, values, strict=True):
        found.setdefault((stream.tf.parent, stream.tf.child), {})[stream.field] = value
    edges = []
    for (parent, child), parts in found.items():
        time = message_types("builtin_interfaces/msg/Time")(sec=stamp.sec, nanosec=stamp.nanosec)
        header = message_types("std_msgs/msg/Header")(stamp=time, frame_id=parent)
        at, turn = parts.get("translation", np.zeros(3)), parts.get("rotation", np.eye(4)[3])
        inner = message_types("geometry_msgs/msg/Transform")(
            translation=numbered("Vector3", at), rotation=numbered("Quaternion", turn)
        )
        kind = message_types("geometry_msgs/msg/TransformStamped")
        edges.append(kind(header=header, child_frame_id=child, transform=inner))
    return message_types(TF)(transforms=edges)


def numbered(kind, values):
    """A vector or quaternion of a bag's own kind."""
    fields = dict(zip("xyzw", values.tolist(), strict=False))
    return message_types(f"geometry_msgs/msg/{kind}")(**fields)


def set_points(output, message, contract):
    """Field → what a set-point's message says of it."""
    found, begin = {}, 0
    for part in output.fields:
        if output.type == "geometry_msgs/msg/PoseStamped":
            where, turn = message.pose.position, message.pose.orientation
            whole = {
                "position": [where.x, where.y, where.z],
                "rotation": [turn.x, turn.y, turn.z, turn.w],
            }
            found[part] = np.array(whole[part.role])
        elif output.type == TRAJECTORY:
            names = list(message.joint_names)
            place = dict(zip(names, message.points[0].positions, strict=True))
            found[part] = np.array([place[n] for n in contract.observations[part.state].names])
        elif output.type == "std_msgs/msg/Float64MultiArray":
            found[part] = np.array(message.data[begin : begin + part.size])
            begin += part.size
        elif output.type == "std_msgs/msg/Float64":
            found[part] = np.array([message.data])
        else:
            found[part] = np.array([message.linear.x, message.angular.z])
    return found
