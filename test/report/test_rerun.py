"""`--rerun`: what comes out of the recordings for the Rerun viewer is what went in."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))
from made_bags import (
    CONTRACT,
    MS,
    NEXT_STATE,
    PERIOD,
    START,
    demonstration,
    make_bag,
    pose,
    write_bag,
)

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import message_types
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.pictures import encoded
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.replay.reading import Replayed
from diffusion_policy_ros.runtime.tail import Chunk

HAS_READER = importlib.util.find_spec("rerun") and importlib.util.find_spec("rerun.chunk")
reads_back = pytest.mark.skipif(
    not HAS_READER,
    reason="needs a Rerun that reads recordings: pip install 'rerun-sdk>=0.41'",
)
TINY = """
policy:
  num_inference_steps: 2
  replan_steps: 4
  denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}
"""
LINES = CONTRACT.text.replace("anchor: camera", "anchor: position").splitlines()
STATE = Contract.from_text("\n".join(line for line in LINES if "/camera" not in line))


def read(path):
    """Entity and component → frames, times in ns, values; what has no time under its first one."""
    from rerun.chunk import RrdReader

    rows = {}
    for chunk in RrdReader(path).stream().to_chunks():
        batch = chunk.to_record_batch()
        columns = {name: batch.column(name) for name in batch.schema.names}
        for name, column in columns.items():
            if ":" not in name:
                continue
            found = rows.setdefault(f"{chunk.entity_path} {name.partition(':')[2]}", [])
            values = column.to_pylist()
            if chunk.is_static:
                found.append((0, 0, values[0]))
                continue
            frames = columns["frame"].to_pylist()
            found += zip(frames, columns["stamp"].cast("int64").to_pylist(), values, strict=True)
    found = {}
    for name, row in rows.items():
        frames, times, values = zip(*sorted(row, key=lambda one: one[:2]), strict=True)
        found[name] = SimpleNamespace(frames=list(frames), times=list(times), values=list(values))
    return found


def same(row, times, values, first=0):
    """One value a frame, at its time, to the last bit of float32."""
    assert row.times == list(times)
    assert row.frames == list(range(first, first + len(row.times)))
    assert np.array_equal(np.array(row.values, np.float32), np.asarray(values, np.float32))


@pytest.fixture
def dataset(tmp_path):
    """Three bags as a dataset."""
    bags = [make_bag(tmp_path / f"bag_{n}", seed=n, frames=20) for n in range(3)]
    convert(bags, CONTRACT, tmp_path / "data", options=Options(keep_idle=True))
    return tmp_path / "data"


@reads_back
def test_the_chosen_episodes_of_a_dataset(dataset, tmp_path, capsys):
    """Vectors, actions and pictures at their frames and times; the components' names; no more."""
    file = tmp_path / "two.rrd"
    assert main(["data", "show", str(dataset), "--episodes", "0", "2", "--rerun", str(file)]) == 0
    assert f"rerun     {file}" in capsys.readouterr().out
    found, whole = read(file), Dataset(dataset)
    assert {name.split("/")[1] for name in found if "episode" in name} == {
        "episode_0",
        "episode_2",
    }
    for number in (0, 2):
        wanted, path = whole.episode(number), f"/episode_{number}"
        times = wanted["stamp_ns"].tolist()
        for key in ("position", "orientation"):
            same(found[f"{path}/observation/{key} scalars"], times, wanted[key])
        for field, place in CONTRACT.action.slices.items():
            same(found[f"{path}/action/{field} scalars"], times, wanted["action"][:, place])
        same(found[f"{path}/space/position positions"], times, wanted["position"][:, None])
        leads = wanted["position"] + wanted["action"][:, :3]
        same(found[f"{path}/space/action/translation positions"], times, leads[:, None])
        pictures = found[f"{path}/observation/camera buffer"]
        same(pictures, times, wanted["camera"].reshape(len(times), 1, -1))
        (way,) = found[f"{path}/space/position/way strips"].values
        assert np.array_equal(np.array(way[0], np.float32), wanted["position"])
    (names,) = found["/episode_0/action/translation names"].values
    assert names == ["translation.0", "translation.1", "translation.2"]
    assert not any("predicted" in name for name in found)


@reads_back
def test_encoded_pictures_are_handed_on_as_they_are(tmp_path):
    """Byte for byte those that the dataset keeps."""
    bag = make_bag(tmp_path / "bag")
    options = Options(keep_idle=True, images="jpeg")
    convert([bag], CONTRACT, tmp_path / "data", options=options)
    assert main(["inspect", str(tmp_path / "data"), "--rerun", str(tmp_path / "a.rrd")]) == 0
    shown, rows = read(tmp_path / "a.rrd"), Dataset(tmp_path / "data").rows["camera"]
    blobs = shown["/episode_0/observation/camera blob"].values
    assert [bytes(blob[0]) for blob in blobs] == [rows.kept(n) for n in range(12)]
    kinds = shown["/episode_0/observation/camera media_type"].values
    assert kinds == [["image/jpeg"]] * 12


@reads_back
def test_pictures_of_a_video_are_decoded(tmp_path):
    """Each its own, as training sees it."""
    pytest.importorskip("av", reason="needs PyAV: pip install -e '.[video]'")
    bag = make_bag(tmp_path / "bag")
    options = Options(keep_idle=True, images="video")
    convert([bag], CONTRACT, tmp_path / "data", options=options)
    assert main(["inspect", str(tmp_path / "data"), "--rerun", str(tmp_path / "a.rrd")]) == 0
    shown = read(tmp_path / "a.rrd")["/episode_0/observation/camera buffer"]
    seen = Dataset(tmp_path / "data").rows["camera"].take(np.arange(12))
    same(shown, [START + n * PERIOD for n in range(12)], seen.reshape(12, 1, -1))


@reads_back
def test_a_bag_by_the_contract_that_it_was_recorded_with(tmp_path, capsys):
    """All its frames, also those before the first command, whose action nobody knows."""
    said = [m for m in demonstration() if m[0] != "/command" or m[1] > START + 4 * PERIOD]
    write_bag(tmp_path / "bag", said, CONTRACT, {"contract": CONTRACT.text})
    assert main(["inspect", str(tmp_path / "bag"), "--rerun", str(tmp_path / "a.rrd")]) == 0
    found = read(tmp_path / "a.rrd")
    times = [START + n * PERIOD for n in range(12)]
    same(
        found["/episode_0/observation/position scalars"],
        times,
        [(n / 100, 0, 0.2) for n in range(12)],
    )
    same(found["/episode_0/action/gripper scalars"], times[4:], [[-1.0]] * 8, first=4)
    assert found["/episode_0/observation/camera buffer"].times == times
    assert not (tmp_path / ".a.rrd").exists() and "contract drafted" in capsys.readouterr().out


@reads_back
def test_a_bags_jpegs_are_handed_on_as_they_came(tmp_path):
    """Not decoded and encoded again."""
    size = "shape: [160, 144, 3]"
    text = NEXT_STATE.text.replace("msg/Image", "msg/CompressedImage").replace(
        "shape: [4, 6, 3]", size
    )
    contract = Contract.from_text(text)
    random, messages, files = np.random.default_rng(0), [], []
    for n in range(5):
        ns = START + n * PERIOD
        files.append(encoded(random.integers(0, 256, (160, 144, 3), dtype=np.uint8), "jpeg"))
        picture = message_types("sensor_msgs/msg/CompressedImage")(
            header=pose(ns, (0, 0, 0)).header,
            format="jpeg",
            data=np.frombuffer(files[-1], np.uint8),
        )
        messages += [
            ("/pose", ns + MS, pose(ns, (0.01 * n, 0, 0))),
            ("/camera", ns + 2 * MS, picture),
        ]
    write_bag(tmp_path / "bag", messages, contract, {"contract": contract.text})
    assert main(["inspect", str(tmp_path / "bag"), "--rerun", str(tmp_path / "a.rrd")]) == 0
    blobs = read(tmp_path / "a.rrd")["/episode_0/observation/camera blob"].values
    assert [bytes(blob[0]) for blob in blobs] == files


@reads_back
@pytest.mark.parametrize("kind", ["bag", "data"])
def test_every_predicted_chunk_beside_what_was_demonstrated(tmp_path, monkeypatch, kind):
    """Each action at the frame that it is of; where the deltas lead to, from where the arm was."""
    from diffusion_policy_ros.report import rerun

    bag = make_bag(tmp_path / "bag", STATE, frames=20)
    convert([bag], STATE, tmp_path / "data", options=Options(keep_idle=True))
    save_checkpoint(tmp_path / "policy", DiffusionPolicy(Recipe.from_text(TINY), STATE))
    replayed, add = [], rerun.View._add
    monkeypatch.setattr(
        rerun.View, "_add", lambda view, *rest: (replayed.append(rest[2]), add(view, *rest))
    )
    words = [str(tmp_path / "policy"), str(tmp_path / kind), "--out", str(tmp_path / "out")]
    code = main(["replay", *words, "--threads", "1", "--rerun", str(tmp_path / "a.rrd")])
    ((one,), found) = (replayed, read(tmp_path / "a.rrd"))
    figures = json.loads((tmp_path / "out/replay.json").read_text())
    assert code == 0 and len(one.chunks) == figures["chunks"] == 5
    position = np.array(one.states["position"], np.float64)
    for field, place in STATE.action.slices.items():
        shown = {}
        for turn in range(4):  # of 15 actions each, every 4 frames
            row = found[f"/episode_0/predicted/{field}/{turn}" + " scalars"]
            for frame, ns, value in zip(row.frames, row.times, row.values, strict=True):
                shown[turn, frame] = (ns, value)
        assert f"/episode_0/predicted/{field}/4 scalars" not in found
        assert len(shown) == 5 * 15
        for number, (frame, chunk) in enumerate(one.chunks.items()):
            for step, action in enumerate(chunk.actions):
                ns, value = shown[number % 4, frame + step]
                assert ns == one.times_ns[frame] + step * PERIOD
                assert np.array_equal(value, action[place])
    for number, (frame, chunk) in enumerate(one.chunks.items()):
        assert np.allclose(chunk.actions[0], figures["first_actions"][0][number], atol=1e-7)
        ways = [
            found[f"/episode_0/space/{k}/translation strips"]
            for k in ("predicted", "demonstrated")
        ]
        assert all(
            way.frames[number] == frame and way.times[number] == chunk.stamp_ns for way in ways
        )
        predicted, done = (way.values[number][0] for way in ways)
        wanted = position[frame] + np.cumsum(chunk.actions[:, :3], axis=0)
        assert np.allclose(predicted, wanted, atol=1e-6)
        last = min(frame + 15, 20)
        wanted = position[frame] + np.cumsum(one.done[frame:last, :3], axis=0)
        assert np.allclose(done, wanted, atol=1e-6) and len(done) == last - frame


@pytest.mark.parametrize(("every", "needed"), [(1, 15), (4, 4), (5, 3), (7, 3), (15, 1), (40, 1)])
def test_no_chunk_hides_another(every, needed):
    """In as many turns as chunks overlap; none of a turn is of the time of another."""
    from diffusion_policy_ros.report.rerun import _turns

    chunks = {n: Chunk(n, np.full((15, 1), n), 1) for n in range(0, 100, every)}
    turns = _turns(Replayed("made", chunks=chunks))
    assert len(turns) == needed and sum(map(len, turns)) == len(chunks)
    for turn in turns:
        starts = [frame for frame, _ in turn]
        assert min(np.diff(starts), default=15) >= 15


@reads_back
def test_two_episodes_are_apart_and_arranged(dataset, tmp_path):
    """One tab each, in the layout that the recording brings with it."""
    from rerun.chunk import RrdReader

    assert main(["data", "show", str(dataset), "--rerun", str(tmp_path / "a.rrd")]) == 0
    reader = RrdReader(tmp_path / "a.rrd")
    assert len(reader.recordings()) == 1 and len(reader.blueprints()) == 1
    layout = reader.stream(store=reader.blueprints()[0]).to_chunks()
    said = " ".join(
        str(chunk.to_record_batch().to_pydict()) for chunk in layout if chunk.is_static
    )
    assert all(f"{n}: bag_{n}" in said for n in range(3)) or layout


@reads_back
def test_what_is_interrupted_leaves_nothing(dataset, tmp_path, monkeypatch):
    """Neither a half recording nor a part of one; an earlier one stays as it was."""
    from diffusion_policy_ros.report import rerun

    def interrupt(*_):
        raise KeyboardInterrupt

    file = tmp_path / "a.rrd"
    file.write_bytes(b"earlier")
    monkeypatch.setattr(rerun.View, "_series", interrupt)
    assert main(["data", "show", str(dataset), "--rerun", str(file)]) == 130
    assert file.read_bytes() == b"earlier" and [p.name for p in tmp_path.glob("*rrd*")] == [
        "a.rrd"
    ]


@reads_back
def test_a_full_disk_is_one_line(dataset, tmp_path):
    """What cannot be written whole is not left behind."""
    code = (
        "import resource, signal, sys\n"
        "from diffusion_policy_ros.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["inspect", str(dataset), "--rerun", str(tmp_path / "a.rrd")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ")
    assert "a.rrd" in line and "make room" in line
    assert not list(tmp_path.glob("*rrd*"))


@pytest.mark.parametrize(
    ("file", "said"),
    [("a.mcap", "end it in .rrd"), ("none/a.rrd", "make it first"), ("d.rrd", "is a directory")],
)
def test_a_name_that_cannot_be_written_is_refused_first(dataset, tmp_path, capsys, file, said):
    """Before the page; a bag is never written over by a word at the wrong place."""
    (tmp_path / "d.rrd").mkdir()
    page = tmp_path / "page.html"
    words = ["data", "show", str(dataset), "--out", str(page), "--rerun", str(tmp_path / file)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert file[:4] in line and said in line and not page.exists()


@pytest.mark.parametrize("verb", ["inspect", "data show", "replay"])
def test_without_rerun_it_says_what_to_install(tmp_path, monkeypatch, capsys, verb):
    """In one line and before anything is read."""
    monkeypatch.setitem(sys.modules, "rerun", None)
    words = {"replay": ["policy", "bag", "--out", str(tmp_path / "out")]}.get(verb, ["missing"])
    assert main([*verb.split(), *words, "--rerun", str(tmp_path / "a.rrd")]) == 2
    line = "error: rerun is not installed; pip install 'diffusion_policy_ros[view]'\n"
    assert capsys.readouterr().err == line and not list(tmp_path.iterdir())


def test_without_a_screen_it_says_how_to_write_a_file(tmp_path, monkeypatch, capsys):
    """A robot's computer has none."""
    monkeypatch.setitem(sys.modules, "rerun", SimpleNamespace(RecordingStream=lambda _: None))
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["inspect", str(tmp_path), "--rerun"]) == 2
    assert "no screen" in (said := capsys.readouterr().err) and "--rerun FILE.rrd" in said


def test_help_knows_it_and_imports_nothing_of_it():
    """Verbs that nobody asked to open the viewer are as quick as before."""
    code = (
        "import sys\n"
        "from diffusion_policy_ros.cli.main import main\n"
        "try: main(['inspect', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'rerun', 'torch', 'numpy'} & {*sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert "--rerun [FILE.rrd]" in done.stdout and done.stdout.endswith("set()\n"), done.stdout
