"""robomimic's files become ordinary datasets; files that do not fit are refused by name."""

import shutil
from copy import deepcopy

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs h5py: pip install -e '.[robomimic]'")

import h5py  # noqa: E402
from made_robomimic import ENV_ARGS, SCALE, demonstration, write  # noqa: E402

from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset, WindowDataset  # noqa: E402
from diffusion_policy_ros.data.formats.robomimic import import_robomimic  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402

CAN = Contract.load("robomimic_can")
ABSOLUTE = Contract.from_text(
    CAN.text.replace("kind: delta_", "kind: ")
    .replace(", deltas_from: measured", "")
    .replace(f"scale: {[*SCALE, 1.0]}", "scale: [1.0]")
    .replace("limits: {translation: 0.09, rotation: 0.9}", "limits: {}")
)


@pytest.fixture(scope="module")
def demos():
    """Three demonstrations; the tenth comes after the second."""
    return {f"demo_{n}": demonstration(n, frames) for n, frames in ((10, 5), (2, 4), (0, 6))}


@pytest.fixture
def file(tmp_path, demos):
    """They, as a file with masks."""
    masks = {"train": ["demo_0", "demo_10"], "valid": ["demo_2"]}
    return write(tmp_path / "can.hdf5", demos, masks=masks)


def test_what_stands_in_the_file_stands_in_the_dataset(tmp_path, file, demos):
    """Frame by frame and in the file's order, with actions in m and rad."""
    report = import_robomimic(file, CAN, tmp_path / "out")
    assert (report.episodes, report.frames) == (3, 15)
    dataset = Dataset(tmp_path / "out")
    assert dataset.contract.hash == CAN.hash
    for number, name in enumerate(("demo_0", "demo_2", "demo_10")):
        found, demo = dataset.episode(number), demos[name]
        assert dataset.episodes[number].source == name
        assert dataset.episodes[number].success is True
        np.testing.assert_allclose(found["action"], demo["actions"] * [*SCALE, 1], rtol=1e-6)
        assert np.diff(found["stamp_ns"]).tolist() == [50_000_000] * (len(demo["actions"]) - 1)
        for key in CAN.observations:
            expected = demo["obs"][key]
            wanted = expected if expected.dtype == np.uint8 else expected.astype(np.float32)
            np.testing.assert_array_equal(found[key], wanted)
    assert WindowDataset(tmp_path / "out", 2, 16).batch([0])["action"].shape == (1, 16, 7)


def test_absolute_actions_stay_as_they_are(tmp_path, demos):
    """A contract with absolute kinds takes files whose controller was absolute, and no others."""
    settings = deepcopy(ENV_ARGS)
    settings["env_kwargs"]["controller_configs"]["control_delta"] = False
    path = write(tmp_path / "abs.hdf5", demos, settings)
    import_robomimic(path, ABSOLUTE, tmp_path / "out")
    found = Dataset(tmp_path / "out").episode(0)["action"]
    np.testing.assert_allclose(found, demos["demo_0"]["actions"], rtol=1e-6)
    with pytest.raises(UserError, match="actions are absolute.*use the kinds position"):
        import_robomimic(path, CAN, tmp_path / "other")


def test_a_shaped_reward_on_the_way_is_no_success(tmp_path, demos):
    """Files called dense reward coming near; 1 and more is the task."""
    settings = deepcopy(ENV_ARGS)
    settings["env_kwargs"]["reward_shaping"] = True
    one = demos["demo_0"]
    frames = len(one["actions"])
    shaped = {
        f"demo_{number}": {**one, "actions": one["actions"] / (1 + number), "rewards": rewards}
        for number, rewards in enumerate(
            (np.linspace(0.02, 0.56, frames), np.linspace(0.02, 1.0 - 1e-9, frames))
        )
    }
    import_robomimic(write(tmp_path / "dense.hdf5", shaped, settings), CAN, tmp_path / "out")
    assert [episode.success for episode in Dataset(tmp_path / "out").episodes] == [False, True]


@pytest.mark.parametrize("by_hand", [False, True])
def test_settings_of_robosuite_from_1_5_on(tmp_path, demos, by_hand):
    """A controller a part of the body: absolute is not taken for deltas, nor another unit."""
    part = {"type": "OSC_POSE", "input_type": "absolute", "output_max": SCALE}
    body = {"right": part}
    controllers = {"type": "BASIC", "body_parts": {"arms": body} if by_hand else body}
    settings = deepcopy(ENV_ARGS)
    settings["env_kwargs"]["controller_configs"] = controllers
    path = write(tmp_path / "new.hdf5", demos, settings)
    with pytest.raises(UserError, match="actions are absolute.*use the kinds position"):
        import_robomimic(path, CAN, tmp_path / "out")
    part |= {"input_type": "delta", "output_max": [0.1] * 6}
    settings["env_kwargs"]["controller_configs"] = controllers
    with pytest.raises(UserError, match="one unit of an action is .0.1"):
        import_robomimic(write(tmp_path / "unit.hdf5", demos, settings), CAN, tmp_path / "out")
    part["output_max"] = SCALE
    import_robomimic(write(tmp_path / "fit.hdf5", demos, settings), CAN, tmp_path / "out")


def test_a_file_that_is_written_is_locked(tmp_path, file, monkeypatch):
    """Not damaged: the cure is to wait."""
    import h5py

    def refuse(*_):
        raise BlockingIOError(11, "unable to lock file")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(UserError, match="is locked: another process writes it; wait until"):
        import_robomimic(file, CAN, tmp_path / "out")


def test_the_same_again_adds_nothing(tmp_path, file, demos):
    """A second import leaves the dataset alone; another file's demonstrations are added."""
    import_robomimic(file, CAN, tmp_path / "out")
    before = (tmp_path / "out" / "dataset.yaml").read_bytes()
    again = import_robomimic(file, CAN, tmp_path / "out")
    assert [report.status for report in again.bags] == ["present"] * 3
    assert (tmp_path / "out" / "dataset.yaml").read_bytes() == before
    more = {**demos, "demo_3": demonstration(3, 7)}
    added = import_robomimic(write(tmp_path / "more.hdf5", more), CAN, tmp_path / "out")
    assert (added.episodes, added.frames) == (4, 22)
    np.testing.assert_array_equal(
        Dataset(tmp_path / "out").episode(3)["agentview_image"],
        more["demo_3"]["obs"]["agentview_image"],
    )


def test_a_mask_chooses(tmp_path, file):
    """Only the named part is imported; an unknown one suggests the near one."""
    report = import_robomimic(file, CAN, tmp_path / "out", mask="train")
    assert [r.bag.rpartition("/")[2] for r in report.bags] == ["demo_0", "demo_10"]
    with pytest.raises(UserError, match="no mask 'trian'; did you mean 'train'"):
        import_robomimic(file, CAN, tmp_path / "out", mask="trian")


def test_another_contract_is_refused(tmp_path, file):
    """A dataset has one robot."""
    import_robomimic(file, CAN, tmp_path / "out")
    square = Contract.load("robomimic_square")
    with pytest.raises(UserError, match="made with another contract; they differ in name"):
        import_robomimic(file, square, tmp_path / "out")


def test_what_is_not_finite_is_rejected_alone(tmp_path, demos):
    """The other demonstrations are kept."""
    broken = deepcopy(demos)
    broken["demo_2"]["obs"]["robot0_eef_pos"][1, 2] = np.nan
    report = import_robomimic(write(tmp_path / "nan.hdf5", broken), CAN, tmp_path / "out")
    assert [r.status for r in report.bags] == ["kept", "rejected", "kept"]
    assert "robot0_eef_pos is not finite" in report.bags[1].reason


def changed(demos, key, values):
    """The demonstrations with one array of demo_2 replaced, or taken out."""
    found = {name: {**demo, "obs": dict(demo["obs"])} for name, demo in demos.items()}
    if values is None:
        del found["demo_2"]["obs"][key]
    elif key == "actions":
        found["demo_2"]["actions"] = values
    else:
        found["demo_2"]["obs"][key] = values
    return found


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("robot0_eef_pos", None, r"demo_2: has no observation 'robot0_eef_pos'; did you mean"),
        ("robot0_eef_quat", np.zeros((4, 3)), r"robot0_eef_quat is float64 \(3,\), .*\(4,\)"),
        ("robot0_eef_quat", np.zeros((3, 4)), "robot0_eef_quat has 3 frames, actions 4"),
        ("agentview_image", np.zeros((4, 3, 84, 84), np.uint8), r"uint8 \(3, 84, 84\)"),
        ("agentview_image", np.zeros((4, 84, 84, 3)), "is float64 .* says uint8"),
        ("agentview_image", np.zeros((4, 84, 84, 3), np.uint16), "is uint16 .* says uint8"),
        ("agentview_image", np.zeros((), np.uint8), "has no observation 'agentview_image'"),
        ("actions", np.zeros((4, 10)), r"an action is \(10,\), the contract says \(7,\)"),
        ("actions", np.zeros((0, 7)), "has no actions"),
        ("actions", np.array([[b"x"] * 7] * 4), "has no actions"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, demos, key, values, words):
    """With the demonstration and the cure; no folder is left."""
    path = write(tmp_path / "bad.hdf5", changed(demos, key, values))
    with pytest.raises(UserError, match=words):
        import_robomimic(path, CAN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_mistakes_come_at_once(tmp_path, demos, capsys):
    """One line each, through the command line, with exit code 2."""
    settings = deepcopy(ENV_ARGS)
    settings["env_kwargs"]["control_freq"] = 10
    settings["env_kwargs"]["controller_configs"]["output_max"] = [0.1] * 6
    path = write(tmp_path / "bad.hdf5", changed(demos, "robot0_eef_pos", None), settings)
    words = ["import", "robomimic", str(path), "--contract", "robomimic_can"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert "recorded at 10 Hz, the contract says 20; write rate_hz: 10" in lines[0]
    assert "one unit of an action is [0.1" in lines[1]


@pytest.mark.parametrize("made", ["missing", "text", "empty", "no_data", "data_is_an_array"])
def test_what_is_no_such_file_is_one_line(tmp_path, made):
    """Whatever is given instead."""
    path = tmp_path / made
    if made == "text":
        path.write_text("no HDF5")
    elif made == "empty":
        path.touch()
    elif made != "missing":
        with h5py.File(path, "w") as file:
            if made == "data_is_an_array":
                file["data"] = np.zeros(3)
    with pytest.raises(UserError) as caught:
        import_robomimic(path, CAN, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path, file, share):
    """Wherever it was cut: nothing is imported."""
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError):
        import_robomimic(file, CAN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"env_kwargs": 3}', "null"])
def test_odd_settings_are_no_obstacle(tmp_path, demos, text):
    """The simulator's settings are a note: without them nothing is compared."""
    path = write(tmp_path / "odd.hdf5", demos)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = text
    assert import_robomimic(path, CAN, tmp_path / "out").episodes == 3


def test_flipped_bytes_never_pass_for_a_bug(tmp_path, file):
    """A damaged file is refused, or its readable values imported: no traceback, nothing half."""
    data, random = file.read_bytes(), np.random.default_rng(0)
    for trial in range(20):
        hurt = bytearray(data)
        for place in random.integers(0, 12_000, 20):
            hurt[place] = random.integers(256)
        file.write_bytes(hurt)
        out = tmp_path / f"out_{trial}"
        try:
            import_robomimic(file, CAN, out)
            assert Dataset(out).episodes
        except UserError:
            assert not out.exists()
        shutil.rmtree(out, ignore_errors=True)


def test_the_command_tells_what_it_did(tmp_path, file, capsys):
    """A count of the demonstrations, and how to go on."""
    words = ["import", "robomimic", str(file), "--contract", "robomimic_can", "--mask", "valid"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 kept; ") and "holds 1 episodes, 4 frames" in out
    assert "next: diffusion-policy train" in out and "demo_2" not in out
    assert main([*words[:-2], "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("2 kept, 1 present; ")
