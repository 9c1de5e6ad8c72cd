"""LeRobot's datasets become ours, to the last digit; what is damaged is refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[lerobot]'")
pytest.importorskip("av", reason="needs av: pip install -e '.[lerobot]'")

from made_lerobot import (  # noqa: E402
    BY_TASK,
    CONTRACT,
    INTEROP,
    LENGTHS,
    SAME_ACTION,
    as_v21,
    change_info,
    copied,
    truth,
)

from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset, WindowDataset  # noqa: E402
from diffusion_policy_ros.data.formats.demonstrations import Column  # noqa: E402
from diffusion_policy_ros.data.formats.drafting import draft  # noqa: E402
from diffusion_policy_ros.data.formats.matching import match  # noqa: E402


@pytest.fixture
def contract(tmp_path):
    """The small arm's, as a file."""
    path = tmp_path / "mini_arm.yaml"
    path.write_text(CONTRACT)
    return path


@pytest.fixture
def run(tmp_path, contract, capsys):
    """Import a folder; gives the exit code, what was printed, and the dataset's folder."""

    def imported(root, *words, contract=contract, out="out"):
        given = ["--contract", str(contract)] if contract else []
        code = main(["import", "lerobot", str(root), *given, "--out", str(tmp_path / out), *words])
        said = capsys.readouterr()
        return code, said.out + said.err, tmp_path / out

    return imported


def check_equal(out, image):
    """The dataset holds what was given to LeRobot, the joints in the contract's order."""
    dataset, given, start = Dataset(out), truth(), 0
    lengths = [episode.frames for episode in dataset.episodes]
    assert lengths in (list(BY_TASK), list(LENGTHS))
    for number, length in enumerate(lengths):
        found, rows = dataset.episode(number), slice(start, start + length)
        np.testing.assert_array_equal(found["joints"], given["state"][rows][:, [6, *range(6)]])
        np.testing.assert_array_equal(found["gripper"], given["state"][rows][:, 7:])
        np.testing.assert_array_equal(found["action"], given["action"][rows])
        np.testing.assert_array_equal(np.diff(found["stamp_ns"]), 100_000_000)
        image(found["front_image"], rows)
        start += length


def test_images_come_bit_for_bit(run):
    """As they were given to LeRobot's add_frame; names are told in a table first."""
    code, said, out = run(INTEROP / "dataset_images", *SAME_ACTION)
    assert code == 0
    check_equal(
        out, lambda found, rows: np.testing.assert_array_equal(found, truth()["image"][rows])
    )
    assert "observation.state[6,0,1,2,3,4,5]" in said
    assert said.index("observation.state[7]") < said.index("kept")
    assert "not used: next.reward, next.done" in said
    tasks = [episode.task for episode in Dataset(out).episodes]
    assert tasks == ["lift the block", "put the block down"] * 2


def test_video_comes_as_lerobot_decodes_it(run):
    """Written in two sittings, so there are two files of everything."""
    code, _, out = run(INTEROP / "dataset_video", *SAME_ACTION)
    assert code == 0
    read = truth("dataset_video_read")["image"].astype(int)

    def image(found, rows):
        assert np.abs(found.astype(int) - read[rows]).max() <= 1

    check_equal(out, image)


def test_windows_are_lerobots(run):
    """A diffusion policy's window: the same rows, repeated and marked at an episode's ends."""
    _, _, out = run(INTEROP / "dataset_images", *SAME_ACTION)
    windows = WindowDataset(out, n_obs_steps=2, horizon=16)
    read = truth("dataset_images_read")
    for index in (0, 10):
        batch = windows.batch([index])
        for ours, theirs in (("action", "action"), ("action_is_pad", "action_is_pad")):
            np.testing.assert_array_equal(batch[ours][0], read[f"window{index}/{theirs}"])
        state = read[f"window{index}/observation.state"]
        np.testing.assert_array_equal(batch["joints"][0], state[:, [6, *range(6)]])


def test_version_21_is_read(run, tmp_path):
    """A file an episode, its index in JSON lines."""
    code, _, out = run(as_v21(INTEROP / "dataset_images", tmp_path / "old"), *SAME_ACTION)
    assert code == 0
    check_equal(
        out, lambda found, rows: np.testing.assert_array_equal(found, truth()["image"][rows])
    )


def test_episodes_and_tasks_are_chosen(run):
    """By number, and by task."""
    _, said, out = run(INTEROP / "dataset_images", *SAME_ACTION, "--episodes", "0,2-2")
    assert [episode.frames for episode in Dataset(out).episodes] == [12, 10, 10]
    _, said, out = run(
        INTEROP / "dataset_images", *SAME_ACTION, "--task", "put the block down", out="second"
    )
    assert [episode.frames for episode in Dataset(out).episodes] == [7, 10]
    code, said, _ = run(INTEROP / "dataset_images", *SAME_ACTION, "--episodes", "0,7", out="none")
    assert code == 2
    assert "has no episode 7; choose from 0 to 2" in said
    code, said, _ = run(INTEROP / "dataset_images", *SAME_ACTION, "--task", "lift the blok")
    assert code == 2
    assert "did you mean 'lift the block'?" in said


def test_again_adds_nothing(run):
    """What the dataset has is present."""
    run(INTEROP / "dataset_images", *SAME_ACTION)
    code, said, out = run(INTEROP / "dataset_images", *SAME_ACTION)
    assert code == 0
    assert "\n4 present; " in said
    assert len(Dataset(out).episodes) == 4


def test_a_drafted_contract_passes_and_fits(run, tmp_path, capsys):
    """Without a contract one is printed; it is checked, and the dataset is imported with it."""
    assert main(["import", "lerobot", str(INTEROP / "dataset_video"), "--out", "o"]) == 2
    said = capsys.readouterr()
    assert "no contract was given; check the draft above" in said.err
    drafted = tmp_path / "drafted.yaml"
    drafted.write_text(said.out)
    assert main(["contract", "check", str(drafted)]) == 0
    code, _, out = run(INTEROP / "dataset_video", contract=drafted)
    assert code == 0
    np.testing.assert_array_equal(Dataset(out).episode(0)["state"], truth()["state"][:12])


def test_joints_are_commanded_in_the_drafted_contract():
    """Where the action's names are the state's; sizes and rates are the dataset's."""
    names = ("shoulder.pos", "gripper.pos")
    columns = {
        "observation.images.top": Column((480, 640, 3), is_image=True),
        "observation.state": Column((2,), names=names),
        "action": Column((2,), names=names),
    }
    contract = Contract.from_text(
        draft(SimpleNamespace(where="so 100", columns=columns, rate_hz=30))
    )
    assert contract.rate_hz == 30
    assert contract.observations["top_image"].crop == (0, 80, 480, 480)
    (joints,) = contract.action.fields
    assert (joints.kind, joints.size, joints.state) == ("joint_position", 2, "state")
    assert contract.action.commands[0].names == ("shoulder", "gripper")
    matching = match(contract, columns)
    assert matching.action.elements == (("action", 0), ("action", 1))


def test_degrees_become_radians(run, tmp_path):
    """A stream's scale, and a recorded command's, bring foreign units to SI."""
    path = tmp_path / "scaled.yaml"
    joints = "field: position\n    names: [joint_6"
    path.write_text(
        CONTRACT.replace(joints, f"scale: [0.5]\n    {joints}").replace(
            "shape: [7]}", "shape: [7], scale: [1, 1, 1, 1, 1, 1, 0.25]}"
        )
    )
    assert run(INTEROP / "dataset_images", *SAME_ACTION, contract=path)[0] == 0
    found, given = Dataset(tmp_path / "out").episode(0), truth()
    np.testing.assert_allclose(found["joints"][:, 1:] * 2, given["state"][:12, :6], rtol=1e-6)
    np.testing.assert_allclose(found["action"][:, 6] * 4, given["action"][:12, 6], rtol=1e-6)
    np.testing.assert_array_equal(found["action"][:, :6], given["action"][:12, :6])


TARGET = "topic: /target, type: geometry_msgs/msg/PoseStamped, field: pose"
BY_FIELDS = f"""
  eef_pos: {{topic: /eef, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  eef_quat: {{topic: /eef, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
action:
  fields:
    - {{name: translation, kind: delta_position, state: eef_pos}}
    - {{name: rotation, kind: delta_axis_angle, state: eef_quat}}
    - {{name: gripper, kind: binary, open_value: 0, closed_value: 1}}
  record:
    - {{{TARGET}.position}}
    - {{{TARGET}.orientation}}
    - {{topic: /grip, type: std_msgs/msg/Float64MultiArray, shape: [1]}}
"""


def test_a_gripper_that_is_neither_open_nor_closed_is_refused(run, tmp_path):
    """The dataset's is 0 and 1, and nothing cuts what is told field by field; what it is told to
    do instead works.
    """
    path, observed = tmp_path / "by_fields.yaml", CONTRACT.partition("\naction:")[0]
    path.write_text(observed + BY_FIELDS)
    state = ["eef_pos=observation.state[0:3]", "eef_quat=observation.state[3:7]"]
    told = ["translation=action[0:3]", "rotation=action[3:6]", "gripper=action[6]"]
    maps = ["--map", *state, *(f"action.{one}" for one in told)]
    code, said, out = run(INTEROP / "dataset_images", *maps, contract=path)
    assert code == 2 and not out.exists()
    assert "gripper is 0 to 1, a binary is -1 open and +1 closed; make it a scalar, or" in said
    record = "record: {topic: /c, type: std_msgs/msg/Float64MultiArray, shape: [7]}"
    path.write_text(observed + BY_FIELDS.partition("record:")[0] + record)
    code, _, out = run(INTEROP / "dataset_images", *maps, contract=path)
    assert code == 0
    grips = Dataset(out).episode(0)["action"][:, 6]
    np.testing.assert_array_equal(grips, 2 * truth()["action"][:12, 6] - 1)


def test_next_state_derives_the_action(run, tmp_path):
    """The action column is not asked where the contract derives actions; the last frame goes."""
    path = tmp_path / "next.yaml"
    text = CONTRACT[: CONTRACT.index("action:")] + (
        "action:\n  fields:\n    - {name: arm, kind: joint_position, size: 7, state: joints}\n"
        "  record: next_state\n"
    )
    path.write_text(text)
    code, said, out = run(INTEROP / "dataset_images", contract=path)
    assert code == 0
    assert "the next state" in said
    found = Dataset(out).episode(1)
    assert len(found["action"]) == 6
    np.testing.assert_array_equal(
        found["action"], truth()["state"][13:19][:, [6, *range(6)]].astype(np.float32)
    )


def test_pictures_of_another_size_are_fitted(run, tmp_path):
    """Cropped and averaged as a camera's are."""
    path = tmp_path / "small.yaml"
    path.write_text(
        CONTRACT.replace("shape: [64, 64, 3]", "crop: [0, 0, 64, 32], shape: [32, 16, 3]")
    )
    code, said, out = run(INTEROP / "dataset_images", *SAME_ACTION, contract=path)
    assert code == 0
    assert "from 64x64x3" in said
    given = truth()["image"][0][:, :32].reshape(32, 2, 16, 2, 3).mean((1, 3))
    # Rounded once along each axis.
    assert np.abs(Dataset(out).episode(0)["front_image"][0] - given).max() <= 1


def broken(name):
    """A way to break the images dataset, and what is said of it."""

    def cut(root, file):
        path = root / file
        path.write_bytes(path.read_bytes()[:-200])

    def info(root, **changes):
        change_info(root, **changes)

    def lengths(root):
        import pyarrow as pa
        import pyarrow.parquet as parquet

        path = root / "meta/episodes/chunk-000/file-000.parquet"
        table = parquet.read_table(path)
        at = table.column_names.index("length")
        parquet.write_table(table.set_column(at, "length", pa.array([12, 8, 20])), path)

    def column(root, name, values):
        import pyarrow as pa
        import pyarrow.parquet as parquet

        path = root / "data/chunk-000/file-000.parquet"
        table = parquet.read_table(path)
        at = table.column_names.index(name)
        new = table.column(name).to_pylist()
        for place, value in values.items():
            new[place] = value
        new = pa.array(new, type=table.schema.field(name).type)
        parquet.write_table(table.set_column(at, name, new), path)

    ways = {
        "data_without_footer": (
            lambda root: cut(root, "data/chunk-000/file-000.parquet"),
            "file-000.parquet: has no footer: its writing was not ended; call dataset.finalize",
        ),
        "episodes_without_footer": (
            lambda root: cut(root, "meta/episodes/chunk-000/file-000.parquet"),
            "has no footer",
        ),
        "future": (
            lambda root: info(root, codebase_version="v4.0"),
            "has codebase_version v4.0, known are v3.0 and v2.1; update this package",
        ),
        "past": (lambda root: info(root, codebase_version="v1.6"), "LeRobot's own converters"),
        "frames_disagree": (
            lambda root: info(root, total_frames=40),
            "says total_frames 40, meta/episodes has 39; call dataset.finalize",
        ),
        "lengths_disagree": (lengths, "episode 1 has length 8, but rows 12 to 19"),
        "rate": (
            lambda root: info(root, fps=20),
            "recorded at 20 Hz, the contract says 10; write rate_hz: 20 in the contract, or take "
            "--every 2",
        ),
        "no_rate": (lambda root: info(root, fps="fast"), "fps is 'fast'"),
        "task": (
            lambda root: column(root, "task_index", dict.fromkeys(range(39), 5)),
            "has task_index 5",
        ),
        "no_json": (
            lambda root: (root / "meta/info.json").write_text("{"),
            "is cut off, or no JSON",
        ),
        "data_missing": (
            lambda root: (root / "data/chunk-000/file-000.parquet").unlink(),
            "is missing; get the dataset again",
        ),
        "outside": (
            lambda root: info(root, data_path="../{chunk_index}{file_index}.parquet"),
            "names the file ../00.parquet",
        ),
        "pictures": (
            lambda root: column(
                root,
                "observation.images.front",
                dict.fromkeys(range(39), {"bytes": b"no picture", "path": ""}),
            ),
            "front_image: not a whole jpeg or png",
        ),
        "nan": (
            lambda root: column(root, "action", dict.fromkeys(range(39), [float("nan")] * 7)),
            "action is not finite",
        ),
        "rows": (
            lambda root: column(root, "episode_index", dict.fromkeys((0, 12, 19), 9)),
            "episode 0 has 12 frames by meta/episodes",
        ),
        "stamps": (
            lambda root: column(root, "timestamp", dict.fromkeys((5, 15, 25), 0.123)),
            "frame 5 of episode 0 is at 0.1230 s, fps 10 says 0.5000 s; correct fps",
        ),
    }
    return ways[name] if name else list(ways)


@pytest.mark.parametrize("name", broken(""))
def test_what_is_broken_is_refused_by_name(run, tmp_path, name):
    """In one line with the cure; nothing is left behind."""
    root = copied(tmp_path)
    hurt, words = broken(name)
    hurt(root)
    code, said, out = run(root, *SAME_ACTION)
    assert code == 2, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not out.exists()


def test_one_damaged_episode_is_rejected_alone(run, tmp_path):
    """The others are kept."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root = copied(tmp_path)
    path = root / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    stamps = table.column("timestamp").to_pylist()
    stamps[14] += 0.05
    at = table.column_names.index("timestamp")
    parquet.write_table(table.set_column(at, "timestamp", pa.array(stamps, pa.float32())), path)
    code, said, out = run(root, *SAME_ACTION)
    assert code == 0
    assert "rejected  episode_1: frame 2 of episode 1 is at 0.2500 s" in said
    assert [episode.frames for episode in Dataset(out).episodes] == [12, 10, 10]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "front_image",
            "wrist_image",
            "no camera is called 'wrist_image'; there is observation.images.front; say which it "
            "is: --map wrist_image=observation.images.front",
        ),
        ("names: [gripper]", "names: [hand]", "gripper is not there: no hand.pos among joint_0"),
        ("rate_hz: 10", "rate_hz: 20", "recorded at 10 Hz, the contract says 20; write rate_hz"),
    ],
)
def test_what_the_contract_calls_otherwise_is_named(run, contract, old, new, words):
    """A camera, a joint, the rate: with what to say of it, which then works."""
    contract.write_text(CONTRACT.replace(old, new))
    code, said, out = run(INTEROP / "dataset_images", *SAME_ACTION)
    assert code == 2
    assert words in said
    assert not out.exists()
    if "wrist" in new:
        given = "wrist_image=observation.images.front"
        assert run(INTEROP / "dataset_images", *SAME_ACTION, "--map", given)[0] == 0


def test_actions_of_other_names_are_not_guessed(run):
    """x, y, z may be places or ways: the user says."""
    code, said, _ = run(INTEROP / "dataset_images")
    assert code == 2
    assert "its action is x, y, z, rx, ry, rz, gripper; the contract's translation.delta_x" in said
    assert "--map action=action" in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("action=actoin", "there is no column 'actoin'; did you mean 'action'?"),
        ("joint=action", "did you mean 'joints'?"),
        ("joints=observation.state[0:9]", "joints has 7; observation.state has elements 0 to 7"),
        ("joints=observation.images.front", "observation.images.front is a picture"),
        ("joints", "write KEY=COLUMN"),
        ("joints=observation.state[0:4]:euler", "'euler' is no way to write a rotation"),
    ],
)
def test_a_wrong_map_is_refused(run, given, words):
    """By what is wrong with it."""
    code, said, out = run(INTEROP / "dataset_images", *SAME_ACTION, "--map", given)
    assert code == 2
    assert words in said
    assert not out.exists()


def test_a_video_that_lacks_pictures_is_refused(run, tmp_path):
    """With the episode and the time; episodes of the other file are kept."""
    import av

    root = copied(tmp_path, "dataset_video")
    path = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    with av.open(str(path)) as source:
        pictures = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    path.unlink()
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number, picture in enumerate(pictures):
            if number != 14:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = number
                target.mux(stream.encode(frame))
        target.mux(stream.encode())
    code, said, out = run(root, *SAME_ACTION)
    assert code == 0
    what = "observation.images.front of episode 1 lacks the picture at 1.4000 s"
    assert f"rejected  episode_1: {what}" in said
    assert "the nearest is at 1.3000 s" in said or "the nearest is at 1.5000 s" in said
    assert [episode.frames for episode in Dataset(out).episodes] == [12, 10, 10]


def test_a_video_that_is_none_is_refused(run, tmp_path):
    """Cut off, missing, or something else."""
    root = copied(tmp_path, "dataset_video")
    folder = root / "videos/observation.images.front/chunk-000"
    (folder / "file-000.mp4").write_bytes(b"no video")
    (folder / "file-001.mp4").unlink()
    code, said, out = run(root, *SAME_ACTION)
    assert code == 2
    assert "cannot be decoded" in said
    assert not out.exists()


def test_without_the_extra_one_line_says_so(run, monkeypatch):
    """What is missing, and how to get it."""
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, said, _ = run(INTEROP / "dataset_images")
    assert code == 2
    assert "pyarrow is not installed; pip install 'diffusion_policy_ros[lerobot]'" in said


def test_flipped_bytes_are_no_traceback(run, tmp_path):
    """Whatever is damaged: refused, or what can be read is imported; never half a dataset."""
    random = np.random.default_rng(0)
    for trial in range(16):
        name = ("dataset_images", "dataset_video")[trial % 2]
        root = copied(tmp_path / str(trial), name)
        files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "stats.json")
        hurt = files[random.integers(len(files))]
        data = bytearray(hurt.read_bytes())
        for place in random.integers(0, len(data), 4):
            data[place] = random.integers(256)
        hurt.write_bytes(data)
        code, said, out = run(root, *SAME_ACTION, out=f"out_{trial}")
        assert code in (0, 2), said
        assert out.exists() == (code == 0)
