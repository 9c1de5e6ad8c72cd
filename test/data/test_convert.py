"""Bags into datasets: what is kept, what is refused, and what an interruption leaves."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from made_bags import (
    CONTRACT,
    IMAGE,
    MS,
    NEXT_STATE,
    PERIOD,
    START,
    TEXT,
    contents,
    demonstration,
    image,
    make_bag,
    pose,
    write_bag,
)

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, open_bag, serialize
from diffusion_policy_ros.data.convert import Options, convert, expand, fingerprint
from diffusion_policy_ros.data.dataset import Dataset, Index
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.history import Frame, History


def only(report):
    """The one bag's report."""
    (bag,) = report.bags
    return bag


# What comes out


def test_a_demonstration_becomes_one_episode(tmp_path):
    """Every frame, its pixels, its state, its command and its time."""
    report = convert([make_bag(tmp_path / "bag", seed=3)], CONTRACT, tmp_path / "data")
    assert only(report).status == "kept"
    assert (report.episodes, report.frames) == (1, 12)
    found = Dataset(tmp_path / "data").episode(0)
    frames = [m for t, _, m in demonstration(seed=3) if t == "/camera"]
    assert np.array_equal(found["camera"], np.stack([m.data.reshape(4, 6, 3) for m in frames]))
    assert found["camera"].dtype == np.uint8
    assert found["position"] == pytest.approx(np.array([[0.01 * i, 3, 0.2] for i in range(12)]))
    assert found["action"] == pytest.approx(np.tile([0.01, 0, 0, 0, 0, 0, -1], (12, 1)))
    assert found["position"].dtype == found["action"].dtype == np.float32
    assert found["stamp_ns"].tolist() == [START + i * PERIOD for i in range(12)]


def test_the_datasets_frames_are_the_frames_of_the_history(tmp_path):
    """There is no second preprocessing: every array equals the frame rule's, bit for bit."""
    messages = [m for m in demonstration(frames=40) if m[1] // MS % 7]  # some go missing
    path = write_bag(tmp_path / "bag", messages)
    convert([path], NEXT_STATE, tmp_path / "data", options=Options(keep_idle=True))
    history, frames = History(NEXT_STATE, 1), []
    for topic, log_ns, msg in messages:
        if topic in NEXT_STATE.topics:
            frames += history.push(topic, msg, log_ns)
    frames += history.poll(1 << 62)
    wanted = {f.time_ns: f.arrays for f in frames if isinstance(f, Frame)}
    dataset = Dataset(tmp_path / "data")
    count = 0
    for number in range(len(dataset.episodes)):
        found = dataset.episode(number)
        for i, time_ns in enumerate(found["stamp_ns"].tolist()):
            count += 1
            for key, array in wanted[time_ns].items():
                assert np.array_equal(found[key][i], array)
    assert count > 20


def test_actions_from_the_next_state_end_one_frame_early(tmp_path):
    """The last frame has no next one; the action leads from each frame to the next."""
    convert([make_bag(tmp_path / "bag")], NEXT_STATE, tmp_path / "data")
    found = Dataset(tmp_path / "data").episode(0)
    assert len(found["action"]) == 11
    assert found["action"][:-1, :3] == pytest.approx(np.diff(found["position"], axis=0), abs=1e-6)


def test_a_frame_without_a_command_ends_the_episode(tmp_path):
    """Commands that stop cut the episode in two; the report says how many frames that cost."""
    messages = list(demonstration())
    gone = {ns for topic, ns, _ in messages if topic == "/command" and ns // PERIOD % 12 == 2}
    path = write_bag(tmp_path / "bag", [m for m in messages if m[1] not in gone])
    report = only(convert([path], CONTRACT, tmp_path / "data"))
    assert len(gone) == 1
    assert [frames for _, frames in report.episodes] == [6, 5]
    assert report.refused == {"no command on /command within one frame": 1}


def test_a_gap_splits_a_bag_into_episodes(tmp_path):
    """A camera that stops for a while ends the episode; a new one begins after it."""
    messages = [m for m in demonstration(frames=30) if not 10 <= (m[1] - START) // PERIOD < 15]
    report = only(convert([write_bag(tmp_path / "bag", messages)], CONTRACT, tmp_path / "data"))
    assert [frames for _, frames in report.episodes] == [10, 15]
    assert report.gaps == 1


@pytest.mark.parametrize(
    ("rate_hz", "refused"), [(50, True), (25, False), (21, None)], ids=["gaps", "uneven", "fits"]
)
def test_a_rate_above_the_anchors_is_named(tmp_path, rate_hz, refused):
    """Where every frame is a gap it is the reason; where frames are only late it is a note."""
    path = make_bag(tmp_path / "bag")
    contract = Contract.from_text(NEXT_STATE.text.replace("rate_hz: 20", f"rate_hz: {rate_hz}"))
    said = f"rate_hz {rate_hz} is above the 20.0 Hz at which /camera comes"
    if refused:
        with pytest.raises(UserError, match=said):
            convert([path], contract, tmp_path / "data")
    else:
        notes = only(convert([path], contract, tmp_path / "data")).notes
        assert any(said in note for note in notes) is (refused is False)


def test_stamps_that_run_backwards_split_a_bag(tmp_path):
    """Simulated time that restarted gives two episodes, each with its own commands."""
    first = list(demonstration(frames=10, start_ns=START + 10**10))
    later = START + 10**12
    second = [(t, ns - START + later, m) for t, ns, m in demonstration(frames=8, seed=1)]
    path = write_bag(tmp_path / "bag", [(t, ns, m) for t, ns, m in first] + second)
    report = only(convert([path], CONTRACT, tmp_path / "data"))
    assert [frames for _, frames in report.episodes] == [10, 8]
    assert "ran 10.450 s backwards" in report.resets[0]


def test_refused_frames_are_counted_by_stream(tmp_path):
    """A pose that comes too rarely refuses frames, by name, and the rest is kept."""
    messages = [
        m for m in demonstration(frames=20) if m[0] != "/pose" or (m[1] - START) // PERIOD < 10
    ]
    report = only(convert([write_bag(tmp_path / "bag", messages)], CONTRACT, tmp_path / "data"))
    assert report.frames == 13  # ten, and three more within max_age_s of 0.15 s
    ((reason, count),) = report.refused.items()
    assert count == 7
    assert "position (/pose): newest message is 0.200 s old" in reason


def test_idle_ends_are_trimmed_and_reported(tmp_path):
    """Rest before the motion is left out but for two frames; --keep-idle leaves it in."""
    path = make_bag(tmp_path / "bag", frames=30, idle=10)
    report = only(convert([path], CONTRACT, tmp_path / "data"))
    assert report.trimmed == (8, 0)
    assert [frames for _, frames in report.episodes] == [22]
    first, second = report.lines()
    assert "22 frames in 1 episode, 8 idle frames trimmed" in first
    assert "nothing moved, from 0.0 s (0.4 s long)" in second
    kept = only(convert([path], CONTRACT, tmp_path / "kept", options=Options(keep_idle=True)))
    assert [frames for _, frames in kept.episodes] == [30]


def test_an_arm_that_never_moves_is_rejected(tmp_path):
    """A recording of rest teaches nothing but to freeze."""
    path = make_bag(tmp_path / "bag", frames=30, idle=100)
    with pytest.raises(UserError, match="the arm does not move in its 30 frames"):
        convert([path], CONTRACT, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_recorders_verdict_is_noted(tmp_path):
    """Success, failure and silence stand in the episodes; failures can be skipped."""
    bags = [
        make_bag(tmp_path / "good", seed=0, metadata={"success": "true"}),
        make_bag(tmp_path / "bad", seed=1, metadata={"success": "False"}),
        make_bag(tmp_path / "plain", seed=2),
    ]
    convert(bags, CONTRACT, tmp_path / "data")
    assert [e.success for e in Dataset(tmp_path / "data").episodes] == [True, False, None]
    report = convert(bags, CONTRACT, tmp_path / "some", options=Options(skip_failed=True))
    assert [bag.status for bag in report.bags] == ["kept", "rejected", "kept"]
    assert "noted that the episode failed" in report.bags[1].reason


def test_a_cut_off_bag_gives_what_it_has(tmp_path):
    """The frames before the cut are kept, with a note; not while more of them may come."""
    path = make_bag(tmp_path / "bag")
    file = path / "bag_0.mcap"
    (path / "metadata.yaml").unlink()
    os.truncate(file, file.stat().st_size // 3)
    with pytest.raises(UserError, match="still being recorded; end the recording"):
        convert([path], CONTRACT, tmp_path / "data")
    os.utime(file, (0, 0))
    report = only(convert([path], CONTRACT, tmp_path / "data"))
    assert report.status == "kept"
    assert 2 < report.frames < 12
    assert report.notes == ["bag_0.mcap was cut off; read up to its last whole message"]


def test_a_recording_that_has_grown_since_is_not_added_beside_its_part(tmp_path):
    """Until the part is dropped; another recording of the same name is none that has grown."""
    whole = make_bag(tmp_path / "whole" / "episode")
    part = tmp_path / "part" / "episode"
    shutil.copytree(whole, part)
    (part / "metadata.yaml").unlink()
    (file,) = part.iterdir()
    os.truncate(file, file.stat().st_size // 2)
    os.utime(file, (0, 0))
    data = tmp_path / "data"
    convert([part], CONTRACT, data)
    found = only(convert([whole], CONTRACT, data))
    assert found.status == "rejected" and "the dataset has a part of it" in found.reason
    other = make_bag(tmp_path / "other" / "episode", seed=7)
    assert only(convert([other], CONTRACT, data)).status == "kept"
    (before, _) = Index.load(data).episodes
    assert main(["data", "drop", str(data), "--where", f"hash={before.hash}"]) == 0
    assert f"--where hash={before.hash}" in found.reason
    assert only(convert([whole], CONTRACT, data)).status == "kept"


def test_a_relative_topic_is_found_below_its_namespace(tmp_path):
    """A contract with relative topics reads a bag that was recorded in a namespace."""
    relative = Contract.from_text(TEXT.replace("topic: /", "topic: "))
    types = {f"/left_arm{t}": kind for t, kind in CONTRACT.recorded_topics.items()}
    with BagWriter(tmp_path / "bag", types) as writer:
        for topic, ns, msg in demonstration():
            writer.write(f"/left_arm{topic}", ns, serialize(types[f"/left_arm{topic}"], msg))
    assert only(convert([tmp_path / "bag"], relative, tmp_path / "data")).frames == 12


def test_a_relative_topic_is_the_one_that_was_recorded_for_it(tmp_path):
    """Recorded with all:=true it is there by its whole name, too."""
    relative = Contract.from_text(TEXT.replace("topic: /", "topic: "))
    types = {t: kind for name, kind in CONTRACT.recorded_topics.items() for t in (name, name[1:])}
    with BagWriter(tmp_path / "bag", types) as writer:
        for topic, ns, msg in demonstration():
            for name in (topic, topic[1:]):
                writer.write(name, ns, serialize(types[name], msg))
    assert only(convert([tmp_path / "bag"], relative, tmp_path / "data")).frames == 12


# What is refused


def test_a_missing_topic_and_a_wrong_type_are_named(tmp_path):
    """The contract's topics are looked for before anything is read."""
    path = make_bag(tmp_path / "bag")
    other = Contract.from_text(TEXT.replace("/camera", "/kamera"))
    with pytest.raises(
        UserError, match=r"/kamera is not in the bag, which has /camera, /command, /pose"
    ):
        convert([path], other, tmp_path / "data")
    other = Contract.from_text(
        TEXT.replace("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
    )
    with pytest.raises(UserError, match=f"/camera is {IMAGE} in the bag, sensor_msgs/msg/Comp"):
        convert([path], other, tmp_path / "data")


def test_a_wrong_size_is_the_reason(tmp_path):
    """Images of another size make no frame; the reason names stream, sizes and cure."""
    other = Contract.from_text(TEXT.replace("shape: [4, 6, 3]", "shape: [8, 8, 3]"))
    with pytest.raises(
        UserError, match=r"not a single frame: camera .*6x4, the contract says 8x8"
    ) as error:
        convert([make_bag(tmp_path / "bag")], other, tmp_path / "data")
    assert len(str(error.value).splitlines()) == 1


def test_good_bags_are_kept_beside_bad_ones(tmp_path):
    """One bad bag does not spoil the others; it is reported, and leaves no frames."""
    (tmp_path / "bags/c").mkdir(parents=True)
    (tmp_path / "bags/c/c.mcap").write_bytes(b"nonsense")
    make_bag(tmp_path / "bags/a", seed=1)
    make_bag(tmp_path / "bags/b", seed=2, frames=20, idle=99)
    make_bag(tmp_path / "bags/d", seed=3)
    report = convert([tmp_path / "bags"], CONTRACT, tmp_path / "data")
    assert [bag.status for bag in report.bags] == ["kept", "rejected", "rejected", "kept"]
    assert "no MCAP file" in report.bags[2].reason
    dataset = Dataset(tmp_path / "data")
    assert [e.source for e in dataset.episodes] == ["a", "d"]
    assert [e.frames for e in dataset.episodes] == [12, 12]
    assert dataset.episode(1)["position"][0, 1] == 3


def test_a_dataset_of_another_contract_is_left_alone(tmp_path):
    """Two robots are not mixed; the message says in what they differ."""
    convert([make_bag(tmp_path / "bag")], CONTRACT, tmp_path / "data")
    before = contents(tmp_path / "data")
    other = Contract.from_text(TEXT.replace("rate_hz: 20", "rate_hz: 10"))
    with pytest.raises(UserError, match="made with another contract; they differ in rate_hz"):
        convert([make_bag(tmp_path / "new", seed=5)], other, tmp_path / "data")
    assert contents(tmp_path / "data") == before


RENAMED = TEXT.replace("topic: /pose,", "topic: /arm/pose,").replace(
    "action:", "action:\n  limits: {velocity: 0.1}"
)


def renamed(**how):
    """A demonstration by a driver that was renamed."""
    return [(t.replace("/pose", "/arm/pose"), ns, m) for t, ns, m in demonstration(**how)]


def test_a_renamed_topic_and_a_changed_limit_leave_a_dataset_valid(tmp_path):
    """Bags of both go into one dataset, each read with the contract that it was recorded with."""
    other = Contract.from_text(RENAMED)
    first = make_bag(tmp_path / "first", metadata={"contract": TEXT})
    second = write_bag(tmp_path / "second", renamed(seed=3), other, {"contract": RENAMED})
    own = Options(own_cells=True)
    report = convert([first, second], CONTRACT, tmp_path / "data", options=own)
    assert [bag.status for bag in report.bags] == ["kept", "kept"]
    assert Dataset(tmp_path / "data").episode(1)["position"][0, 1] == 3
    third = write_bag(tmp_path / "third", renamed(seed=4), other)
    assert convert([third], other, tmp_path / "data").episodes == 3


def test_a_dataset_of_before_the_halves_is_opened_and_added_to(tmp_path):
    """Its index holds a hash of the whole contract; the text that travels with it is compared."""
    convert([make_bag(tmp_path / "bag")], CONTRACT, tmp_path / "data")
    index = Index.load(tmp_path / "data")
    dataclasses.replace(index, contract_hash="3fbd4d36d95973f4").save(tmp_path / "data")
    assert Dataset(tmp_path / "data").contract == CONTRACT
    assert convert([make_bag(tmp_path / "b", seed=2)], CONTRACT, tmp_path / "data").episodes == 2


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    """Only an empty folder or a dataset is written into."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.tex").write_text("x")
    with pytest.raises(UserError, match="there is something else already"):
        convert([make_bag(tmp_path / "bag")], CONTRACT, tmp_path / "data")
    assert contents(tmp_path / "data") == {"thesis.tex": b"x"}


@pytest.mark.parametrize("key", ["action", "stamp_ns", "a/b", ".."])
def test_an_observation_that_no_file_can_be_named_after_is_refused(tmp_path, key):
    """Keys become file names."""
    contract = Contract.from_text(
        TEXT.replace("camera:", f"{key}:").replace("anchor: camera", f"anchor: {key}")
    )
    with pytest.raises(UserError, match="cannot be a file's name"):
        convert([tmp_path], contract, tmp_path / "data")


def test_an_observation_that_has_the_name_of_another_s_file_is_refused(tmp_path):
    """Both would be written into one."""
    more = "camera.ends: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}"
    contract = Contract.from_text(TEXT.replace("  position:", f"  {more}\n  position:"))
    with pytest.raises(UserError, match="'camera.ends' has the name of a file of 'camera'"):
        convert([tmp_path], contract, tmp_path / "data")


# Again and again


def test_converting_again_adds_only_new_bags(tmp_path):
    """Bags are known by their content, whatever they are called; old shards are not touched."""
    bags = [make_bag(tmp_path / f"bag{i}", seed=i) for i in range(2)]
    convert(bags, CONTRACT, tmp_path / "data")
    before = contents(tmp_path / "data/shards")
    shutil.copytree(bags[0], tmp_path / "copy")
    bags += [tmp_path / "copy", make_bag(tmp_path / "new", seed=9)]
    report = convert(bags, CONTRACT, tmp_path / "data")
    assert [bag.status for bag in report.bags] == ["present", "present", "present", "kept"]
    assert next(report.bags[0].lines()) == "present   bag0: already in the dataset"
    assert (report.episodes, report.frames) == (3, 36)
    after = contents(tmp_path / "data/shards")
    assert {name: after[name] for name in before} == before
    everything = contents(tmp_path / "data")
    convert(bags, CONTRACT, tmp_path / "data")
    assert contents(tmp_path / "data") == everything


def test_several_processes_make_the_same_dataset(tmp_path):
    """--jobs changes nothing but the time: every file is equal."""
    for i in range(5):
        make_bag(tmp_path / f"bags/bag{i}", seed=i, frames=8 + i)
    one = convert([tmp_path / "bags"], CONTRACT, tmp_path / "one")
    told = []
    two = convert(
        [tmp_path / "bags"], CONTRACT, tmp_path / "two", jobs=2,
        progress=lambda report, done, total: told.append((report.bag, done, total)),
    )  # fmt: skip
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one.bags == two.bags
    assert sorted(bag for bag, _, _ in told) == [bag.bag for bag in two.bags]
    assert [done for _, done, _ in told] == [1, 2, 3, 4, 5]


def test_a_directory_stands_for_its_bags(tmp_path):
    """Sorted, each once, and a directory without bags is an error when it is opened."""
    for name in ("b", "a"):
        make_bag(tmp_path / f"bags/{name}", frames=2)
    bags = tmp_path / "bags"
    assert expand([bags / "b", bags]) == [bags / "b", bags / "a"]
    assert expand([tmp_path / "nothing"]) == [tmp_path / "nothing"]
    with pytest.raises(UserError, match="no bag was given"):
        expand([])
    with pytest.raises(UserError, match="no such bag"):
        convert([tmp_path / "nothing"], CONTRACT, tmp_path / "data")


def test_the_fingerprint_sees_content_not_names(tmp_path):
    """Equal bytes elsewhere are the same recording; one other stamp is another one."""
    one = make_bag(tmp_path / "one")
    shutil.copytree(one, tmp_path / "two")
    other = make_bag(tmp_path / "other", start_ns=START + 1)
    assert fingerprint(one) == fingerprint(tmp_path / "two")
    assert fingerprint(one) != fingerprint(other)


# Interruptions

INTERRUPTED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from made_bags import CONTRACT
from diffusion_policy_ros.data import convert as module
from diffusion_policy_ros.data.dataset import Index

def wait(*args):
    print("now", flush=True)
    time.sleep(60)

def rename(out, building, index):
    for shard in building.iterdir():
        shard.rename(out / "shards" / shard.name)
    wait()

point = sys.argv[4]
if point == "building":
    module.convert([sys.argv[2]], CONTRACT, sys.argv[3], progress=wait)
elif point == "renamed":
    module.commit = rename
elif point == "draft":
    Index.save = lambda self, folder: (folder / ".dataset.yaml").write_text("half") and wait()
module.convert([sys.argv[2]], CONTRACT, sys.argv[3])
"""


def interrupt(tmp_path, point, how):
    """Convert in a process, interrupt it at that point, and return its exit code."""
    here = os.path.dirname(__file__)
    command = [
        sys.executable,
        "-c",
        INTERRUPTED,
        here,
        tmp_path / "bags",
        tmp_path / "data",
        point,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(how)
    process.communicate(timeout=180)
    return process.returncode


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("point", ["building", "renamed", "draft"])
def test_an_interruption_leaves_the_old_dataset(tmp_path, point, how):
    """Wherever it hits, the dataset reads as before; the next conversion completes."""
    make_bag(tmp_path / "bags/a", seed=0)
    convert([tmp_path / "bags"], CONTRACT, tmp_path / "data")
    before = Dataset(tmp_path / "data").episodes
    make_bag(tmp_path / "bags/b", seed=1)
    assert interrupt(tmp_path, point, how) != 0
    assert Dataset(tmp_path / "data").episodes == before
    convert([tmp_path / "bags"], CONTRACT, tmp_path / "data")
    convert([tmp_path / "bags/a"], CONTRACT, tmp_path / "straight")
    convert([tmp_path / "bags"], CONTRACT, tmp_path / "straight")
    assert contents(tmp_path / "data") == contents(tmp_path / "straight")


def test_an_interrupted_first_conversion_leaves_no_dataset(tmp_path):
    """After Ctrl-C nothing is there; after a kill, the same command starts again."""
    make_bag(tmp_path / "bags/a")
    interrupt(tmp_path, "building", signal.SIGINT)
    assert not (tmp_path / "data").exists()
    interrupt(tmp_path, "renamed", signal.SIGKILL)
    with pytest.raises(UserError, match="is no dataset"):
        Dataset(tmp_path / "data")
    convert([tmp_path / "bags"], CONTRACT, tmp_path / "data")
    assert len(Dataset(tmp_path / "data").episodes) == 1


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    """With the folder that has no room."""

    def full(self, arrays):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("diffusion_policy_ros.data.shards.ShardWriter.append", full)
    with pytest.raises(UserError, match="data: the disk is full; make room"):
        convert([make_bag(tmp_path / "bag")], CONTRACT, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_rejected_bag_is_named_once(tmp_path):
    """The path is in front of the reason, not twice."""
    (tmp_path / "bag").mkdir()
    with pytest.raises(UserError) as caught:
        convert([tmp_path / "bag"], CONTRACT, tmp_path / "data")
    assert str(caught.value).count(str(tmp_path / "bag")) == 1


def test_two_conversions_at_once_do_not_mix(tmp_path):
    """The second is refused as long as the first one writes."""
    make_bag(tmp_path / "bags/a")
    here = os.path.dirname(__file__)
    command = [
        sys.executable,
        "-c",
        INTERRUPTED,
        here,
        tmp_path / "bags",
        tmp_path / "data",
        "building",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    with pytest.raises(UserError, match="another conversion writes into it"):
        convert([tmp_path / "bags"], CONTRACT, tmp_path / "data")
    process.kill()
    process.communicate(timeout=180)


def test_a_disk_that_locks_no_files_is_named(tmp_path, monkeypatch):
    """It is no other conversion, which might be waited for."""

    def refused(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    make_bag(tmp_path / "bag")
    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UserError, match="locks no files .*; choose a folder on another disk"):
        convert([tmp_path / "bag"], CONTRACT, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


def test_the_history_sees_log_times_as_arrivals(tmp_path):
    """A pose that arrived after the frame had closed is not in it, though its stamp would fit."""
    late = 30 * MS  # settle_s is 10 ms
    messages = []
    for i in range(10):
        ns = START + i * PERIOD
        messages.append(("/camera", ns + MS, image(ns, np.full((4, 6, 3), i, np.uint8))))
        messages.append(("/pose", ns + late, pose(ns, (i, 0, 0))))
    convert([write_bag(tmp_path / "bag", messages, NEXT_STATE)], NEXT_STATE, tmp_path / "data")
    found = Dataset(tmp_path / "data").episode(0)
    assert found["camera"][:, 0, 0, 0].tolist() == list(range(1, 9))
    assert found["position"][:, 0].tolist() == list(range(8))
    assert len(list(open_bag(tmp_path / "bag").messages())) == 20


def test_a_bag_of_another_cell_is_read_as_it_is_told_and_that_is_said(tmp_path):
    """Not of limits, which no recording depends on; of one that means something else, too."""
    bag = make_bag(tmp_path / "bag", metadata={"contract": CONTRACT.text})
    limited = CONTRACT.text.replace("kind: binary}", "kind: binary, send: {open: 0.1}}")
    slower = limited.replace("resize: none", "resize: none, max_age_s: 0.3")
    turned = CONTRACT.text.replace("kind: delta_axis_angle", "kind: axis_angle")
    for number, (text, said) in enumerate(
        (
            (limited, []),
            (slower, ["observations.camera.max_age_s"]),
            (turned, ["action.fields.1.kind"]),
        )
    ):
        report = convert([bag], Contract.from_text(text), tmp_path / f"out{number}").bags[0]
        told = "it was recorded with another contract, which is not used: "
        assert [n.removeprefix(told) for n in report.notes if n.startswith(told)] == said
