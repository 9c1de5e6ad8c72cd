"""Any message, live over DDS and from a bag: the same bytes give the same frames."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from live import LATCHED, live  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.bags import (  # noqa: E402
    BagWriter,
    message_types,
    open_bag,
    serialize,
)
from diffusion_policy_ros.data.definitions import problems  # noqa: E402
from diffusion_policy_ros.observe.codecs import decode  # noqa: E402
from diffusion_policy_ros.ros import message_types as message_types_module  # noqa: E402
from diffusion_policy_ros.ros.definitions import definition, name_installed  # noqa: E402
from diffusion_policy_ros.ros.message_types import message_class, serialized_class  # noqa: E402
from diffusion_policy_ros.ros.streams import Streams  # noqa: E402

pytestmark = pytest.mark.ros
MANY = "sensor_msgs/msg/MultiDOFJointState"
STREAMS = {
    "pose": ("geometry_msgs/msg/PoseStamped", "pose.position", ""),
    "turn": ("geometry_msgs/msg/TransformStamped", "transform.rotation", ""),
    "twist": ("geometry_msgs/msg/TwistStamped", "twist.angular", ""),
    "wrench": ("geometry_msgs/msg/WrenchStamped", "wrench.force", ""),
    "bare_wrench": ("geometry_msgs/msg/Wrench", "torque", ""),
    "bare_pose": ("geometry_msgs/msg/Pose", "position", ""),
    "bare_twist": ("geometry_msgs/msg/Twist", "linear", ""),
    "odometry": ("nav_msgs/msg/Odometry", "pose.pose.position", ""),
    "covariance": ("nav_msgs/msg/Odometry", "pose.covariance[0:6]", ""),
    "imu": ("sensor_msgs/msg/Imu", "linear_acceleration", ""),
    "axis": ("sensor_msgs/msg/Joy", "axes[1]", ""),
    "buttons": ("sensor_msgs/msg/Joy", "buttons", ", shape: [2]"),
    "point": ("geometry_msgs/msg/PointStamped", "point", ""),
    "vector": ("geometry_msgs/msg/Vector3Stamped", "vector.y", ""),
    "double": ("std_msgs/msg/Float64", "data", ""),
    "flag": ("std_msgs/msg/Bool", "data", ""),
    "count": ("std_msgs/msg/Int32", "data", ""),
    "array": ("std_msgs/msg/Float32MultiArray", "data[1:3]", ""),
    "finger": ("sensor_msgs/msg/JointState", "position[name=finger]", ""),
    # Types that no table of ours knows, as a robot's own are.
    "base": (
        "sensor_msgs/msg/MultiDOFJointState",
        "transforms[joint_names=base].translation",
        ", shape: [3]",
    ),
    "marker": ("visualization_msgs/msg/Marker", "points[0]", ", shape: [3]"),
    "battery": ("sensor_msgs/msg/BatteryState", "cell_voltage[0:2]", ""),
}
TEXT = (
    "name: any\nrate_hz: 20\nanchor: pose\nobservations:\n"
    + "".join(
        f"  {key}: {{topic: /{key}, type: {kind}, field: '{field}'{more}}}\n"
        for key, (kind, field, more) in STREAMS.items()
    )
    + "action:\n  fields: [{name: way, kind: delta_position, state: pose}]\n  record: next_state\n"
)
CONTRACT = Contract.from_text(TEXT)


@pytest.fixture
def context(tmp_path):
    """A context in a domain of its own."""
    with live(tmp_path) as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain.domain)
        yield context
        rclpy.try_shutdown(context=context)


def filled(kind, rng):
    """A message with numbers everywhere, and names where there are any."""
    msg = message_class(kind)()
    fill(msg, rng)
    return msg


def fill(msg, rng):
    """Put numbers into a message's fields."""
    for name, kind in msg.get_fields_and_field_types().items():
        value = getattr(msg, name)
        if name in ("name", "joint_names"):
            setattr(msg, name, ["other", "finger", "base"])
        elif kind == "boolean":
            setattr(msg, name, True)
        elif kind in ("double", "float"):
            setattr(msg, name, round(float(rng.normal()), 3))
        elif kind == "int32":
            setattr(msg, name, int(rng.integers(-99, 99)))
        elif kind in ("sequence<double>", "sequence<float>"):
            setattr(msg, name, [float(x) for x in np.round(rng.normal(size=3), 3)])
        elif kind == "sequence<int32>":
            setattr(msg, name, [int(x) for x in rng.integers(0, 2, 2)])
        elif kind == "double[36]":
            setattr(msg, name, np.round(rng.normal(size=36), 3))
        elif kind.startswith("sequence<geometry_msgs"):
            one = message_class(kind[9:-1].replace("/", "/msg/"))
            setattr(msg, name, [one() for _ in range(3)])
            for part in getattr(msg, name):
                fill(part, rng)
        elif kind == "geometry_msgs/Quaternion":
            value.x, value.w = 0.6, 0.8
        elif hasattr(value, "get_fields_and_field_types") and name != "header":
            fill(value, rng)
    if hasattr(msg, "header"):
        msg.header.stamp.sec = 5


def test_live_and_recorded_messages_of_twenty_types_are_the_same(tmp_path, context):
    """Published, received, recorded as they came, read back: equal arrays, bit for bit."""
    rng, came = np.random.default_rng(0), {}
    node = rclpy.create_node("any_message", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        streams = Streams(node, CONTRACT, lambda topic, msg: came.setdefault(topic, msg))
        publishers = {
            f"/{key}": (
                node.create_publisher(message_class(kind), f"/{key}", 1),
                filled(kind, rng),
            )
            for key, (kind, _, _) in STREAMS.items()
        }
        deadline = time.monotonic() + 30
        while len(came) < len(STREAMS) and time.monotonic() < deadline:
            for topic, (publisher, msg) in publishers.items():
                if topic not in came:
                    publisher.publish(msg)
            executor.spin_once(timeout_sec=0.05)
        streams.destroy()
    finally:
        executor.shutdown()
        node.destroy_node()
    assert came.keys() == CONTRACT.topics.keys()
    name_installed(set(CONTRACT.recorded_topics.values()))
    with BagWriter(tmp_path / "bag", CONTRACT.recorded_topics) as writer:
        for topic, msg in came.items():
            writer.write(topic, 1, bytes(msg._raw))
    recorded = {topic: msg for topic, _, msg in open_bag(tmp_path / "bag").messages()}
    for key, stream in CONTRACT.observations.items():
        live = decode(stream, came[stream.topic])
        again = decode(stream, recorded[stream.topic])
        published = decode(stream, publishers[stream.topic][1])
        assert live.tolist() == again.tolist() == published.tolist(), key
        assert live.shape == stream.shape and np.abs(live).max() > 0, key
    assert decode(CONTRACT.observations["turn"], recorded["/turn"]) == pytest.approx(
        [0.6, 0, 0, 0.8]
    )


ARM = "toy_msgs/msg/ArmState"
TF = "tf2_msgs/msg/TFMessage"
OF_ITS_OWN = """
name: own
rate_hz: 20
anchor: position
observations:
  position: {topic: /arm, type: toy_msgs/msg/ArmState, field: 'pose[0:3]', definition: FILE}
  width: {topic: /arm, type: toy_msgs/msg/ArmState, field: 'widths[1]', shape: [1]}
  tool: {tf: {parent: base, child: tool}}
action:
  fields: [{name: way, kind: delta_position, state: position}]
  record: next_state
"""
DEFINITION = """std_msgs/Header header
float64[6] pose
float64[2] widths
"""


def test_types_that_are_not_installed_are_heard_and_recorded_the_same(tmp_path, context):
    """A robot's own, whose definition the contract names, and tf's, which the wheels lack."""
    (tmp_path / "ArmState.msg").write_text(DEFINITION)
    text = OF_ITS_OWN.replace("FILE", str(tmp_path / "ArmState.msg"))
    contract, came = Contract.from_text(text), {}
    node = rclpy.create_node("own", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        streams = Streams(node, contract, lambda topic, msg: came.setdefault(topic, msg))
        sent = {"/arm": (ARM, own_arm()), "/tf": (TF, own_tf(0.1)), "/tf_static": (TF, own_tf(0))}
        publishers = {
            topic: node.create_publisher(serialized_class(kind), topic, LATCHED)
            for topic, (kind, _) in sent.items()
        }
        deadline = time.monotonic() + 30
        while len(came) < 3 and time.monotonic() < deadline:
            for topic, publisher in publishers.items():
                publisher.publish(serialize(*sent[topic]))
            executor.spin_once(timeout_sec=0.05)
        streams.destroy()
    finally:
        executor.shutdown()
        node.destroy_node()
    assert came.keys() == {"/arm", "/tf", "/tf_static"}
    with BagWriter(tmp_path / "bag", contract.recorded_topics) as writer:
        for topic, msg in came.items():
            writer.write(topic, 1, bytes(msg._raw))
    recorded = {topic: msg for topic, _, msg in open_bag(tmp_path / "bag").messages()}
    for key in ("position", "width"):
        stream = contract.observations[key]
        live, again = decode(stream, came["/arm"]), decode(stream, recorded["/arm"])
        assert live.tolist() == again.tolist() == {"position": [0, 1, 2], "width": [2]}[key]
    for messages in (came, recorded):
        (found,) = messages["/tf"].transforms
        assert (found.child_frame_id, found.transform.translation.x) == ("tool", 0.1)


def own_arm():
    """One message."""
    stamp = message_types("builtin_interfaces/msg/Time")(sec=5, nanosec=0)
    header = message_types("std_msgs/msg/Header")(stamp=stamp, frame_id="base")
    return message_types(ARM)(header=header, pose=np.arange(6.0), widths=np.array([1.0, 2.0]))


def own_tf(x):
    """One edge."""
    header = own_arm().header
    vector = message_types("geometry_msgs/msg/Vector3")(x=x, y=0.0, z=0.0)
    turn = message_types("geometry_msgs/msg/Quaternion")(x=0.0, y=0.0, z=0.0, w=1.0)
    inner = message_types("geometry_msgs/msg/Transform")(translation=vector, rotation=turn)
    kind = message_types("geometry_msgs/msg/TransformStamped")
    return message_types(TF)(
        transforms=[kind(header=header, child_frame_id="tool", transform=inner)]
    )


def test_the_paths_are_in_the_definitions():
    """As contract check has it, of types that it knows of itself."""
    assert list(problems(CONTRACT)) == []


def test_installed_definitions_are_what_the_standard_has():
    """Written from the message's class: bags of a robot's own types carry them."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    standard = get_typestore(Stores.ROS2_JAZZY).fielddefs
    for kind in {kind for kind, _, _ in STREAMS.values()} | {
        "diagnostic_msgs/msg/DiagnosticArray"
    }:
        for name, (_, fields) in get_types_from_msg(definition(kind), kind).items():
            assert fields == standard[name][1], name


def test_a_header_that_is_not_the_first_field_is_no_stamp(monkeypatch):
    """What stands there would be read as one; a bag of the type has the time of receipt, too."""
    fields = {"id": "int32", "ratio": "float", "header": "std_msgs/Header"}
    kind = SimpleNamespace(get_fields_and_field_types=lambda: fields)
    monkeypatch.setattr(message_types_module, "message_class", lambda _: kind)
    assert not message_types_module.has_header("own_msgs/msg/Tracked")
    made = message_types_module.reader.__wrapped__("own_msgs/msg/Tracked")(memoryview(bytes(20)))
    assert made.header is None
