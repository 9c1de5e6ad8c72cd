"""Our datasets as LeRobot's: what is in them, as LeRobot reads it, and the way back."""

import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[lerobot]'")
pytest.importorskip("av", reason="needs av: pip install -e '.[lerobot]'")

import av  # noqa: E402
import made_bags  # noqa: E402
import pyarrow.parquet as parquet  # noqa: E402
from made_bags import make_bag  # noqa: E402
from made_lerobot import INTEROP  # noqa: E402

from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.convert import convert  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset, WindowDataset  # noqa: E402
from diffusion_policy_ros.data.pictures import encoded  # noqa: E402
from diffusion_policy_ros.data.store import Recording, adding  # noqa: E402

TEXT = """
name: small_arm
rate_hz: 20
anchor: front_image
observations:
  front_image: {topic: /front, type: sensor_msgs/msg/Image, shape: [48, 64, 3]}
  wrist_image: {topic: /wrist, type: sensor_msgs/msg/CompressedImage, shape: [32, 32, 3]}
  depth:
    topic: /depth
    type: sensor_msgs/msg/Image
    encoding: 32FC1
    near: 0.1
    far: 1.0
    shape: [32, 32, 1]
  joints:
    topic: /joint_states
    type: sensor_msgs/msg/JointState
    field: position
    names: [shoulder, elbow]
  speed:
    topic: /joint_states
    type: sensor_msgs/msg/JointState
    field: velocity
    names: [shoulder, elbow]
  eef_position: {topic: /eef, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  eef_orientation: {topic: /eef, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
  force: {topic: /force, type: std_msgs/msg/Float64MultiArray, shape: [1]}
action:
  fields:
    - {name: translation, kind: delta_position, frame: base_link, state: eef_position}
    - {name: rotation, kind: rotation_6d, frame: base_link, state: eef_orientation}
    - {name: gripper, kind: binary, frame: base_link}
  record: {topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [10], scale: [0.5]}
"""
CONTRACT = Contract.from_text(TEXT)
LENGTHS = (30, 12, 9)


def picture(number, height, width, channels=3):
    """Smooth, with an edge that moves."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        128 + 80 * np.sin((x + 2 * number) / 9 + c / 2) * np.cos(y / 7 - c / 2)
        for c in range(channels)
    ]
    image = np.stack(waves, axis=-1)
    image[8:16, 4 + number % 16 : 12 + number % 16] = 220
    return image.astype(np.uint8)


def recording(number, frames, **more):
    """A demonstration, its wrist pictures as jpeg."""
    random = np.random.default_rng(number)
    arrays = {
        key: random.normal(size=(frames, stream.size)).astype(np.float32)
        for key, stream in CONTRACT.observations.items()
        if not stream.is_image
    }
    arrays["eef_orientation"] /= np.linalg.norm(arrays["eef_orientation"], axis=1, keepdims=True)
    arrays["action"] = random.normal(size=(frames, 10)).astype(np.float32)
    first = 1_700_000_000_000_000_000
    jitter = random.integers(-5, 5, frames) * 1_000_000
    arrays["stamp_ns"] = first + np.arange(frames, dtype=np.int64) * 50_000_000 + jitter
    start = 100 * number
    arrays["front_image"] = np.stack([picture(start + i, 48, 64) for i in range(frames)])
    arrays["wrist_image"] = [encoded(picture(start + i, 32, 32), "jpeg") for i in range(frames)]
    arrays["depth"] = np.stack([picture(start + i, 32, 32, 1) for i in range(frames)])
    return Recording(f"demo_{number}", arrays, **more)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three demonstrations of two tasks; pictures raw and as jpeg."""
    out = tmp_path_factory.mktemp("made") / "dataset"
    with adding(out, CONTRACT, "raw") as new:
        for number, frames in enumerate(LENGTHS):
            task = "pick the cube" if number < 2 else "open the drawer"
            new.add(recording(number, frames, success=number != 1, task=task))
    return out


def export(dataset, out, *words):
    """Through the command line; gives the folder."""
    assert main(["data", "export", "lerobot", str(dataset), "--out", str(out), *words]) == 0
    return out


def back(exported, out, *words):
    """The way back, with the contract that the export noted."""
    assert main(["import", "lerobot", str(exported), "--out", str(out), *words]) == 0
    return Dataset(out)


@pytest.fixture(scope="module")
def exported(dataset, tmp_path_factory):
    """As images, with true stamps."""
    return export(dataset, tmp_path_factory.mktemp("made") / "images", "--stamps")


def test_the_way_there_and_back_changes_nothing(dataset, exported, tmp_path):
    """Every array bit for bit, stamps, tasks and success: so windows and statistics, too."""
    ours, theirs = Dataset(dataset), back(exported, tmp_path / "back")
    assert theirs.contract.hash == ours.contract.hash
    for number, episode in enumerate(ours.episodes):
        came = theirs.episodes[number]
        assert (came.task, came.success, came.frames) == (
            episode.task,
            episode.success,
            episode.frames,
        )
        a, b = ours.episode(number), theirs.episode(number)
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_the_loss_is_the_same(dataset, exported, tmp_path):
    """Of a policy, over the same windows with the same noise."""
    back(exported, tmp_path / "back")
    losses = []
    for path in (dataset, tmp_path / "back"):
        windows = WindowDataset(path, n_obs_steps=2, horizon=16)
        batch = windows.batch(np.arange(len(windows)))
        torch.manual_seed(0)
        observed = [
            torch.from_numpy(batch[key]).float().flatten(1) for key in CONTRACT.observations
        ]
        network = torch.nn.LazyLinear(160)
        told = network(torch.cat(observed, dim=1) / 255)
        losses.append(
            torch.nn.functional.mse_loss(told, torch.from_numpy(batch["action"]).flatten(1))
        )
    assert abs(losses[0] - losses[1]) < 1e-6


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_video_is_close(dataset, tmp_path, capsys, codec):
    """PSNR of 35 dB and more, every picture there; depth stays exact, as images."""
    folder = export(dataset, tmp_path / "video", "--video", codec)
    assert f"51 frames, {3 * 51} pictures read back and counted" in capsys.readouterr().out
    ours, theirs = Dataset(dataset), back(folder, tmp_path / "back")
    for number in range(3):
        a, b = ours.episode(number), theirs.episode(number)
        np.testing.assert_array_equal(a["depth"], b["depth"])
        np.testing.assert_array_equal(a["action"], b["action"])
        for key in ("front_image", "wrist_image"):
            error = np.mean((a[key].astype(float) - b[key]) ** 2)
            assert 10 * np.log10(255**2 / error) > 35, key
    files = sorted((folder / "videos/observation.images.front").rglob("*.mp4"))
    count = 0
    for file in files:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            times = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
        # LeRobot takes the picture at round(time * fps).
        assert np.abs(np.array(times) * 20 - np.arange(len(times))).max() < 20e-4
        count += len(times)
    assert count == 51


def test_many_episodes_share_a_file(tmp_path):
    """Each is found at its own time in the video, and at its own rows."""
    with adding(tmp_path / "d", CONTRACT, "raw") as new:
        for number in range(24):
            new.add(recording(number, 3))
    folder = export(tmp_path / "d", tmp_path / "out", "--video", "h264")
    files = list((folder / "videos/observation.images.front").rglob("*.mp4"))
    assert 1 < len(files) < 24
    ours, theirs = Dataset(tmp_path / "d"), back(folder, tmp_path / "back")
    for number in range(24):
        a, b = ours.episode(number), theirs.episode(number)
        np.testing.assert_array_equal(a["action"], b["action"])
        for i in range(3):
            far = [np.abs(a["front_image"][i].astype(int) - x).mean() for x in b["front_image"]]
            assert int(np.argmin(far)) == i
            assert far[i] < 8
    rows = parquet.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    starts = [row["videos/observation.images.front/from_timestamp"] for row in rows]
    assert starts[:2] == [0.0, 0.15]


def test_what_lerobot_looks_for_is_there(exported):
    """Versions, features, stamps on the grid, places of episodes, true stamps on request."""
    info = json.loads((exported / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 20, "small_arm")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 51, 2)
    assert info["video_path"] is None
    features = info["features"]
    assert features["observation.images.front"] == {
        "dtype": "image",
        "shape": [48, 64, 3],
        "names": ["height", "width", "channels"],
    }
    assert features["observation.images.depth"]["shape"] == [32, 32, 3]
    assert features["observation.state"]["names"][:6] == [
        "shoulder.pos",
        "elbow.pos",
        "shoulder.vel",
        "elbow.vel",
        "eef_position.x",
        "eef_position.y",
    ]
    assert features["action"]["names"][:4] == [
        "translation.delta_x",
        "translation.delta_y",
        "translation.delta_z",
        "rotation.r11",
    ]
    rows = parquet.read_table(exported / "data/chunk-000/file-000.parquet")
    stamps = np.asarray(rows.column("timestamp"))
    np.testing.assert_array_equal(stamps, (np.arange(len(stamps)) / 20).astype(np.float32))
    assert rows.schema.field("action").type.list_size == 10
    assert rows.column("stamp_ns")[0].as_py() > 1_600_000_000_000_000_000
    episodes = parquet.read_table(
        exported / "meta/episodes/chunk-000/file-000.parquet"
    ).to_pylist()
    assert [row["dataset_from_index"] for row in episodes] == [0, 30, 42]
    assert [row["tasks"] for row in episodes][-1] == ["open the drawer"]
    assert rows.column("observation.images.front")[3].as_py()["bytes"].startswith(b"\x89PNG")


def test_a_task_is_its_tables_index(exported):
    """LeRobot tells wrong tasks where pandas does not know that the column is the index."""
    path = exported / "meta/tasks.parquet"
    note = json.loads(parquet.read_schema(path).metadata[b"pandas"])
    assert note["index_columns"] == ["task"]
    assert parquet.read_table(path).to_pydict() == {
        "task_index": [0, 1],
        "task": ["pick the cube", "open the drawer"],
    }


def test_statistics_are_complete(dataset, exported):
    """Of every feature, with quantiles: exact of vectors, per channel in 0 … 1 of pictures."""
    told = json.loads((exported / "meta/stats.json").read_text())
    features = json.loads((exported / "meta/info.json").read_text())["features"]
    assert told.keys() == features.keys()
    names = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
    assert all(found.keys() == names for found in told.values())
    ours = Dataset(dataset)
    actions = np.concatenate([ours.episode(n)["action"] for n in range(3)]).astype(float)
    np.testing.assert_allclose(told["action"]["q90"], np.quantile(actions, 0.9, axis=0))
    np.testing.assert_allclose(told["action"]["std"], actions.std(0))
    pixels = np.concatenate([ours.episode(n)["front_image"] for n in range(3)]) / 255
    assert np.shape(told["observation.images.front"]["mean"]) == (3, 1, 1)
    mean = np.ravel(told["observation.images.front"]["mean"])
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)))
    rows = parquet.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    np.testing.assert_allclose(rows[1]["stats/action/min"], actions[30:42].min(0))
    assert rows[1]["stats/observation.images.front/count"] == [12]


def test_statistics_are_lerobots(tmp_path):
    """Of the dataset that LeRobot wrote: its own figures."""
    words = ["import", "lerobot", str(INTEROP / "dataset_images"), "--out", str(tmp_path / "d")]
    contract = tmp_path / "contract.yaml"
    names = [*(f"joint_{i}" for i in range(7)), "gripper"]
    contract.write_text(
        "name: mini\nrate_hz: 10\nanchor: front\nobservations:\n"
        "  front: {topic: /front, type: sensor_msgs/msg/Image, shape: [64, 64, 3]}\n"
        "  state: {topic: /j, type: sensor_msgs/msg/JointState, field: position, "
        f"names: [{', '.join(names)}]}}\n"
        "action:\n  fields:\n    - {name: a, kind: joint_position, size: 7}\n"
        "  record: {topic: /c, type: std_msgs/msg/Float64MultiArray, shape: [7]}\n"
    )
    assert main([*words, "--contract", str(contract), "--map", "action=action"]) == 0
    export(tmp_path / "d", tmp_path / "out")
    ours = json.loads((tmp_path / "out/meta/stats.json").read_text())
    theirs = json.loads((INTEROP / "dataset_images/meta/stats.json").read_text())
    for key in ("observation.images.front", "observation.state", "action"):
        for name in ("min", "max", "mean", "std", "count"):
            # LeRobot puts the deviations of its episodes' pictures together less exactly.
            near = 1e-3 if (key, name) == ("observation.images.front", "std") else 1e-5
            np.testing.assert_allclose(ours[key][name], theirs[key][name], rtol=near, atol=1e-7)


def test_processes_write_the_same(dataset, exported, tmp_path):
    """Byte for byte, however many."""
    second = export(dataset, tmp_path / "second", "--stamps", "--jobs", "2")
    files = sorted(p.relative_to(exported) for p in exported.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((exported / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_a_gap_in_time_ends_an_episode(tmp_path, capsys):
    """LeRobot cannot say that frames are missing between two."""
    found = recording(5, 20)
    found.arrays["stamp_ns"][8:] += 200_000_000
    with adding(tmp_path / "d", CONTRACT) as new:
        new.add(found)
    export(tmp_path / "d", tmp_path / "out")
    assert "1 gap in time: episodes end there" in capsys.readouterr().out
    theirs = back(tmp_path / "out", tmp_path / "back")
    assert [episode.frames for episode in theirs.episodes] == [8, 12]
    assert theirs.episodes[0].task == "small_arm"


def refused(tmp_path, capsys, text, frames=5, words=(), out="out"):
    """Export a dataset of another contract, which is refused; what was said."""
    contract = Contract.from_text(text)
    found = recording(1, frames)
    for key, stream in contract.observations.items():
        if stream.is_image:
            found.arrays[key] = np.zeros((frames, *stream.shape), np.uint8)
    del found.arrays["stamp_ns"]
    with adding(tmp_path / "d", contract) as new:
        new.add(found)
    capsys.readouterr()
    target = tmp_path / out
    assert (
        main(["data", "export", "lerobot", str(tmp_path / "d"), "--out", str(target), *words]) == 2
    )
    assert {p.name for p in tmp_path.iterdir()} <= {"d", "full"}
    return capsys.readouterr().err


def test_a_rate_that_is_no_integer_is_refused(tmp_path, capsys):
    """LeRobot's fps is one."""
    said = refused(tmp_path, capsys, TEXT.replace("rate_hz: 20", "rate_hz: 12.5"))
    assert "the dataset's rate is 12.5 Hz; convert the bags with rate_hz: 12" in said
    assert len(said.splitlines()) == 1


def test_a_video_of_odd_size_is_refused(tmp_path, capsys):
    """Its colours are told for squares of four pixels."""
    text = TEXT.replace("shape: [48, 64, 3]", "shape: [47, 64, 3]")
    said = refused(tmp_path, capsys, text, words=("--video", "h264"))
    assert "front_image is 64x47, and a video's sizes are even; export it with --images" in said


def test_nothing_is_overwritten(dataset, exported, capsys):
    """What is there stays there."""
    before = (exported / "meta/info.json").read_bytes()
    words = ["data", "export", "lerobot", str(dataset), "--out", str(exported)]
    assert main(words) == 2
    assert "exists already; choose another path" in capsys.readouterr().err
    assert (exported / "meta/info.json").read_bytes() == before


def test_an_interruption_leaves_nothing(dataset, tmp_path, monkeypatch):
    """Whatever fails in the midst."""
    from diffusion_policy_ros.data.formats import lerobot_write

    def fails(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(lerobot_write, "write_meta", fails)
    assert main(["data", "export", "lerobot", str(dataset), "--out", str(tmp_path / "o")]) == 130
    assert not list(tmp_path.iterdir())


def killed(*_args):
    """Ends the process at once."""
    os._exit(9)


def test_a_process_that_is_killed_is_one_line(dataset, tmp_path, monkeypatch, capsys):
    """As where memory ran out; nothing is left."""
    from diffusion_policy_ros.data.formats import lerobot_write

    monkeypatch.setattr(lerobot_write, "_write_part", killed)
    words = ["data", "export", "lerobot", str(dataset), "--out", str(tmp_path / "o")]
    assert main([*words, "--jobs", "2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "error: a process ended before its work; check the memory; use fewer --jobs"
    assert not list(tmp_path.iterdir())


def test_what_was_not_written_is_noticed(dataset, tmp_path, monkeypatch, capsys):
    """A video that lost a picture on its way to the disk is not handed out."""
    from diffusion_policy_ros.data.formats import lerobot_write

    whole = lerobot_write.times_of
    monkeypatch.setattr(lerobot_write, "times_of", lambda file: whole(file)[:-1])
    words = ["data", "export", "lerobot", str(dataset), "--out", str(tmp_path / "o")]
    assert main([*words, "--video", "h264"]) == 2
    assert "lacks pictures of episode" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_bag_becomes_lerobots_in_one_command(tmp_path, capsys):
    """Converted and exported; the dataset in between is gone, and what is read is the same."""
    bag = make_bag(tmp_path / "bag", seed=3, metadata={"contract": made_bags.TEXT})
    words = ["convert", str(bag), "--format", "lerobot", "--out", str(tmp_path / "out")]
    assert main([*words, "--task", "push"]) == 0
    assert "out holds 1 episodes, 12 frames, 12 pictures read back" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"bag", "out"}
    theirs = back(tmp_path / "out", tmp_path / "back")
    convert([bag], made_bags.CONTRACT, tmp_path / "ours")
    a, b = Dataset(tmp_path / "ours").episode(0), theirs.episode(0)
    for key in ("camera", "position", "orientation", "action"):
        np.testing.assert_array_equal(a[key], b[key])
    assert theirs.episodes[0].task == "push"
    capsys.readouterr()
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
