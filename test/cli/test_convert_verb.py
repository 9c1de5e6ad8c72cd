"""`diffusion-policy convert` and `inspect` on a recording from elsewhere, as a user calls them."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))
from made_bags import TEXT as MADE, make_bag

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, open_bag, serialize
from diffusion_policy_ros.data.dataset import Dataset

BAG = Path(__file__).parent.parent / "data_files" / "abitobot_bag"
CONTRACT = """
name: abitobot_arm
rate_hz: 20
anchor: joints
observations:
  joints:
    topic: /joint_states
    type: sensor_msgs/msg/JointState
    names: [arm_1_link_joint, arm_2_link_joint, arm_3_link_joint, gripper_link_joint]
action:
  fields: [{name: joints, kind: joint_position, size: 4, state: joints}]
  record: next_state
"""


@pytest.fixture
def contract(tmp_path):
    """A small contract for the arm of the recording."""
    path = tmp_path / "arm.yaml"
    path.write_text(CONTRACT)
    return path


def run(capsys, *words):
    """Call the command line: exit code, standard output, standard error."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_recording_from_elsewhere_converts(capsys, tmp_path, contract):
    """Joint states with simulated stamps become an episode of joint positions, trimmed."""
    code, out, err = run(
        capsys, "convert", "--contract", contract, BAG, "--out", tmp_path / "data"
    )
    assert (code, err) == (0, "")
    assert "kept      abitobot_bag: 1273 frames in 1 episode, 592 idle frames trimmed" in out
    assert f"1 kept; {tmp_path / 'data'} holds 1 episodes, 1273 frames" in out
    assert "next: diffusion-policy train --dataset" in out
    found = Dataset(tmp_path / "data").episode(0)
    assert found["action"].shape == (1273, 4)
    assert (found["action"][:-1] == found["joints"][1:]).all()
    assert 100e9 < found["stamp_ns"][0] < 200e9
    joints = [m for _, _, m in open_bag(BAG).messages(["/joint_states"])]
    place = next(
        i for i, m in enumerate(joints)
        if m.header.stamp.sec * 10**9 + m.header.stamp.nanosec == found["stamp_ns"][0]
    )  # fmt: skip
    wanted = dict(zip(joints[place].name, joints[place].position, strict=True))
    assert found["joints"][0].tolist() == pytest.approx(
        [wanted[name] for name in Dataset(tmp_path / "data").contract.action_names]
    )


def test_converting_again_says_what_is_there_already(capsys, tmp_path, contract):
    """The second run adds nothing and says so."""
    words = ("convert", "--contract", contract, BAG, "--out", tmp_path / "data", "--keep-idle")
    assert "1865 frames" in run(capsys, *words)[1]
    code, out, _ = run(capsys, *words, "--jobs", "2")
    assert code == 0
    assert "present   abitobot_bag: already in the dataset" in out
    assert "1 present;" in out


def test_inspect_drafts_a_contract_that_passes_the_check_and_converts(capsys, tmp_path):
    """From an unknown bag to a dataset without writing a line of YAML."""
    draft = tmp_path / "draft.yaml"
    code, out, _ = run(capsys, "inspect", BAG, "--draft", draft)
    assert code == 0
    assert "6578 messages on 2 topics, 94.2 s" in out
    assert "sensor_msgs/msg/JointState  1866   20.0 Hz" in out
    assert "/joint_states: stamps are not of the recorder's clock" in out
    assert run(capsys, "contract", "check", draft)[0] == 0
    contract = Contract.load(draft)
    assert (contract.rate_hz, contract.action_dim) == (20, 10)
    assert run(capsys, "convert", "--contract", draft, BAG, "--out", tmp_path / "data")[0] == 0


def test_inspect_shows_a_draft_and_never_overwrites_one(capsys, tmp_path):
    """Without --draft it goes to the screen; an existing file is kept."""
    code, out, _ = run(capsys, "inspect", BAG)
    assert code == 0
    assert "record: next_state" in out
    (tmp_path / "mine.yaml").write_text("mine")
    code, _, err = run(capsys, "inspect", BAG, "--draft", tmp_path / "mine.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "the file exists; choose another name" in err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_inspect_shows_a_dataset(capsys, tmp_path, contract):
    """Episodes, frames, and statistics of each key."""
    run(capsys, "convert", "--contract", contract, BAG, "--out", tmp_path / "data")
    code, out, _ = run(capsys, "inspect", tmp_path / "data")
    assert code == 0
    assert "contract  abitobot_arm" in out
    assert "episodes  1, of 1273 to 1273 frames (median 1273)" in out
    assert "frames    1273, 64 s" in out
    assert "joints  float32 4  -1.8" in out
    heads, *rows = [line.split() for line in out.splitlines() if "std" in line or "-1.8" in line]
    assert heads == ["key", "array", "min", "1%", "50%", "99%", "max", "mean", "std"]
    low, first, middle, last, high = map(float, rows[0][3:8])
    assert low <= first <= middle <= last <= high


def test_the_bags_own_contract_is_the_default(capsys, tmp_path):
    """A bag of the recorder needs no --contract; one from elsewhere says what to do."""
    kind = "sensor_msgs/msg/JointState"
    with BagWriter(tmp_path / "own", {"/joint_states": kind}, {"contract": CONTRACT}) as writer:
        for _, log_ns, msg in open_bag(BAG).messages(["/joint_states"]):
            writer.write("/joint_states", log_ns, bytes(msg._raw))
    code, out, _ = run(capsys, "convert", tmp_path / "own", "--out", tmp_path / "data")
    assert code == 0
    assert "1273 frames" in out
    code, _, err = run(capsys, "convert", BAG, "--out", tmp_path / "other")
    assert (code, err.count("\n")) == (2, 1)
    assert "was recorded without a contract; name one with --contract" in err


def test_a_first_bag_that_cannot_be_read_costs_no_other(capsys, tmp_path):
    """The contract is that of the first one that can: a recorder may have died at once."""
    bags = tmp_path / "bags"
    make_bag(bags / "episode_1", metadata={"contract": MADE})
    (bags / "episode_0").mkdir()
    (bags / "episode_0" / "episode_0_0.mcap").touch()
    code, out, err = run(capsys, "convert", bags, "--out", tmp_path / "data")
    assert (code, err) == (0, "") and "rejected  episode_0" in out and "1 kept, 1 rejected" in out
    shutil.rmtree(bags / "episode_1")
    code, _, err = run(capsys, "convert", bags, "--out", tmp_path / "none")
    assert code == 2 and "the file is empty" in err


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (
            "topic: /joint_states",
            "topic: /joints",
            "/joints is not in the bag, which has /imu/data",
        ),
        ("arm_1_link_joint", "arm_9", "no position of joint 'arm_9'"),
        ("sensor_msgs/msg/JointState", "sensor_msgs/msg/JointStates", "did you mean"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(capsys, tmp_path, contract, old, new, match):
    """Exit code 2, the reason with its cure, no traceback, no folder."""
    contract.write_text(CONTRACT.replace(old, new))
    code, _, err = run(capsys, "convert", "--contract", contract, BAG, "--out", tmp_path / "data")
    assert code == 2
    assert match in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "verb", [("inspect",), ("convert", "--contract", "mini_lift", "--out", "x")]
)
@pytest.mark.parametrize("made", ["missing", "empty", "text"])
def test_what_is_no_bag_is_one_line(capsys, tmp_path, monkeypatch, verb, made):
    """Missing paths, empty directories and other files are user errors."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / made
    if made == "empty":
        path.mkdir()
    elif made == "text":
        path.write_text("no bag")
    code, out, err = run(capsys, verb[0], path, *verb[1:])
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert str(path) in err
    assert not (tmp_path / "x").exists()


def joint_bag(path, names, rate_hz=100):
    """A bag of one JointState topic and one camera of 640x480 at 30 Hz."""
    import numpy as np

    make = message_types
    types = {
        "/joint_states": "sensor_msgs/msg/JointState",
        "/cam/color/image_raw": "sensor_msgs/msg/Image",
        "/gripper/command": "std_msgs/msg/Float64MultiArray",
    }
    none = np.zeros(0)
    with BagWriter(path, types) as writer:
        for i in range(40):
            for topic, hz in (("/joint_states", rate_hz), ("/cam/color/image_raw", 30)):
                ns = 10**9 + i * 10**9 // hz
                stamp = make("builtin_interfaces/msg/Time")(sec=ns // 10**9, nanosec=ns % 10**9)
                header = make("std_msgs/msg/Header")(stamp=stamp, frame_id="")
                if "joint" in topic:
                    msg = make(types[topic])(
                        header=header, name=names, position=np.full(len(names), i * 0.01),
                        velocity=none, effort=none,
                    )  # fmt: skip
                else:
                    msg = make(types[topic])(
                        header=header, height=480, width=640, encoding="bgr8", is_bigendian=0,
                        step=1920, data=np.zeros(480 * 1920, np.uint8),
                    )  # fmt: skip
                writer.write(topic, ns + 10**6, serialize(types[topic], msg))
    return path


def test_the_draft_knows_cameras_joints_and_commands(capsys, tmp_path):
    """Half the camera's rate, a square crop averaged to 96, joints by name, commands named."""
    joint_bag(tmp_path / "My Bag", ["a", "yes", "b c"])
    draft = tmp_path / "draft.yaml"
    assert run(capsys, "inspect", tmp_path / "My Bag", "--draft", draft)[0] == 0
    contract = Contract.load(draft)
    camera = contract.observations["cam_color_image"]
    assert (contract.name, contract.rate_hz, contract.anchor) == ("my_bag", 15, "cam_color_image")
    assert (camera.encoding, camera.shape, camera.crop) == ("bgr8", (96, 96, 3), (0, 80, 480, 480))
    assert camera.source_size == (480, 640)
    assert contract.action_names == ["a", "yes", "b c"]
    assert "/gripper/command" in draft.read_text()
    draft.write_text(draft.read_text().replace("# limits:", "limits:"))
    assert Contract.load(draft).action.limits.joint_velocity == (0.5,)
    code, out, _ = run(
        capsys, "convert", "--contract", draft, tmp_path / "My Bag", "--out", tmp_path / "d"
    )
    assert code == 0, out
    shutil.rmtree(tmp_path / "d")


def test_the_draft_of_a_pose_has_limits_of_poses(capsys, tmp_path):
    """They load as they stand when the comment's mark is taken away."""
    make_bag(tmp_path / "bag")
    draft = tmp_path / "draft.yaml"
    assert run(capsys, "inspect", tmp_path / "bag", "--draft", draft)[0] == 0
    draft.write_text(draft.read_text().replace("# limits:", "limits:"))
    limits = Contract.load(draft).action.limits
    assert (limits.velocity, limits.lead_rotation, limits.joint_velocity) == (0.25, 0.3, ())


def test_of_a_bag_without_a_state_nothing_is_drafted(capsys, tmp_path):
    """Where no action can be derived, it says what is missing, and writes nothing."""
    with BagWriter(tmp_path / "bag", {"/force": "std_msgs/msg/Float32MultiArray"}) as writer:
        layout = message_types("std_msgs/msg/MultiArrayLayout")(dim=[], data_offset=0)
        import numpy as np

        msg = message_types("std_msgs/msg/Float32MultiArray")(
            layout=layout, data=np.ones(6, np.float32)
        )
        for ns in range(3):
            writer.write("/force", ns * 10**7, serialize("std_msgs/msg/Float32MultiArray", msg))
    draft = tmp_path / "draft.yaml"
    code, out, err = run(capsys, "inspect", tmp_path / "bag", "--draft", draft)
    assert code == 2 and not draft.exists()
    assert "/force: no stamps: log times stand in" in out
    assert "it has nothing with stamps to observe" in err
