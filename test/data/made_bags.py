"""Recordings made by hand for tests: a pose that moves, a small camera, a command."""

from types import SimpleNamespace

import numpy as np
from rosbags.typesys import Stores, get_typestore

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, serialize

MS = 1_000_000
PERIOD = 50 * MS
START = 1_000_000_000
IMAGE, POSE = "sensor_msgs/msg/Image", "geometry_msgs/msg/PoseStamped"
JOINTS, TRAJECTORY = "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"
TEXT = """
name: made
rate_hz: 20
anchor: camera
observations:
  camera: {topic: /camera, type: sensor_msgs/msg/Image, shape: [4, 6, 3], resize: none}
  position: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  orientation: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
action:
  fields:
    - {name: translation, kind: delta_position, state: position}
    - {name: rotation, kind: delta_axis_angle, state: orientation}
    - {name: gripper, kind: binary}
  record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}
"""
CONTRACT = Contract.from_text(TEXT)
NEXT_STATE = Contract.from_text(
    TEXT.replace(
        "record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}",
        "record: next_state",
    ).replace("    - {name: gripper, kind: binary}\n", "")
)


def header(stamp_ns, frame_id="base"):
    """A std_msgs/Header."""
    stamp = message_types("builtin_interfaces/msg/Time")(
        sec=int(stamp_ns // 10**9), nanosec=int(stamp_ns % 10**9)
    )
    return message_types("std_msgs/msg/Header")(stamp=stamp, frame_id=frame_id)


def image(stamp_ns, pixels):
    """A rgb8 image of uint8 (H, W, 3)."""
    height, width, _ = pixels.shape
    return message_types(IMAGE)(
        header=header(stamp_ns),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(pixels).ravel(),
    )


def pose(stamp_ns, position, quaternion=(0.0, 0.0, 0.0, 1.0)):
    """A PoseStamped."""
    at = message_types("geometry_msgs/msg/Point")(
        **dict(zip("xyz", map(float, position), strict=True))
    )
    turn = message_types("geometry_msgs/msg/Quaternion")(
        **dict(zip("xyzw", map(float, quaternion), strict=True))
    )
    whole = message_types("geometry_msgs/msg/Pose")(position=at, orientation=turn)
    return message_types(POSE)(header=header(stamp_ns), pose=whole)


def trajectory(stamp_ns, positions):
    """A JointTrajectory of one point: a command."""
    none = np.zeros(0)
    point = message_types("trajectory_msgs/msg/JointTrajectoryPoint")(
        positions=np.asarray(positions, np.float64),
        velocities=none,
        accelerations=none,
        effort=none,
        time_from_start=message_types("builtin_interfaces/msg/Duration")(sec=0, nanosec=0),
    )
    names = [f"a{i}" for i in range(len(positions))]
    return message_types(TRAJECTORY)(header=header(stamp_ns), joint_names=names, points=[point])


def joint_state(stamp_ns, names, positions):
    """A JointState with positions."""
    none = np.zeros(0)
    return message_types(JOINTS)(
        header=header(stamp_ns),
        name=list(names),
        position=np.asarray(positions, np.float64),
        velocity=none,
        effort=none,
    )


def demonstration(frames=12, seed=0, start_ns=START, idle=0):
    """(topic, log time, message) of a motion of 1 cm a frame after ``idle`` frames of rest."""
    rng = np.random.default_rng(seed)
    for i in range(frames):
        ns = start_ns + i * PERIOD
        moved = 0.01 * max(0, i - idle)
        yield "/pose", ns + 1 * MS, pose(ns, (moved, seed, 0.2))
        yield "/camera", ns + 3 * MS, image(ns, rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        speed = 0.01 if i >= idle else 0.0
        yield "/command", ns + 5 * MS, trajectory(ns, [speed, 0, 0, 0, 0, 0, -1.0])


def write_bag(path, messages, contract=CONTRACT, metadata=None):
    """Write (topic, log time, message) as a bag and return its path."""
    types = contract.recorded_topics
    with BagWriter(path, types, metadata) as writer:
        for topic, log_ns, msg in messages:
            writer.write(topic, log_ns, serialize(types[topic], msg))
    return path


def make_bag(path, contract=CONTRACT, metadata=None, **how):
    """Write a demonstration as a bag and return its path."""
    known = contract.recorded_topics
    return write_bag(path, (m for m in demonstration(**how) if m[0] in known), contract, metadata)


def plain(msg):
    """A message's fields as plain nested values, for comparing."""
    if hasattr(msg, "_asdict"):
        return {k: plain(v) for k, v in msg._asdict().items()}
    if isinstance(msg, np.ndarray):
        return msg.tolist()
    if isinstance(msg, memoryview):
        return list(msg)
    if isinstance(msg, list | tuple):
        return [plain(item) for item in msg]
    if hasattr(msg, "__msgtype__") or isinstance(msg, SimpleNamespace):
        return {k: plain(v) for k, v in vars(msg).items() if k != "__msgtype__"}
    return msg


def contents(folder):
    """Every file below a folder: name → bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


STORE = get_typestore(Stores.ROS2_JAZZY)
PLAIN = {"string": "", "bool": True, "float64": 0.5, "float32": 0.5}
DTYPES = {"float64": np.float64, "float32": np.float32, "int32": np.int32, "uint8": np.uint8}


def filled(kind, **given):
    """A message with a number in every field; some as given."""
    values = {}
    for name, (node, of) in STORE.fielddefs[kind][1]:
        if name in given:
            values[name] = given[name]
        elif node.name == "BASE":
            values[name] = PLAIN.get(of[0], 0)
        elif node.name == "NAME":
            values[name] = filled(of)
        else:
            inner = of[0][1][0] if isinstance(of[0][1], tuple) else ""
            count = of[1] if node.name == "ARRAY" else 3 * (inner in DTYPES)
            values[name] = np.full(count, 0.25, DTYPES[inner]) if inner in DTYPES else []
    if kind.endswith("/Quaternion"):
        values = {"x": 0.0, "y": 0.6, "z": 0.0, "w": 0.8}
    return message_types(kind)(**values)


def stamped(msg, ns):
    """The same with a stamp, where it has one."""
    if hasattr(msg, "header"):
        msg.header.stamp.sec, msg.header.stamp.nanosec = int(ns // 10**9), int(ns % 10**9)
    return msg
