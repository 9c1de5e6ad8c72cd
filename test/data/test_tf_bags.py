"""Poses and targets that are only on tf, from a bag."""

import numpy as np
import pytest
from made_bags import MS, PERIOD, START, header, joint_state

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, serialize
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset

KIND = "tf2_msgs/msg/TFMessage"
TEXT = """
name: tf
rate_hz: 20
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a]}
  tool: {tf: {parent: base, child: tool}}
action:
  fields: [{name: way, kind: position, state: tool}]
  record: next_state
"""


def transforms(*edges):
    """A TFMessage of (parent, child, x, stamp)."""
    vector = message_types("geometry_msgs/msg/Vector3")
    turn = message_types("geometry_msgs/msg/Quaternion")(x=0.0, y=0.0, z=0.0, w=1.0)
    found = [
        message_types("geometry_msgs/msg/TransformStamped")(
            header=header(ns, parent),
            child_frame_id=child,
            transform=message_types("geometry_msgs/msg/Transform")(
                translation=vector(x=float(x), y=0.0, z=0.0),
                rotation=turn,
            ),
        )
        for parent, child, x, ns in edges
    ]
    return message_types(KIND)(transforms=found)


@pytest.fixture
def bag(tmp_path):
    """An arm that goes 1 cm a frame, its tool 10 cm ahead, its target 2 cm farther on."""
    types = {"/tf": KIND, "/tf_static": KIND, "/joint_states": "sensor_msgs/msg/JointState"}
    with BagWriter(tmp_path / "bag", types) as writer:
        writer.write("/tf_static", START, serialize(KIND, transforms(("flange", "tool", 0.1, 0))))
        for i in range(30):
            ns = START + i * PERIOD
            edges = ("base", "flange", 0.01 * i, ns), ("base", "target", 0.01 * i + 0.12, ns)
            writer.write("/tf", ns + MS, serialize(KIND, transforms(*edges)))
            joints = serialize(types["/joint_states"], joint_state(ns, ["a"], [0.0]))
            writer.write("/joint_states", ns + 2 * MS, joints)
    return tmp_path / "bag"


TARGET = "{tf: {parent: base, child: target}, observation_latency_s: LATE}"


@pytest.mark.parametrize(
    ("record", "ahead"),
    [
        ("next_state", 0.01),
        (TARGET.replace("LATE", "0"), 0.02),
        (TARGET.replace("LATE", "0.05"), 0.03),
    ],
)
def test_a_pose_and_a_target_on_tf_become_a_dataset(record, ahead, bag, tmp_path):
    """Observed through a static edge; the action is the next pose, or where the target was."""
    contract = Contract.from_text(TEXT.replace("record: next_state", f"record: {record}"))
    report = convert([bag], contract, tmp_path / "data", options=Options(keep_idle=True)).bags[0]
    assert report.status == "kept" and report.episodes[0][1] >= 29, report.reason
    found = Dataset(tmp_path / "data").episode(0)
    assert found["tool"][:, 0] == pytest.approx(0.1 + 0.01 * np.arange(len(found["tool"])))
    known = slice(-1 if ahead == 0.03 else None)  # the last frame's target was never told
    assert found["action"][known, 0] == pytest.approx(found["tool"][known, 0] + ahead, abs=1e-6)


def test_a_frame_that_tf_does_not_have_is_named(bag, tmp_path):
    """With those that it has."""
    contract = Contract.from_text(TEXT.replace("child: tool", "child: gripper"))
    with pytest.raises(Exception, match="tf has no frame gripper; it has base, flange, targ"):
        convert([bag], contract, tmp_path / "data")
