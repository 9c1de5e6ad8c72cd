"""Two robots of the shipped contracts, as toys that only move: from messages to a dataset."""

import io

import numpy as np
import pytest
from made_bags import MS, START, filled, header, stamped
from PIL import Image

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, serialize
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.store import Recording, adding
from diffusion_policy_ros.shipped import config_path

FRAMES, PERIOD = 30, 10**9 // 15


def dataset(tmp_path, name, messages):
    """The episode of (topic, log time, message), converted by a shipped contract."""
    contract = Contract.load(name)
    with BagWriter(tmp_path / "bag", contract.recorded_topics) as writer:
        for topic, ns, msg in sorted(messages, key=lambda message: message[1]):
            writer.write(topic, ns, serialize(contract.recorded_topics[topic], msg))
    keep = Options(keep_idle=True)
    report = convert([tmp_path / "bag"], contract, tmp_path / "data", options=keep).bags[0]
    assert report.status == "kept", report.reason
    assert report.episodes[0][1] >= FRAMES - 3, report.refused
    return Dataset(tmp_path / "data").episode(0)


def transform(parent, child, x, ns):
    """A TransformStamped along x."""
    vector = message_types("geometry_msgs/msg/Vector3")(x=float(x), y=0.0, z=0.0)
    turn = message_types("geometry_msgs/msg/Quaternion")(x=0.0, y=0.0, z=0.0, w=1.0)
    inner = message_types("geometry_msgs/msg/Transform")(translation=vector, rotation=turn)
    kind = message_types("geometry_msgs/msg/TransformStamped")
    return kind(header=header(ns, parent), child_frame_id=child, transform=inner)


def tf(*transforms):
    """A TFMessage."""
    return message_types("tf2_msgs/msg/TFMessage")(transforms=list(transforms))


def jpeg():
    """A camera's picture of 320x240."""
    data = io.BytesIO()
    Image.fromarray(np.full((240, 320, 3), 90, np.uint8)).save(data, "JPEG")
    found = np.frombuffer(data.getvalue(), np.uint8)
    return filled("sensor_msgs/msg/CompressedImage", data=found, format="jpeg")


def ur5e():
    """Joints in another order, the gripper's beside them; goals at 7 Hz with stamps of zero."""
    names = list(Contract.load("ur5e_tf_wrench").observations["joints"].names)
    none = np.zeros(0)
    yield "/tf_static", START - MS, tf(transform("flange", "tool0", 0.1, 0))
    for i in range(FRAMES * 7):
        ns = START + i * PERIOD // 7
        turn = 0.1 * (ns - START) / 10**9
        yield "/tf", ns + MS, tf(transform("base_link", "flange", 0.2 * turn, ns))
        state = filled(
            "sensor_msgs/msg/JointState",
            name=names[::-1],
            position=turn + np.arange(6.0)[::-1],
            velocity=none,
            effort=none,
        )
        yield "/joint_states", ns + MS, stamped(state, ns)
        grip = filled(
            "sensor_msgs/msg/JointState",
            name=["finger"],
            position=np.ones(1),
            velocity=none,
            effort=none,
        )
        yield "/joint_states", ns + 2 * MS, stamped(grip, ns + MS // 2)
        wrench = stamped(filled("geometry_msgs/msg/WrenchStamped"), ns)
        yield "/force_torque_sensor_broadcaster/wrench", ns + MS, wrench
        if i % 7 == 0:
            yield "/wrist_camera/image_raw/compressed", ns + 3 * MS, stamped(jpeg(), ns)
        if i % 14 == 0:
            point = filled(
                "trajectory_msgs/msg/JointTrajectoryPoint",
                positions=turn + np.arange(6.0),
                velocities=none,
                accelerations=none,
                effort=none,
            )
            kind = "trajectory_msgs/msg/JointTrajectory"
            goal = filled(kind, joint_names=names, points=[point])
            topic = "/scaled_joint_trajectory_controller/joint_trajectory"
            yield topic, ns + 4 * MS, goal


def test_joints_tf_wrench_and_trajectories(tmp_path):
    """Six joints in the contract's order, the tool 10 cm ahead of the flange, goals that hold."""
    found = dataset(tmp_path, "ur5e_tf_wrench", ur5e())
    assert np.diff(found["joints"], axis=1) == pytest.approx(1.0, abs=1e-5)
    turn = found["joints"][:, 0]
    assert found["tool_pos"][:, 0] == pytest.approx(0.1 + 0.2 * turn, abs=2e-4)
    assert found["force"][0] == pytest.approx([0.5, 0.5, 0.5])
    assert np.abs(found["action"][:, 0] - turn).max() < 0.02
    assert found["wrist_image"].shape[1:] == (96, 96, 3)


def franka():
    """Targets 2 cm ahead, a wall that comes nearer, fingers that close in the middle."""
    for i in range(FRAMES):
        ns = START + i * PERIOD
        for topic, ahead in (("/franka/current_pose", 0.0), ("/franka/target_pose", 0.02)):
            pose = filled("geometry_msgs/msg/PoseStamped", header=header(ns, "fr3_link0"))
            pose.pose.position.x = 0.3 + 0.01 * i + ahead
            yield topic, ns + MS, pose
        depth = np.full((480, 640), 900 - 20 * i, "<u2")
        depth[:, :320] = 0
        image = filled(
            "sensor_msgs/msg/Image",
            encoding="16UC1",
            height=480,
            width=640,
            step=1280,
            is_bigendian=0,
            data=depth.view(np.uint8).ravel(),
        )
        yield "/wrist_camera/depth/image_rect_raw", ns + 2 * MS, stamped(image, ns)
        none = np.zeros(0)
        width = filled(
            "sensor_msgs/msg/JointState",
            name=["fr3_finger_joint1"],
            position=np.full(1, 0.02),
            velocity=none,
            effort=none,
        )
        yield "/franka_gripper/joint_states", ns + MS, stamped(width, ns)
        if i in (0, 15):
            told = filled("std_msgs/msg/Float64", data=0.08 if i == 0 else 0.0)
            yield "/franka_gripper/width", ns + MS, told


def test_absolute_poses_depth_and_a_width(tmp_path):
    """Metres in steps, unknown as 0; a gripper that was told twice is known all the time."""
    found = dataset(tmp_path, "franka_depth", franka())
    assert found["action"][:, 0] == pytest.approx(found["tool_pos"][:, 0] + 0.02, abs=1e-6)
    assert found["gripper_width"][:, 0] == pytest.approx(0.04)
    assert (
        found["action"][:14, 7].tolist() == [-1.0] * 14
        and found["action"][-5:, 7].tolist() == [1.0] * 5
    )
    picture = found["wrist_depth"][0, :, :, 0]
    assert (picture[:, :40] == 0).all()
    assert (picture[:, 56:] == 1 + round(254 * (0.9 - 0.1) / 0.9)).all()


def test_inspect_tells_how_far_depth_is(tmp_path, capsys):
    """Range, median, and how much is unknown; convert doubts a scale that leaves nothing."""
    dataset(tmp_path, "franka_depth", franka())
    assert main(["inspect", str(tmp_path / "data")]) == 0
    assert "wrist_depth: 0.32 to 0.90 m, median 0.61, 50% unknown" in capsys.readouterr().out
    text = config_path("contracts", "franka_depth").read_text().replace("[0.001]", "[0.0001]")
    (tmp_path / "wrong.yaml").write_text(text)
    words = ["convert", str(tmp_path / "bag"), "--contract", str(tmp_path / "wrong.yaml")]
    assert main([*words, "--out", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().out
    assert "wrist_depth: 100% of its pixels are not between near and far: is its scale r" in said


def test_inspect_tells_the_depth_of_what_is_kept(tmp_path, capsys):
    """Frames that were dropped stay where they are, and are not looked at."""
    contract = Contract.load("franka_depth")
    with adding(tmp_path / "data", contract) as new:
        for name, step in (("far", 255), ("near", 1)):
            arrays = {
                key: np.full((9, *stream.shape), step, np.uint8 if stream.is_image else np.float32)
                for key, stream in contract.observations.items()
            }
            arrays["action"] = np.ones((9, contract.action_dim), np.float32)
            new.add(Recording(name, arrays))
    assert main(["data", "drop", str(tmp_path / "data"), "--where", "source=far"]) == 0
    assert main(["inspect", str(tmp_path / "data")]) == 0
    assert "wrist_depth: 0.10 to 0.10 m, median 0.10, 0% unknown" in capsys.readouterr().out
