"""Every contract that is drafted of a bag passes the check, and says what it leaves out."""

import io

import numpy as np
import pytest
from made_bags import (
    JOINTS,
    MS,
    PERIOD,
    START,
    TRAJECTORY,
    filled,
    joint_state,
    stamped,
    trajectory,
)
from PIL import Image

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, serialize
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset


def picture(encoding, width=64, height=48):
    """A camera's."""
    size = {"rgb8": 3, "16UC1": 2, "yuv422_yuy2": 2, "bayer_rggb8": 1, "32FC1": 4, "x": 1}[
        encoding
    ]
    data = np.full(width * height * size, 1, np.uint8)
    return filled(
        "sensor_msgs/msg/Image",
        encoding=encoding,
        width=width,
        height=height,
        step=width * size,
        data=data,
        is_bigendian=0,
    )


def compressed(mode, said):
    """A jpeg, or a png of depth."""
    data, pixels = io.BytesIO(), np.full((48, 64), 900, np.uint16)
    if mode == "png":
        Image.fromarray(pixels).save(data, "PNG")
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG")
    found = np.frombuffer(data.getvalue(), np.uint8)
    return filled("sensor_msgs/msg/CompressedImage", format=said, data=found)


def joints(*names):
    """A driver's JointState."""
    none = np.zeros(0)
    return filled(
        "sensor_msgs/msg/JointState",
        name=list(names),
        position=np.full(len(names), 0.1),
        velocity=none,
        effort=none,
    )


CAMERA = ("/camera/image_raw", lambda: picture("rgb8"))
POSE = ("/tool", lambda: filled("geometry_msgs/msg/PoseStamped"))
BAGS = {
    "pose and camera": [CAMERA, POSE],
    "depth": [("/depth/image_raw", lambda: picture("16UC1")), POSE],
    "float depth": [("/depth/image_raw", lambda: picture("32FC1")), POSE],
    "depth as png": [("/depth/compressed", lambda: compressed("png", "16UC1; png")), POSE],
    "jpeg": [("/eye/compressed", lambda: compressed("jpeg", "rgb8; jpeg")), POSE],
    "yuv": [("/eye/image_raw", lambda: picture("yuv422_yuy2")), POSE],
    "bayer": [("/eye/image_raw", lambda: picture("bayer_rggb8")), POSE],
    "wheels by twist": [CAMERA, ("/cmd_vel", lambda: filled("geometry_msgs/msg/Twist"))],
    "stamped twist": [CAMERA, ("/cmd_vel", lambda: filled("geometry_msgs/msg/TwistStamped"))],
    "bare commands": [CAMERA, ("/command", lambda: filled("std_msgs/msg/Float64MultiArray"))],
    "one command": [CAMERA, ("/command/lift", lambda: filled("std_msgs/msg/Float64"))],
    "a switch": [CAMERA, ("/gripper/command", lambda: filled("std_msgs/msg/Bool"))],
    "two drivers": [
        ("/joint_states", lambda: joints("a", "b")),
        ("/joint_states", lambda: joints("g")),
    ],
    "odometry": [("/odom", lambda: filled("nav_msgs/msg/Odometry")), CAMERA],
    "base": [
        ("/odom", lambda: filled("nav_msgs/msg/Odometry")),
        ("/cmd_vel", lambda: filled("geometry_msgs/msg/Twist")),
        CAMERA,
    ],
    "force": [("/ft", lambda: filled("geometry_msgs/msg/WrenchStamped")), POSE],
    "imu and joy": [
        ("/imu", lambda: filled("sensor_msgs/msg/Imu")),
        ("/joy", lambda: filled("sensor_msgs/msg/Joy")),
        POSE,
    ],
    "trajectory": [
        (
            "/arm/joint_trajectory",
            lambda: filled("trajectory_msgs/msg/JointTrajectory"),
        ),
        ("/joint_states", lambda: joints("a", "b")),
    ],
}


def recorded(path, topics, zero=()):
    """A bag of ten messages of each."""
    types = {topic: make().__msgtype__ for topic, make in topics}
    with BagWriter(path, types) as writer:
        for i in range(10):
            for topic, make in topics:
                ns = START + i * PERIOD
                msg = stamped(make(), 0 if topic in zero else ns)
                writer.write(topic, ns + MS, serialize(types[topic], msg))
    return path


@pytest.mark.parametrize("case", BAGS)
def test_every_draft_passes_the_check_and_reads_its_bag(case, tmp_path, capsys):
    """From the bag to a dataset, without a line changed."""
    bag, path = recorded(tmp_path / "bag", BAGS[case]), tmp_path / "mine.yaml"
    assert main(["inspect", str(bag), "--draft", str(path)]) == 0
    assert main(["contract", "check", str(path)]) == 0, capsys.readouterr().err
    report = convert([bag], Contract.load(path), tmp_path / "d", options=Options(keep_idle=True))
    assert report.bags[0].status == "kept" and report.frames >= 8


def test_joint_trajectories_are_drafted_as_the_command(tmp_path, capsys):
    """The joints are those of its first point, which the state names, too."""
    stamps = START + np.arange(10) * PERIOD
    with BagWriter(tmp_path / "bag", {"/joint_states": JOINTS, "/arm/command": TRAJECTORY}) as bag:
        for i, ns in enumerate(stamps.tolist()):
            said = {"/joint_states": joint_state(ns, ["a0", "a1"], [0.1 * i, 0.2])}
            said["/arm/command"] = trajectory(ns, [0.1 * i + 0.1, 0.2])
            for topic, msg in said.items():
                bag.write(topic, ns + MS, serialize(bag.topics[topic], msg))
    path = tmp_path / "mine.yaml"
    assert main(["inspect", str(tmp_path / "bag"), "--draft", str(path)]) == 0
    assert main(["contract", "check", str(path)]) == 0, capsys.readouterr().err
    contract = Contract.load(path)
    (command,) = contract.action.commands
    assert (command.topic, command.names) == ("/arm/command", ("a0", "a1"))
    convert([tmp_path / "bag"], contract, tmp_path / "d", options=Options(keep_idle=True))
    actions = Dataset(tmp_path / "d").episode(0)["action"]
    np.testing.assert_allclose(actions[:5], [[0.1 * i + 0.1, 0.2] for i in range(5)], rtol=1e-6)


def test_a_base_is_told_its_recorded_speed_and_not_moved_by_its_odometry(tmp_path):
    """Which is still observed."""
    bag, path = recorded(tmp_path / "bag", BAGS["base"]), tmp_path / "mine.yaml"
    main(["inspect", str(bag), "--draft", str(path)])
    contract = Contract.load(path)
    assert [part.kind for part in contract.action.fields] == ["twist"]
    assert "/odom" in contract.topics


def test_two_drivers_of_one_topic_are_two_observations(tmp_path):
    """Each with its own joints."""
    bag, path = recorded(tmp_path / "bag", BAGS["two drivers"]), tmp_path / "mine.yaml"
    main(["inspect", str(bag), "--draft", str(path)])
    names = [stream.names for stream in Contract.load(path).observations.values()]
    assert names == [("a", "b"), ("g",)]
    assert "# not commanded: joint_states_2; another arm or gripper" in path.read_text()


def test_of_a_dataset_nothing_is_drafted(tmp_path, capsys):
    """It has its contract; a file that is not made is told."""
    bag, path = recorded(tmp_path / "bag", BAGS["pose and camera"]), tmp_path / "mine.yaml"
    assert main(["inspect", str(bag), "--draft", str(path)]) == 0
    convert([bag], Contract.load(path), tmp_path / "d", options=Options(keep_idle=True))
    capsys.readouterr()
    other = tmp_path / "other.yaml"
    assert main(["inspect", str(tmp_path / "d"), "--draft", str(other)]) == 2
    assert "a dataset has its contract already; leave it out" in capsys.readouterr().err
    assert not other.exists()


def test_stamps_of_zero_are_drafted_as_receipt(tmp_path, capsys):
    """And inspect says so."""
    bag = recorded(tmp_path / "bag", BAGS["pose and camera"], zero=["/tool"])
    path = tmp_path / "mine.yaml"
    assert main(["inspect", str(bag), "--draft", str(path)]) == 0
    assert "all stamps are zero" in capsys.readouterr().out
    contract = Contract.load(path)
    assert contract.topics["/tool"][0].time == "receipt"
    assert contract.topics["/camera/image_raw"][0].time == "header"
    report = convert([bag], contract, tmp_path / "d", options=Options(keep_idle=True))
    assert report.bags[0].status == "kept"


@pytest.mark.parametrize(
    ("topics", "expected"),
    [
        (
            [("/eye", lambda: picture("x"))],
            "/eye (sensor_msgs/msg/Image): its encoding 'x'",
        ),
        (
            [("/bat", lambda: filled("sensor_msgs/msg/BatteryState"))],
            "/bat (sensor_msgs/msg/BatteryState): name a field of it by its path, as fiel",
        ),
        (
            BAGS["trajectory"][:1],
            "/arm/joint_trajectory (trajectory_msgs/msg/JointTrajectory): empty",
        ),
        (
            [("/aim/cmd", lambda: filled("geometry_msgs/msg/PoseStamped"))],
            "/aim/cmd (geometry_msgs/msg/PoseStamped): by its name a command",
        ),
    ],
)
def test_what_is_left_out_is_said_with_its_reason(topics, expected, tmp_path):
    """In the draft, which is one all the same."""
    bag, path = recorded(tmp_path / "bag", [*topics, POSE]), tmp_path / "mine.yaml"
    assert main(["inspect", str(bag), "--draft", str(path)]) == 0
    assert f"# left out: {expected}" in path.read_text()
    assert Contract.load(path)


def test_a_bag_with_nothing_to_do_is_refused(tmp_path, capsys):
    """Nothing is written; without --draft the topics are shown, and the same is said."""
    bag, path = recorded(tmp_path / "bag", [CAMERA]), tmp_path / "mine.yaml"
    assert main(["inspect", str(bag), "--draft", str(path)]) == 2
    assert "nothing that can be an action" in capsys.readouterr().err and not path.exists()
    assert main(["inspect", str(bag)]) == 0
    assert "no contract can be drafted: it has nothing that can be an" in capsys.readouterr().out


@pytest.mark.parametrize("topics", [("/block", "/eef_pose"), ("/eef_pose", "/block")])
def test_of_several_poses_the_tools_is_the_action(topics, tmp_path):
    """An object's pose comes before or after it."""
    poses = [(topic, lambda: filled("geometry_msgs/msg/PoseStamped")) for topic in topics]
    bag, path = recorded(tmp_path / "bag", poses), tmp_path / "mine.yaml"
    assert main(["inspect", str(bag), "--draft", str(path)]) == 0
    states = [part.state for part in Contract.load(path).action.fields]
    assert states == ["eef_pose_position", "eef_pose_orientation"]
