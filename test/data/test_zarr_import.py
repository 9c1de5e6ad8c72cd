"""Replay buffers of diffusion_policy and UMI become datasets, equal to what zarr reads of them."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imagecodecs", reason="needs imagecodecs: pip install -e '.[zarr]'")

from made_lerobot import INTEROP  # noqa: E402

from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset  # noqa: E402
from diffusion_policy_ros.data.formats.zarr_store import Store, ZarrArray  # noqa: E402
from diffusion_policy_ros.policy.rotations import axis_angle_to_quaternion  # noqa: E402

PUSHT = """
name: pusht
rate_hz: 10
anchor: img
observations:
  img: {topic: /camera, type: sensor_msgs/msg/Image, shape: [24, 24, 3]}
  state: {topic: /state, type: std_msgs/msg/Float64MultiArray, shape: [5]}
action:
  fields:
    - {name: x, kind: scalar}
    - {name: "y", kind: scalar}
  record: {topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [2]}
"""
REAL = """
name: real
rate_hz: 10
anchor: camera_0
observations:
  camera_0: {topic: /camera, type: sensor_msgs/msg/Image, shape: [32, 32, 3]}
  eef_position: {topic: /eef, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  eef_orientation: {topic: /eef, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
action:
  fields:
    - {name: position, kind: position, state: eef_position}
    - {name: rotation, kind: axis_angle, state: eef_orientation}
  record: {topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [6]}
"""
POSE = (
    "eef_position=robot_eef_pose[0:3]",
    "eef_orientation=robot_eef_pose[3:6]:axis_angle",
    "action=action",
)


@pytest.fixture
def run(tmp_path, capsys):
    """Import a buffer; gives the exit code, what was printed, and the dataset's folder."""

    def imported(path, text, *words):
        contract = tmp_path / "contract.yaml"
        contract.write_text(text)
        name = text if text == "umi" else str(contract)
        out = tmp_path / "out"
        code = main(["import", "zarr", str(path), "--contract", name, "--out", str(out), *words])
        said = capsys.readouterr()
        return code, said.out + said.err, out

    return imported


@pytest.mark.parametrize("name", ["pusht.zarr", "real.zarr", "jpeg2k.zarr", "umi.zarr.zip"])
def test_arrays_are_what_zarr_reads(name):
    """Of every compressor in use, whole and by rows that cross chunks."""
    store = Store(INTEROP / name)
    truth = np.load(INTEROP / f"{name.partition('.')[0]}_truth.npz")
    found = [("data", array) for array in store.arrays("data")] + [("meta", "episode_ends")]
    assert len(found) >= 3
    for group, array in found:
        read = ZarrArray(store, f"{group}/{array}")
        assert read.dtype == truth[array].dtype
        # JPEG XL is decoded with the processor's own floating-point instructions.
        near = 1 if array == "camera0_rgb" else 0
        np.testing.assert_allclose(read.rows(0, len(read)), truth[array], rtol=0, atol=near)
        np.testing.assert_allclose(
            read.rows(2, len(read) - 1), truth[array][2:-1], rtol=0, atol=near
        )


def test_float_pictures_become_bytes(run):
    """PushT's are float32 of 0 … 255; three episodes."""
    code, said, out = run(INTEROP / "pusht.zarr", PUSHT)
    assert code == 0
    assert "by place" in said
    truth, start = np.load(INTEROP / "pusht_truth.npz"), 0
    dataset = Dataset(out)
    for number, stop in enumerate(truth["episode_ends"].tolist()):
        found = dataset.episode(number)
        for key, array in (("img", "img"), ("state", "state"), ("action", "action")):
            np.testing.assert_array_equal(found[key], truth[array][start:stop])
        start = stop


def test_every_third_frame_and_the_next_pose(run):
    """UMI has no action: it is the pose of the frame after, told from a rotation vector."""
    code, said, out = run(INTEROP / "umi.zarr.zip", "umi", "--every", "3")
    assert code == 0
    assert "axis_angle to quaternion" in said
    truth = np.load(INTEROP / "umi_truth.npz")
    stop = int(truth["episode_ends"][0])
    positions = truth["robot0_eef_pos"][:stop:3]
    turns = axis_angle_to_quaternion(truth["robot0_eef_rot_axis_angle"][:stop:3])
    found = Dataset(out).episode(0)
    np.testing.assert_array_equal(found["robot0_eef_pos"], positions[:-1])
    np.testing.assert_allclose(found["robot0_eef_quat"], turns[:-1], atol=1e-6)
    np.testing.assert_array_equal(found["action"][:, :3], positions[1:])
    np.testing.assert_array_equal(found["action"][:, 9:], truth["robot0_gripper_width"][3:stop:3])
    assert found["camera0_rgb"].shape == (len(positions) - 1, 224, 224, 3)
    assert np.diff(found["stamp_ns"]).tolist() == [50_000_000] * (len(positions) - 2)


def test_videos_beside_a_buffer_are_taken_by_time(run, tmp_path):
    """A camera of 30 Hz beside a buffer of 10 Hz: the picture of each frame's time."""
    av = pytest.importorskip("av", reason="needs av: pip install -e '.[lerobot]'")
    from diffusion_policy_ros.data.formats.video import encode

    del av
    root = Path(shutil.copytree(INTEROP / "real.zarr", tmp_path / "replay_buffer.zarr"))
    truth, start = np.load(INTEROP / "real_truth.npz"), 0
    for episode, stop in enumerate(truth["episode_ends"].tolist()):
        folder = tmp_path / "videos" / str(episode)
        folder.mkdir(parents=True)
        stamps = truth["timestamp"][start:stop]
        count = round((stamps[-1] - stamps[0]) * 30) + 2
        grey = [np.full((32, 32, 3), 7 * (i % 30), np.uint8) for i in range(count)]
        encode(folder / "0.mp4", grey, 30, "h264", 1)
        start = stop
    code, said, out = run(root, REAL, "--map", *POSE)
    assert code == 0, said
    stop = int(truth["episode_ends"][0])
    found, stamps = Dataset(out).episode(0), truth["timestamp"][:stop]
    wanted = 7 * (np.rint((stamps - stamps[0]) * 30) % 30)
    np.testing.assert_allclose(found["camera_0"].mean((1, 2, 3)), wanted, atol=2)
    np.testing.assert_allclose(found["action"], truth["action"][:stop], rtol=1e-6)
    np.testing.assert_allclose(
        found["eef_orientation"],
        axis_angle_to_quaternion(truth["robot_eef_pose"][:stop, 3:]),
        atol=1e-6,
    )
    shutil.rmtree(out)
    (tmp_path / "videos/1/0.mp4").unlink()
    code, said, out = run(root, REAL, "--map", *POSE)
    assert code == 0
    assert "rejected  episode_1" in said
    assert "has no video of camera_0" in said


def changed(tmp_path, key, **changes):
    """PushT's buffer with another .zarray of one array."""
    root = Path(shutil.copytree(INTEROP / "pusht.zarr", tmp_path / "pusht.zarr"))
    path = root / key / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return root


def test_a_pose_without_a_map_is_not_guessed(run):
    """Six numbers may be anything."""
    code, said, out = run(INTEROP / "real.zarr", REAL)
    assert code == 2
    assert "no camera is called 'camera_0'; there is none" in said
    assert "eef_position is not there" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "changes", "words"),
    [
        (
            "data/img",
            {"compressor": {"id": "lzma"}},
            "its compressor 'lzma' is not known; write it",
        ),
        ("data/img", {"filters": [{"id": "delta"}]}, "data/img is not of zarr's format 2"),
        ("data/img", {"order": "F"}, "is not of zarr's format 2"),
        ("data/img", {"chunks": [1 << 20, 1 << 10, 24, 3]}, "is not of zarr's format 2"),
        ("data/img", {"shape": None}, "data/img says no shape or dtype"),
        ("data/img", {"dtype": "|O"}, "is not of zarr's format 2"),
        ("data/img", {"dtype": "<f8"}, "cannot be decoded (ValueError)"),
        ("data/state", {"shape": [25, 5]}, "state has 25 rows, meta/episode_ends says 26"),
        ("meta/episode_ends", {"dtype": "<f4", "shape": [6]}, "meta/episode_ends"),
    ],
)
def test_what_cannot_be_read_is_refused(run, tmp_path, key, changes, words):
    """In one line, and nothing is left behind."""
    code, said, out = run(changed(tmp_path, key, **changes), PUSHT)
    assert code == 2
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert not out.exists()


def test_damage_is_named(run, tmp_path):
    """A chunk that is cut off or lost, a zip that is cut off, a folder that is none."""
    root = changed(tmp_path, "data/img")
    chunk = root / "data/img/0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    code, said, _ = run(root, PUSHT)
    assert code == 0
    assert f"rejected  episode_0: {root}: data/img/0.0.0.0 cannot be decoded" in said
    assert "episode_2" not in said and "2 kept, 1 rejected" in said
    cut = tmp_path / "cut.zarr.zip"
    cut.write_bytes((INTEROP / "umi.zarr.zip").read_bytes()[:-100])
    assert "is cut off, or no zip file" in run(cut, PUSHT)[1]
    assert "no such buffer" in run(tmp_path / "none.zarr", PUSHT)[1]
    (tmp_path / "empty.zarr").mkdir()
    assert "has no meta/episode_ends" in run(tmp_path / "empty.zarr", PUSHT)[1]
    (tmp_path / "empty.zarr" / "zarr.json").write_text("{}")
    assert "is of zarr's format 3; write it anew" in run(tmp_path / "empty.zarr", PUSHT)[1]


def test_flipped_bytes_are_no_traceback(run, tmp_path):
    """Whatever is damaged in a zip: refused, or its readable values are imported."""
    data, random = (INTEROP / "umi.zarr.zip").read_bytes(), np.random.default_rng(0)
    for trial in range(15):
        hurt = bytearray(data)
        for place in random.integers(0, len(data), 10):
            hurt[place] = random.integers(256)
        path = tmp_path / f"hurt_{trial}.zarr.zip"
        path.write_bytes(hurt)
        code, said, out = run(path, "umi", "--every", "3")
        assert code in (0, 2), said
        assert out.exists() == (code == 0)
        shutil.rmtree(out, ignore_errors=True)


def test_a_chunk_that_was_never_written_is_its_fill_value(tmp_path):
    """As zarr has it."""
    root = changed(tmp_path, "data/state", fill_value=7.0)
    (root / "data/state/1.0").unlink()
    read = ZarrArray(Store(root), "data/state").rows(0, 26)
    assert (read[11:22] == 7).all()
    np.testing.assert_array_equal(read[:11], np.load(INTEROP / "pusht_truth.npz")["state"][:11])


def test_pictures_of_zero_to_one_are_refused(run, tmp_path):
    """They would be black."""
    root = changed(tmp_path, "data/img", compressor=None)
    for chunk in (root / "data/img").glob("[0-9]*"):
        random = np.random.default_rng(0).random((4, 24, 24, 3))
        chunk.write_bytes(random.astype("<f4").tobytes())
    code, said, out = run(root, PUSHT)
    assert code == 2
    assert (
        "img is float32, and not of whole numbers from 0 to 255; write its pictures as uint8"
        in said
    )
    assert not out.exists()


def test_a_zip_bomb_is_refused(run, tmp_path):
    """Its size is told before it is unpacked."""
    path = tmp_path / "bomb.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(
            "meta/episode_ends/.zarray",
            json.dumps(
                {
                    "zarr_format": 2,
                    "shape": [1],
                    "chunks": [1],
                    "dtype": "<i8",
                    "compressor": None,
                    "fill_value": 0,
                    "filters": None,
                    "order": "C",
                }
            ),
        )
        file.writestr("meta/episode_ends/0", b"\0" * 50_000_000)
    code, said, _ = run(path, PUSHT)
    assert code == 2
    assert "has 50000000 bytes instead of 8" in said


def test_without_the_extra_one_line_says_so(run, monkeypatch):
    """What is missing, and how to get it."""
    import sys

    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    code, said, _ = run(INTEROP / "pusht.zarr", PUSHT)
    assert code == 2
    assert "imagecodecs is not installed; pip install 'diffusion_policy_ros[zarr]'" in said
