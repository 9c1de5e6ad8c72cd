"""Observations as messages: every value comes back, with every kind of constructor."""

import array
import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from diffusion_policy_ros.sim.messages import (
    TOPICS,
    command_message,
    messages,
    numpy_array,
    ros_array,
)

NAMES = ["x", "y", "z", "rx", "ry", "rz", "gripper"]
STAMP_NS = 12_345_678_901_234


def observation(seed: int = 0) -> dict[str, np.ndarray]:
    """Random values of every key."""
    rng = np.random.default_rng(seed)
    vectors = {
        "robot0_eef_pos": 3,
        "robot0_eef_quat": 4,
        "robot0_gripper_qpos": 2,
        "object_pos": 3,
        "object_quat": 4,
        "gripper_to_object_pos": 3,
    }
    obs = {key: rng.normal(size=n).astype(np.float32) for key, n in vectors.items()}
    for key in ("agentview_image", "robot0_eye_in_hand_image"):
        obs[key] = rng.integers(0, 256, (84, 84, 3), np.uint8)
    return obs


def plain(_name):
    """Namespaces."""
    return SimpleNamespace


def rosbags_types(name):
    """Dataclasses of rosbags."""
    stores = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")
    return stores.get_typestore(stores.Stores.ROS2_JAZZY).types[name]


def rclpy_types(name):
    """Classes of an installed ROS."""
    package, _, kind = name.split("/")
    reason = f"{package} is not installed: pip install -e '.[ros]'"
    module = pytest.importorskip(f"{package}.msg", reason=reason)
    return getattr(importlib.import_module(module.__name__), kind)


KINDS = [
    pytest.param(plain, numpy_array, id="plain"),
    pytest.param(rosbags_types, numpy_array, id="rosbags"),
    pytest.param(rclpy_types, ros_array, id="rclpy", marks=pytest.mark.ros),
]


def vector(message, *fields):
    """Fields of a message as a float32 vector."""
    return np.array([getattr(message, f) for f in fields], np.float32)


@pytest.mark.parametrize(("types", "arrays"), KINDS)
def test_every_observation_comes_back_from_its_message(types, arrays):
    """Images byte for byte, float32 vectors exactly, stamps to the nanosecond."""
    obs = observation()
    sent = {m.topic: m for m in messages(obs, STAMP_NS, types, arrays)}
    assert {topic: m.type_name for topic, m in sent.items()} == TOPICS
    stamps = [m.message.header.stamp for m in sent.values()]
    assert {(s.sec, s.nanosec) for s in stamps} == {(12_345, 678_901_234)}
    for topic, key in [
        ("/agentview/image_raw", "agentview_image"),
        ("/eye_in_hand/image_raw", "robot0_eye_in_hand_image"),
    ]:
        image = sent[topic].message
        assert (image.height, image.width, image.step) == (84, 84, 252)
        assert image.encoding == "rgb8"
        assert_array_equal(np.frombuffer(image.data, np.uint8).reshape(84, 84, 3), obs[key])
    for topic, position, quaternion in [
        ("/eef_pose", "robot0_eef_pos", "robot0_eef_quat"),
        ("/object_pose", "object_pos", "object_quat"),
        ("/gripper_to_object", "gripper_to_object_pos", None),
    ]:
        pose = sent[topic].message.pose
        assert_array_equal(vector(pose.position, "x", "y", "z"), obs[position])
        expected = obs[quaternion] if quaternion else [0, 0, 0, 1]
        assert_array_equal(vector(pose.orientation, "x", "y", "z", "w"), expected)
    joints = sent["/gripper/joint_states"].message
    assert list(joints.name) == ["left", "right"]
    assert_array_equal(np.float32(joints.position), obs["robot0_gripper_qpos"])


@pytest.mark.parametrize(("types", "arrays"), KINDS)
def test_a_command_carries_the_action_with_its_names(types, arrays):
    """One point, exactly the action, in double precision."""
    action = np.random.default_rng(1).normal(size=7)
    topic, type_name, message = command_message(action, STAMP_NS, NAMES, types, arrays)
    assert (topic, type_name) == ("/eef_command", "trajectory_msgs/msg/JointTrajectory")
    assert list(message.joint_names) == NAMES
    (point,) = message.points
    assert_array_equal(np.array(point.positions), action)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12_345, 678_901_234)
    assert message.header.frame_id == "base"


def test_rosbags_serializes_every_message_and_reads_it_back():
    """So nothing is missing from any message, and no field has a wrong type."""
    stores = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")
    store = stores.get_typestore(stores.Stores.ROS2_JAZZY)
    obs = observation(2)
    sent = messages(obs, STAMP_NS, store.types.__getitem__)
    sent.append(command_message(np.arange(7.0), STAMP_NS, NAMES, store.types.__getitem__))
    for _, type_name, message in sent:
        raw = store.serialize_cdr(message, type_name)
        again = store.deserialize_cdr(raw, type_name)
        assert bytes(store.serialize_cdr(again, type_name)) == bytes(raw)


@pytest.mark.ros
def test_a_message_written_by_rosbags_is_the_one_rclpy_sends():
    """A bag recorded from the live robot and one written without ROS carry the same messages."""
    serialization = pytest.importorskip("rclpy.serialization", reason="rclpy is not installed")
    stores = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")
    store = stores.get_typestore(stores.Stores.ROS2_JAZZY)
    obs = observation(3)
    live = messages(obs, STAMP_NS, rclpy_types, ros_array)
    live.append(command_message(np.arange(7.0), STAMP_NS, NAMES, rclpy_types, ros_array))
    written = messages(obs, STAMP_NS, store.types.__getitem__)
    written.append(command_message(np.arange(7.0), STAMP_NS, NAMES, store.types.__getitem__))
    for a, b in zip(live, written, strict=True):
        raw = bytes(store.serialize_cdr(b.message, b.type_name))
        assert serialization.deserialize_message(raw, type(a.message)) == a.message


def test_without_images_only_the_other_topics_are_sent():
    """A robot without cameras publishes no empty pictures."""
    obs = {k: v for k, v in observation().items() if not k.endswith("_image")}
    topics = [m.topic for m in messages(obs, 0, plain)]
    assert topics == ["/eef_pose", "/object_pose", "/gripper_to_object", "/gripper/joint_states"]


def test_ros_arrays_are_the_type_that_rclpy_takes_whole():
    """uint8 becomes 'B', float64 becomes 'd', also when empty or not contiguous."""
    assert ros_array(np.arange(6, dtype=np.uint8)[::2]) == array.array("B", [0, 2, 4])
    assert ros_array(np.zeros(0)) == array.array("d")


def test_an_action_of_the_wrong_size_is_refused():
    """Names and numbers belong together one by one."""
    with pytest.raises(ValueError, match="6 components, 7 names"):
        command_message(np.zeros(6), 0, NAMES, plain)
