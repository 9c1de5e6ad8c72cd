"""Datasets as robomimic's and ACT's HDF5 files, and the way back."""

import json
import os
import subprocess

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs h5py: pip install -e '.[robomimic]'")

import h5py  # noqa: E402
import made_bags  # noqa: E402

from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset  # noqa: E402
from diffusion_policy_ros.data.store import Recording, adding  # noqa: E402

TEXT = """
name: bimanual
rate_hz: 50
anchor: cam_high
observations:
  cam_high: {topic: /high, type: sensor_msgs/msg/Image, shape: [24, 32, 3]}
  left:
    topic: /joint_states
    type: sensor_msgs/msg/JointState
    field: position
    names: [l_waist, l_shoulder]
  right:
    topic: /joint_states
    type: sensor_msgs/msg/JointState
    field: position
    names: [r_waist, r_shoulder]
  speed:
    topic: /joint_states
    type: sensor_msgs/msg/JointState
    field: velocity
    names: [l_waist, r_waist]
    scale: [0.1]
  position: {topic: /eef, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields:
    - {name: arms, kind: joint_position, size: 4}
  record: {topic: /c, type: std_msgs/msg/Float64MultiArray, shape: [4], scale: [0.5, 1, 1, 2]}
"""
CONTRACT = Contract.from_text(TEXT)
MAPS = ("left=qpos[0:2]", "right=qpos[2:4]", "speed=qvel")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two demonstrations, one of which failed."""
    out = tmp_path_factory.mktemp("made") / "dataset"
    with adding(out, CONTRACT) as new:
        for number, frames in enumerate((6, 9)):
            random = np.random.default_rng(number)
            arrays = {
                key: random.integers(0, 255, (frames, *s.shape), dtype=np.uint8)
                if s.is_image
                else random.normal(size=(frames, s.size)).astype(np.float32)
                for key, s in CONTRACT.observations.items()
            }
            arrays["action"] = random.normal(size=(frames, 4)).astype(np.float32)
            new.add(Recording(f"demo_{number}", arrays, success=number == 0))
    return out


def export(name, dataset, out):
    """Through the command line."""
    assert main(["data", "export", name, str(dataset), "--out", str(out)]) == 0
    return out


def contract_file(tmp_path, text=TEXT):
    """The contract as a file."""
    path = tmp_path / "contract.yaml"
    path.write_text(text)
    return str(path)


def test_robomimic_and_back(dataset, tmp_path):
    """Every array bit for bit, though the file's actions are in the controller's units."""
    file = export("robomimic", dataset, tmp_path / "demos.hdf5")
    with h5py.File(file) as found:
        assert found["data"].attrs["total"] == 15
        assert json.loads(found["data"].attrs["env_args"])["env_kwargs"]["control_freq"] == 50
        demo = found["data/demo_1"]
        assert demo.attrs["num_samples"] == 9
        assert demo["dones"][()].tolist() == [0] * 8 + [1]
        ours = Dataset(dataset).episode(1)
        np.testing.assert_allclose(demo["actions"][:, 0], ours["action"][:, 0] * 2)
    out = tmp_path / "back"
    words = ["import", "robomimic", str(file), "--contract", contract_file(tmp_path)]
    assert main([*words, "--out", str(out)]) == 0
    check_equal(Dataset(dataset), Dataset(out))
    assert [episode.success for episode in Dataset(out).episodes] == [True, False]


def check_equal(ours, theirs):
    """Both hold the same arrays."""
    assert len(ours.episodes) == len(theirs.episodes)
    for number in range(len(ours.episodes)):
        a, b = ours.episode(number), theirs.episode(number)
        for key in a:
            if key != "stamp_ns":
                np.testing.assert_array_equal(a[key], b[key])


def test_aloha_and_back(dataset, tmp_path, capsys):
    """An HDF5 file an episode; what has no place in it is named."""
    folder = export("aloha", dataset, tmp_path / "episodes")
    assert "left out, for the files have no place for it: position" in capsys.readouterr().out
    with h5py.File(folder / "episode_1.hdf5") as found:
        ours = Dataset(dataset).episode(1)
        arms = np.concatenate([ours["left"], ours["right"]], axis=1)
        np.testing.assert_array_equal(found["observations/qpos"], arms)
        np.testing.assert_array_equal(found["observations/images/cam_high"], ours["cam_high"])
        np.testing.assert_array_equal(found["action"], ours["action"])
        assert not found.attrs["sim"]
    text = TEXT.replace("scale: [0.1]", "scale: [1.0]").replace("[0.5, 1, 1, 2]", "[1]")
    text = "\n".join(line for line in text.splitlines() if "  position: {" not in line)
    words = ["import", "aloha", str(folder), "--contract", contract_file(tmp_path, text)]
    out = tmp_path / "back"
    assert main([*words, "--out", str(out), "--map", *MAPS]) == 0
    found, ours = Dataset(out), Dataset(dataset)
    for number in range(2):
        a, b = ours.episode(number), found.episode(number)
        for key in ("left", "right", "speed", "cam_high", "action"):
            np.testing.assert_array_equal(a[key], b[key])


def test_cameras_whose_short_names_are_one_keep_their_own(tmp_path):
    """`front_image` and `front_rgb` are both `front`."""
    camera = "{topic: /eye, type: sensor_msgs/msg/Image, shape: [8, 8, 3]}"
    cameras = f"  front_image: {camera}\n  front_rgb: {camera}\n"
    contract = Contract.from_text(TEXT.replace("  left:\n", f"{cameras}  left:\n", 1))
    arrays = {
        key: np.zeros((3, *s.shape), np.uint8 if s.is_image else np.float32)
        for key, s in contract.observations.items()
    }
    with adding(tmp_path / "data", contract) as new:
        new.add(Recording("one", {**arrays, "action": np.ones((3, 4), np.float32)}))
    folder = export("aloha", tmp_path / "data", tmp_path / "episodes")
    with h5py.File(folder / "episode_0.hdf5") as file:
        assert set(file["observations/images"]) == {"cam_high", "front_image", "front_rgb"}


def test_aloha_without_joints_is_refused(tmp_path, capsys):
    """Its files are of joints."""
    text = TEXT.replace("field: position", "field: effort")
    with adding(tmp_path / "d", Contract.from_text(text)) as new:
        frames = 4
        arrays = {
            key: np.zeros((frames, *s.shape), np.uint8 if s.is_image else np.float32)
            for key, s in new.contract.observations.items()
        }
        new.add(Recording("demo", {**arrays, "action": np.zeros((frames, 4), np.float32)}))
    words = ["data", "export", "aloha", str(tmp_path / "d"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert (
        "has no joint positions, which these files are of; export it as" in capsys.readouterr().err
    )
    assert {path.name for path in tmp_path.iterdir()} == {"d"}


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("aloha", "", "", "made: has no joint positions, which these files are of"),
        ("lerobot", "rate_hz: 20", "rate_hz: 12.5", "LeRobot's fps is a whole number"),
    ],
)
def test_what_cannot_be_exported_is_said_before_bags_are_converted(
    tmp_path, capsys, name, old, new, said
):
    """Which takes an hour of a large recording."""
    if name == "lerobot":
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[lerobot]'")
    text = made_bags.TEXT.replace(old, new)
    bag = made_bags.make_bag(tmp_path / "bag", metadata={"contract": text})
    words = ["convert", str(bag), "--format", name, "--out", str(tmp_path / "out")]
    assert main(words) == 2
    told = capsys.readouterr()
    assert said in told.err and "kept" not in told.out
    assert {path.name for path in tmp_path.iterdir()} == {"bag"}


@pytest.mark.parametrize("name", ["robomimic", "aloha", "lerobot"])
def test_what_a_killed_export_left_goes_with_the_next(dataset, tmp_path, name):
    """To the same name, and of processes that are no more."""
    if name == "lerobot":
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[lerobot]'")
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = {f".out.part-{os.getppid()}", f".other.part-{ended.pid}"}
    for left in (f".out.part-{ended.pid}", *kept):
        (tmp_path / left).mkdir()
    export(name, dataset, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", *kept}


@pytest.mark.parametrize("damaged", [0, 1])
def test_damaged_files_of_aloha_are_refused(dataset, tmp_path, capsys, damaged):
    """By name; the others are imported; a folder without episodes is none."""
    folder = export("aloha", dataset, tmp_path / "episodes")
    file = folder / f"episode_{damaged}.hdf5"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    text = "\n".join(line for line in TEXT.splitlines() if "  position: {" not in line)
    words = ["import", "aloha", str(folder), "--contract", contract_file(tmp_path, text)]
    assert main([*words, "--out", str(tmp_path / "out"), "--map", *MAPS]) == 0
    said = capsys.readouterr().out
    assert f"episode_{1 - damaged}" not in said and "1 kept, 1 rejected" in said
    assert f"rejected  episode_{damaged}" in said
    assert "is cut off, or no HDF5 file" in said
    empty = tmp_path / "empty"
    empty.mkdir()
    words[2] = str(empty)
    assert main([*words, "--out", str(tmp_path / "none")]) == 2
    assert "holds no episode_0.hdf5; give the folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("action", np.zeros(6), "there is no action"),
        ("action/left", np.zeros((6, 2)), "there is no action"),
        ("observations/images/cam_high/depth", np.zeros(6), "no camera is called 'cam_high'"),
        ("observations/images", np.zeros(6), "no camera is called 'cam_high'"),
        ("observations", np.zeros(6), "no camera is called 'cam_high'"),
    ],
)
def test_what_is_no_array_of_aloha_is_none(tmp_path, capsys, place, value, said):
    """A group where an array is meant, an array where a group is, and one of another rank."""
    (tmp_path / "episodes").mkdir()
    with h5py.File(tmp_path / "episodes" / "episode_0.hdf5", "w") as file:
        file[place] = value
        if not place.startswith("observations"):
            file["observations/qpos"] = np.zeros((6, 4))
    words = ["import", "aloha", str(tmp_path / "episodes"), "--out", str(tmp_path / "out")]
    assert main([*words, "--contract", contract_file(tmp_path, TEXT)]) == 2
    assert said in capsys.readouterr().err
    main(words)  # drafts what can be drafted
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["robomimic", "aloha", "lerobot"])
def test_episodes_are_chosen_by_conditions(dataset, tmp_path, capsys, name):
    """As everywhere: by success, task, tag; what leaves nothing is refused."""
    if name == "lerobot":
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[lerobot]'")
    words = ["data", "export", name, str(dataset), "--out", str(tmp_path / "out")]
    assert main([*words, "--where", "success=true"]) == 0
    assert "out holds 1 episodes, 6 frames" in capsys.readouterr().out
    words[-1] = str(tmp_path / "none")
    assert main([*words, "--where", "frames>50"]) == 2
    assert "none of 2 episodes fits 'frames>50'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["robomimic", "aloha"])
def test_nothing_is_overwritten_or_left(dataset, tmp_path, monkeypatch, name):
    """What is there stays; an interruption leaves nothing."""
    there = tmp_path / "there"
    there.write_text("mine")
    assert main(["data", "export", name, str(dataset), "--out", str(there)]) == 2
    assert there.read_text() == "mine"

    def fails(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Dataset, "episode", fails)
    assert main(["data", "export", name, str(dataset), "--out", str(tmp_path / "out")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
