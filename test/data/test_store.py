"""Datasets on disk: recordings that are added, pictures as they came, and what may go wrong."""

import dataclasses
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from made_bags import (
    CONTRACT,
    MS,
    PERIOD,
    START,
    TEXT,
    header,
    make_bag,
    pose,
    trajectory,
    write_bag,
)
from PIL import Image

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import message_types
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset, Index, WindowDataset
from diffusion_policy_ros.data.pictures import EncodedPictures, Files, as_they_came
from diffusion_policy_ros.data.store import Recording, adding
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import decode
from diffusion_policy_ros.observe.history import Frame, History

COMPRESSED = TEXT.replace("type: sensor_msgs/msg/Image", "type: sensor_msgs/msg/CompressedImage")
VIDEO = pytest.param(
    "video",
    marks=pytest.mark.skipif(find_spec("av") is None, reason="needs av: pip install '.[video]'"),
)
SMOOTH = np.linspace(0, 255, 4 * 6 * 3).reshape(4, 6, 3)


def as_file(pixels, how="jpeg"):
    """Pixels as a jpeg or png."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, how, **({"quality": 80} if how == "jpeg" else {}))
    return buffer.getvalue()


def contents(folder):
    """Every file below a folder: name → bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pictures(frames, seed=0):
    """A smooth picture that changes: jpeg keeps it nearly."""
    shift = np.random.default_rng(seed).uniform(0, 40, frames)
    return np.stack([np.clip(SMOOTH * 0.8 + s, 0, 255).astype(np.uint8) for s in shift])


def recording(frames=5, seed=0, **changes):
    """A demonstration that fits the contract."""
    rng = np.random.default_rng(seed)
    arrays = {
        "camera": pictures(frames, seed),
        "position": rng.uniform(-1, 1, (frames, 3)).astype(np.float32),
        "orientation": np.tile(np.float32([0, 0, 0, 1]), (frames, 1)),
        "action": rng.uniform(-1, 1, (frames, 7)).astype(np.float32),
    }
    return Recording(f"demo_{seed}", {**arrays, **changes})


def test_what_is_added_is_read_again(tmp_path):
    """Arrays, what is said of them, in their order; what is there already is left alone."""
    first, second = recording(5, 1), recording(7, 2)
    with adding(tmp_path / "data", CONTRACT) as new:
        assert new.add(first).status == "kept"
    with adding(tmp_path / "data", CONTRACT) as new:
        told = Recording("again", first.arrays)
        assert new.add(told).status == "present"
        assert new.add(Recording("b", second.arrays, True, "pick", ("clean",))).status == "kept"
    assert (new.report.episodes, new.report.frames) == (2, 12)
    dataset = Dataset(tmp_path / "data")
    assert [e.source for e in dataset.episodes] == ["demo_1", "b"]
    last = dataset.episodes[1]
    assert (last.success, last.task, last.tags) == (True, "pick", ("clean",))
    for number, wanted in enumerate((first, second)):
        found = dataset.episode(number)
        for key, values in wanted.arrays.items():
            assert np.array_equal(found[key], values)
        assert found["stamp_ns"].tolist() == [i * PERIOD for i in range(len(found["action"]))]


@pytest.mark.parametrize("images", ["jpeg", "png", "auto", "raw"])
def test_bytes_of_pictures_are_kept_and_read_as_a_live_message_is(tmp_path, images):
    """Training sees just what the robot will: the same decoder, whatever the dataset keeps."""
    files = [as_file(p, how) for p in pictures(6) for how in ("jpeg", "png")]
    stream = Contract.from_text(COMPRESSED).observations["camera"]
    live = [decoded(stream, data) for data in files]
    with adding(tmp_path / "data", CONTRACT, images) as new:
        assert new.add(recording(12, camera=iter(files))).status == "kept"
    windows = WindowDataset(tmp_path / "data", 1, 1)
    assert np.array_equal(windows.batch(range(12))["camera"][:, 0], np.stack(live))
    if images in ("jpeg", "png"):
        assert [windows.dataset.rows["camera"].kept(i) for i in range(12)] == files


def decoded(stream, data):
    """What a live message of these bytes becomes."""
    head = SimpleNamespace(frame_id="")
    return decode(stream, SimpleNamespace(data=data, format="jpeg", header=head))


def test_png_loses_nothing_jpeg_a_few_steps(tmp_path):
    """Encoded where bytes did not come; depth is never jpeg."""
    given = recording(9)
    for images, most in (("png", 0), ("jpeg", 12)):
        with adding(tmp_path / images, CONTRACT, images) as new:
            new.add(given)
        found = Dataset(tmp_path / images).episode(0)["camera"].astype(int)
        assert np.abs(found - given.arrays["camera"]).max() <= most
        assert not list((tmp_path / images / "shards").glob("*/camera.npy"))


@pytest.mark.parametrize("images", ["jpeg", VIDEO])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"camera": [as_file(pictures(1)[0])[:80]] * 5}, "not a whole jpeg or png"),
        ({"camera": [b"GIF89a"] * 5}, "not a whole jpeg or png"),
        ({"camera": [as_file(np.zeros((8, 8, 3), np.uint8))] * 5}, "camera is uint8 (8, 8, 3)"),
        ({"camera": [as_file(pictures(1)[0])] * 4}, "camera has 4 pictures for 5 actions"),
        ({"camera": [as_file(pictures(1)[0])] * 7}, "camera has 7 pictures for 5 actions"),
        ({"position": np.zeros((5, 2), np.float32)}, "position is float32 (5, 2), the contract"),
        ({"position": np.full((5, 3), np.nan, np.float32)}, "position is not finite"),
        ({"left": np.zeros((5, 2), np.float32)}, "left is not in the contract"),
        ({"action": np.zeros((0, 7), np.float32)}, "has no actions"),
    ],
)
def test_what_does_not_fit_is_rejected_and_leaves_nothing(tmp_path, changes, reason, images):
    """One line of each; those beside it are kept."""
    with adding(tmp_path / "data", CONTRACT, images) as new:
        new.add(recording(4, 1))
        report = new.add(recording(5, 2, **changes))
        new.add(recording(6, 3))
    assert report.status == "rejected"
    assert reason in report.reason
    assert [e.frames for e in Dataset(tmp_path / "data").episodes] == [4, 6]
    found, wanted = Dataset(tmp_path / "data").episode(1), recording(6, 3).arrays
    assert np.array_equal(found["position"], wanted["position"])
    assert np.abs(found["camera"].astype(int) - wanted["camera"]).max() <= 14
    with pytest.raises(UserError, match="demo_2") as caught:
        with adding(tmp_path / "none", CONTRACT, images) as new:
            new.add(recording(5, 2, **changes))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_a_file_that_another_reader_closes_is_read_to_its_end(tmp_path, monkeypatch):
    """Only so many are kept open; one that is being read stays open all the same."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    files, read = Files(1), os.pread

    def after_another(*where):
        files.opened(tmp_path / "two")
        return read(*where)

    monkeypatch.setattr(os, "pread", after_another)
    stream = CONTRACT.observations["camera"]
    assert EncodedPictures(files, tmp_path / "one", np.array([3]), stream).kept(0) == b"one"


def test_what_differs_in_pictures_or_task_alone_is_another_demonstration(tmp_path):
    """Also where pictures are read one by one; what older versions noted counts still."""
    one, other = recording(), np.full_like(pictures(5), 9)
    with adding(tmp_path / "data", CONTRACT) as new:
        assert new.add(one).status == "kept"
        assert new.add(recording(camera=iter(other))).status == "kept"
        assert new.add(dataclasses.replace(one, task="pick")).status == "kept"
        assert new.add(recording(camera=iter(one.arrays["camera"]))).status == "present"
        assert new.add(recording(camera=other)).status == "present"
    assert np.array_equal(Dataset(tmp_path / "data").episode(1)["camera"], other)
    digest = hashlib.blake2b(digest_size=8)
    for key, values in sorted((one.arrays | {"stamp_ns": np.arange(5) * PERIOD}).items()):
        digest.update(b"" if key == "camera" else key.encode() + values.tobytes())
    with adding(tmp_path / "old", CONTRACT) as new:
        new.add(dataclasses.replace(one, hash=digest.hexdigest()))
        assert new.add(one).status == "present"


@pytest.mark.parametrize("images", ["raw", "jpeg", VIDEO])
def test_all_is_on_the_disk_before_the_index_names_it(tmp_path, monkeypatch, images):
    """A power cut after that loses nothing, whatever a compaction removes then."""
    synced = []

    def sync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", sync)
    with adding(tmp_path / "data", CONTRACT, images) as new:
        new.add(recording())
    names = [os.path.relpath(path, tmp_path / "data") for path in synced]
    index = names.index(".dataset.yaml")
    (shard,) = (tmp_path / "data/shards").iterdir()
    files = {path.name for path in shard.iterdir()}
    assert {os.path.basename(name) for name in names[:index]} >= files
    assert os.path.basename(names[index - 2]) == shard.name
    assert names[index - 1 :] == ["shards", ".dataset.yaml", "."]


def test_an_error_on_the_way_leaves_the_dataset_as_it_was(tmp_path):
    """What was added before the error, too, is not in it."""
    with adding(tmp_path / "data", CONTRACT) as new:
        new.add(recording(4, 1))
    before = (tmp_path / "data/dataset.yaml").read_bytes()
    with pytest.raises(ZeroDivisionError):
        with adding(tmp_path / "data", CONTRACT) as new:
            new.add(recording(4, 2))
            raise ZeroDivisionError
    assert (tmp_path / "data/dataset.yaml").read_bytes() == before
    assert len(list((tmp_path / "data/shards").iterdir())) == 1


def compressed(stamp_ns, data):
    """A CompressedImage of these bytes."""
    return message_types("sensor_msgs/msg/CompressedImage")(
        header=header(stamp_ns), format="jpeg", data=np.frombuffer(data, np.uint8)
    )


@pytest.mark.parametrize(
    ("more", "late"), [("", 0), (", observation_latency_s: 0.02", 0), ("", PERIOD + 9 * MS)]
)
def test_a_bag_of_compressed_pictures_keeps_them_as_they_came(tmp_path, more, late):
    """Byte for byte, each with its frame, and windows are what the history gives of messages.

    Also where a frame waits for its pose while the camera goes on.
    """
    text = COMPRESSED.replace("resize: none", f"resize: none{more}")
    text = text.replace(
        "record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}",
        "record: next_state",
    ).replace("    - {name: gripper, kind: binary}\n", "")
    contract = Contract.from_text(text.replace("rate_hz: 20", "rate_hz: 20\nsettle_s: 0.2"))
    files = [as_file(p) for p in pictures(9)]
    messages = []
    for i, data in enumerate(files):
        ns = START + i * PERIOD
        told = pose(ns - 20 * MS * bool(more), (0.01 * i, 0, 0))
        messages.append(("/pose", ns + MS + late, told))
        messages.append(("/camera", ns + 2 * MS, compressed(ns, data)))
    messages.sort(key=lambda one: one[1])
    bag = write_bag(tmp_path / "bag", messages, contract)
    convert([bag], contract, tmp_path / "data", options=Options(images="jpeg"))
    dataset = Dataset(tmp_path / "data")
    assert [dataset.rows["camera"].kept(i) for i in range(8)] == files[:8]
    history, seen = History(contract, 1), []
    for topic, ns, msg in messages:
        seen += [e for e in history.push(topic, msg, ns) if isinstance(e, Frame)]
    for frame, found in zip(seen, dataset.episode(0)["camera"], strict=False):
        assert np.array_equal(frame.arrays["camera"], found)


@pytest.mark.parametrize("images", ["raw", "jpeg", "png", VIDEO])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: bytes(99)])
def test_a_bridge_over_a_damaged_picture_repeats_the_one_before(tmp_path, images, damage):
    """However pictures are kept; also where the picture came, and only the pose did not."""
    contract = Contract.from_text(
        COMPRESSED.replace("field: pose", "max_age_s: 0.02, field: pose")
    )
    shown = [np.clip(SMOOTH * 0.8 + 18 * (i % 3), 0, 255).astype(np.uint8) for i in range(12)]
    messages = []
    for i, data in enumerate(map(as_file, shown)):
        ns = START + i * PERIOD
        messages.append(("/camera", ns, compressed(ns, damage(data) if i == 4 else data)))
        if i != 8:
            messages.append(("/pose", ns, pose(ns, (0.01 * i, 0, 0))))
        messages.append(("/command", ns + MS, trajectory(ns + MS, [0.01 * i] * 7)))
    bag = write_bag(tmp_path / "bag", messages, contract)
    told = Options(True, max_gap_frames=1, images=images)
    report = convert([bag], contract, tmp_path / "data", options=told).bags[0]
    found = Dataset(tmp_path / "data").episode(0)["camera"]
    assert "2 missing frames bridged" in report.notes and len(found) == 12
    for i in range(12):
        bridged = i in (
            4,
            8,
        )  # what comes after a repeated picture in a video is not quite the same
        apart = np.abs(found[i].astype(int) - found[i - 1]).mean()
        assert apart < 6 if bridged else apart > 12, (i, apart)


def test_pictures_that_the_contract_turns_or_crops_are_encoded_anew(tmp_path):
    """Their bytes are not what the policy sees."""
    text = COMPRESSED.replace("resize: none", "resize: none, rotate: '180'")
    text = text.replace("{topic: /command", "{topic: /pose2")
    stream = Contract.from_text(text).observations["camera"]
    data = as_file(pictures(1)[0])
    assert as_they_came(stream, compressed(0, data)) is None
    plain = Contract.from_text(COMPRESSED).observations["camera"]
    assert as_they_came(plain, compressed(0, data)) == data
    assert as_they_came(plain, None) is None
    scaled = Contract.from_text(COMPRESSED.replace("resize: none", "resize: area"))
    large = as_file(np.zeros((8, 12, 3), np.uint8))
    assert as_they_came(scaled.observations["camera"], compressed(0, large)) is None
    assert as_they_came(scaled.observations["camera"], compressed(0, data)) == data


def test_a_dataset_of_format_1_opens_and_is_added_to(tmp_path):
    """Its lines call the source a bag, and say no more than success."""
    convert([make_bag(tmp_path / "a")], CONTRACT, tmp_path / "data")
    path = tmp_path / "data/dataset.yaml"
    index = Index.load(tmp_path / "data")
    (episode,) = index.episodes
    old = {"bag": "a", "hash": episode.hash, "shard": episode.shard, "start": 0, "frames": 12}
    head = path.read_text().partition("episodes:")[0].replace("format: 2", "format: 1")
    path.write_text(f"{head}episodes:\n- {json.dumps({**old, 'success': None})}\n")
    assert Dataset(tmp_path / "data").episodes == [episode]
    convert([make_bag(tmp_path / "b", seed=1)], CONTRACT, tmp_path / "data")
    assert [e.source for e in Dataset(tmp_path / "data").episodes] == ["a", "b"]


def test_an_index_that_was_written_by_hand_is_read_as_yaml(tmp_path):
    """And its mistakes are named with their lines."""
    convert([make_bag(tmp_path / "a")], CONTRACT, tmp_path / "data")
    path = tmp_path / "data/dataset.yaml"
    (episode,) = Index.load(tmp_path / "data").episodes
    head = path.read_text().partition("episodes:")[0]
    line = f"source: a\n  hash: {episode.hash!r}\n  shard: {episode.shard!r}\n  start: 0\n"
    path.write_text(f"{head}episodes:\n- {line}  frames: 12\n  tags: [clean]\n")
    assert Dataset(tmp_path / "data").episodes[0].tags == ("clean",)
    path.write_text(f"{head}episodes:\n- {line}  frames: 12\n  wait: 2\n")
    with pytest.raises(UserError, match="did you mean 'weight'"):
        Dataset(tmp_path / "data")


MANY = """
import resource, sys
import numpy as np
from diffusion_policy_ros.data.dataset import WindowDataset
windows = WindowDataset(sys.argv[1], 2, 4)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
windows = WindowDataset(sys.argv[1], 2, 4)
batch = windows.batch(np.arange(len(windows)))
print(len(windows), int(batch["camera"].sum()))
"""


@pytest.mark.parametrize("images", ["raw", "jpeg", VIDEO])
def test_a_dataset_of_many_evenings_is_read_with_few_open_files(tmp_path, images):
    """More files than a process may have open: only some are, whatever a batch touches."""
    for seed in range(150):
        with adding(tmp_path / "data", CONTRACT, images) as new:
            new.add(recording(3, seed))
    ran = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    windows = WindowDataset(tmp_path / "data", 2, 4)
    wanted = int(windows.batch(np.arange(450))["camera"].sum())
    assert ran.stdout.split() == ["450", str(wanted)], ran.stderr[-500:]
    assert len(os.listdir("/proc/self/fd")) < resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def shorten(path):
    """Cut off its end."""
    os.truncate(path, path.stat().st_size - 3)


def overwrite(path):
    """Leave its size alone."""
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "how", "match"),
    [
        ("camera.images", shorten, "camera.images: has .* bytes instead of"),
        ("camera.images", os.remove, "camera.images: the file is missing"),
        ("camera.images", overwrite, "picture 0: not a whole jpeg or png"),
        ("camera.ends.npy", shorten, "camera.ends.npy: has .* bytes instead of"),
        ("camera.ends.npy", os.remove, "camera.npy: the file is missing"),
    ],
)
def test_damaged_pictures_are_told_in_one_line(tmp_path, name, how, match):
    """With the file, and the cure."""
    with adding(tmp_path / "data", CONTRACT, "jpeg") as new:
        new.add(recording(5))
    (shard,) = (tmp_path / "data/shards").iterdir()
    how(shard / name)
    with pytest.raises(UserError, match=match) as caught:
        WindowDataset(tmp_path / "data", 1, 1).batch([0])
    assert "copy the dataset again" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_datasets_of_one_meaning_are_read_as_one(tmp_path):
    """Windows of all of them; those of another meaning are refused with what differs."""
    for seed in (1, 2):
        with adding(tmp_path / str(seed), CONTRACT, ("raw", "jpeg")[seed - 1]) as new:
            new.add(recording(4, seed))
    both = Dataset([tmp_path / "1", tmp_path / "2"])
    assert both.origin == [0, 1]
    for seed in (1, 2):
        alone = Dataset(tmp_path / str(seed)).episode(0)
        for key, values in both.episode(seed - 1).items():
            assert np.array_equal(values, alone[key])
    other = Contract.from_text(TEXT.replace("rate_hz: 20", "rate_hz: 10"))
    with adding(tmp_path / "3", other) as new:
        new.add(recording(4, 3))
    with pytest.raises(UserError, match="they differ in rate_hz"):
        Dataset([tmp_path / "1", tmp_path / "3"])


def test_what_the_recorder_said_of_an_episode_is_in_the_dataset(tmp_path):
    """Its task and its success; nothing where nobody said."""
    said = {"task": "pick the cube", "success": "true"}
    bags = [make_bag(tmp_path / "a", metadata=said), make_bag(tmp_path / "b", seed=1)]
    convert(bags, CONTRACT, tmp_path / "data")
    found = [(e.task, e.success) for e in Dataset(tmp_path / "data").episodes]
    assert found == [("pick the cube", True), ("", None)]
