"""Windows of a dataset, and datasets that are damaged."""

import os
import shutil
import time
import timeit
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from made_bags import CONTRACT, NEXT_STATE, demonstration, make_bag

from diffusion_policy_ros.data.convert import convert
from diffusion_policy_ros.data.dataset import QUANTILES, Dataset, Index, WindowDataset
from diffusion_policy_ros.data.npy import Column, checked_npy
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.history import Frame, History


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of episodes of 12, 3 and 7 frames in three shards."""
    folder = tmp_path_factory.mktemp("windows")
    for number, frames in enumerate((12, 3, 7)):
        make_bag(folder / f"bags/{number}", seed=number, frames=frames)
    convert([folder / "bags"], CONTRACT, folder / "data")
    return folder / "data"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 20))
def test_windows_worked_out_frame_by_frame(data, n_obs_steps, more):
    """Every window equals the one that is put together by hand, padding and mask included."""
    horizon = n_obs_steps + more
    windows = WindowDataset(data, n_obs_steps, horizon)
    assert len(windows) == 22
    batch = windows.batch(range(22))
    dataset, window = Dataset(data), 0
    for number in range(3):
        episode = dataset.episode(number)
        frames = len(episode["action"])
        for t in range(frames):
            for i in range(n_obs_steps):
                source = min(max(t - n_obs_steps + 1 + i, 0), frames - 1)
                for key in CONTRACT.observations:
                    assert np.array_equal(batch[key][window, i], episode[key][source])
            for i in range(horizon):
                wanted = t - n_obs_steps + 1 + i
                source = min(max(wanted, 0), frames - 1)
                assert np.array_equal(batch["action"][window, i], episode["action"][source])
                assert batch["action_is_pad"][window, i] == (wanted != source)
            window += 1


def test_windows_have_the_shapes_and_types_of_the_policy(data):
    """Images are bytes, vectors and actions float32, the mask bool."""
    batch = WindowDataset(data, 2, 16).batch([5, 0, 21])
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "camera": ((3, 2, 4, 6, 3), "uint8"),
        "position": ((3, 2, 3), "float32"),
        "orientation": ((3, 2, 4), "float32"),
        "action": ((3, 16, 7), "float32"),
        "action_is_pad": ((3, 16), "bool"),
    }


@pytest.mark.parametrize("n_obs_steps", [1, 2, 3])
def test_a_window_is_what_the_history_gives_at_that_frame(tmp_path, n_obs_steps):
    """Training and running see the same window, repeated first frames included."""
    make_bag(tmp_path / "bag", NEXT_STATE, frames=15)
    convert([tmp_path / "bag"], NEXT_STATE, tmp_path / "data")
    windows = WindowDataset(tmp_path / "data", n_obs_steps, 8)
    history, seen = History(NEXT_STATE, n_obs_steps), []
    for topic, ns, msg in demonstration(frames=15):
        if topic not in NEXT_STATE.topics:
            continue
        for event in history.push(topic, msg, ns):
            assert isinstance(event, Frame)
            seen.append(history.window())
    assert len(windows) == 14  # the last frame has no next state
    for i in range(len(windows)):
        batch = windows.batch([i])
        for key, wanted in seen[i].items():
            assert np.array_equal(batch[key][0], wanted)


def test_a_choice_of_episodes_draws_from_these_only(data):
    """Training and validation are split by episode."""
    windows = WindowDataset(data, 2, 4, episodes=[2, 0])
    assert [e.source for e in windows.episodes] == ["2", "0"]
    assert len(windows) == 19
    assert windows.batch(np.arange(19))["position"][:, -1, 1].tolist() == [2.0] * 7 + [0.0] * 12
    assert windows.episode_of.tolist() == [0] * 7 + [1] * 12


@pytest.mark.parametrize("episodes", [[], [3], [-1]])
def test_a_choice_that_is_not_there_is_refused(data, episodes):
    """The message says which numbers there are."""
    with pytest.raises(UserError, match="choose from 0 to 2"):
        WindowDataset(data, 2, 4, episodes=episodes)


@pytest.mark.parametrize(("n_obs_steps", "horizon"), [(0, 4), (3, 2)])
def test_windows_that_cannot_be_are_refused(data, n_obs_steps, horizon):
    """To is at least 1, and the horizon reaches the newest frame."""
    with pytest.raises(UserError, match="use 1 <= n_obs_steps <= horizon"):
        WindowDataset(data, n_obs_steps, horizon)


def test_statistics_are_those_of_the_chosen_frames(data):
    """Vectors exactly, images by channel."""
    windows = WindowDataset(data, 1, 1, episodes=[0, 2])
    rows = [Dataset(data).episode(n) for n in (0, 2)]
    found = windows.statistics()
    assert list(found) == [*CONTRACT.observations, "action"]
    for key in found:
        values = np.concatenate([r[key] for r in rows]).astype(np.float64)
        values = values.reshape(-1, values.shape[-1])
        for name in ("min", "max", "mean", "std"):
            assert found[key][name] == pytest.approx(getattr(values, name)(0), abs=1e-4)
        if key != "camera":
            assert found[key]["quantiles"] == pytest.approx(
                np.quantile(values, QUANTILES, 0), abs=1e-6
            )
        else:
            assert found[key]["quantiles"] == pytest.approx(
                np.quantile(values, QUANTILES, 0), abs=2.0
            )


def test_windows_of_a_batch_are_drawn_at_once(data):
    """Many take little longer than one; benchmark/convert.py has the windows a second."""
    windows = WindowDataset(data, 2, 16)
    chosen = np.random.default_rng(0).integers(0, len(windows), 256)

    def seconds(indices):
        """Of processor time, the best of some."""

        def draw():
            windows.batch(indices)

        return min(timeit.repeat(draw, timer=time.process_time, number=10, repeat=5))

    assert seconds(chosen) < 256 / 10 * seconds(chosen[:1])


# Damage


def damaged(data, tmp_path, name, how):
    """A copy of the dataset with one file treated."""
    import shutil

    shutil.copytree(data, tmp_path / "data")
    how(next((tmp_path / "data").rglob(name)))
    return tmp_path / "data"


def replace(old, new):
    """A treatment of text."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


def shorten(by):
    """A treatment that cuts the end off."""
    return lambda path: os.truncate(path, path.stat().st_size - by)


@pytest.mark.parametrize(
    ("name", "how", "match"),
    [
        ("dataset.yaml", lambda p: p.unlink(), "is no dataset; make one"),
        ("dataset.yaml", replace("format: 2", "format: 3"), "has format 3, known is 2"),
        ("dataset.yaml", replace("format: 2", "fromat: 2"), "did you mean 'format'"),
        ("dataset.yaml", replace("episodes:", "\tepisodes:"), "tab"),
        (
            "dataset.yaml",
            replace('"frames": 7', '"frames": 8'),
            "the episode of 2 is not in its shard",
        ),
        ("dataset.yaml", replace('"frames": 7', '"frames": "x"'), "expected a whole number"),
        (
            "dataset.yaml",
            replace("rate_hz: 20", "rate_hz: 10"),
            "meaning of its contract was edited",
        ),
        ("camera.npy", lambda p: p.unlink(), "the file is missing; copy the dataset again"),
        ("camera.npy", shorten(1), "bytes instead of"),
        ("camera.npy", shorten(10**9), "the file is no plain .npy array"),
        (
            "position.npy",
            lambda p: np.save(p, np.zeros((12, 4), np.float32)),
            "holds float32 .*, 4",
        ),
        ("position.npy", lambda p: np.save(p, np.zeros((12, 3))), "holds float64"),
        ("action.npy", lambda p: np.save(p, np.array([{}])), "the file is no plain .npy array"),
        (
            "action.npy",
            lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{"),
            "no plain .npy array",
        ),
    ],
)
def test_a_damaged_dataset_is_refused_in_one_line(data, tmp_path, name, how, match):
    """What is wrong, in which file, and the cure; never an unpickled object."""
    if how.__qualname__.startswith("shorten") and match.startswith("the file"):

        def how(path):
            os.truncate(path, 5)

    with pytest.raises(UserError, match=match) as error:
        Dataset(damaged(data, tmp_path, name, how))
    assert all(str(tmp_path) in line for line in str(error.value).splitlines())


def test_arrays_are_plain_npy_files(data):
    """Numpy itself reads every array without pickle."""
    for path in data.rglob("*.npy"):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        assert len(found) in (3, 7, 12)


def test_an_empty_index_is_told_from_an_empty_contract(tmp_path):
    """The cure names the index's own keys."""
    (tmp_path / "dataset.yaml").write_text("")
    with pytest.raises(UserError, match="the file is empty; write its keys: format, contract"):
        Index.load(tmp_path)


def test_an_index_that_was_cut_off_at_a_line_s_end_is_refused(data, tmp_path):
    """Its episodes are counted; one of an older version has no count, and is read."""
    folder = tmp_path / "copy"
    shutil.copytree(data, folder)
    path = folder / "dataset.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    count = len(Dataset(data).episodes)
    with pytest.raises(UserError, match=f"damaged: {count - 1} of its {count} episodes are there"):
        Dataset(folder)
    path.write_text("".join(line for line in lines if not line.startswith("# ")))
    assert len(Dataset(folder).episodes) == count


def test_a_file_that_may_not_be_read_is_not_called_damaged(data, monkeypatch):
    """The cure is another one."""

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    (stamps,) = sorted((data / "shards").glob("*/stamp_ns.npy"))[:1]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        with pytest.raises(UserError, match="change its permissions"):
            checked_npy(stamps, Column("<i8", ()), 1)


def test_the_index_reads_back_whatever_the_contract_says(data, tmp_path):
    """Comments, quotes and empty lines of a contract survive."""
    text = CONTRACT.text + '\n\n# a comment: "quoted" \u00e4 #\n'
    index = Index(2, text, CONTRACT.hash, {"s": 3}, ())
    index.save(tmp_path)
    assert Index.load(tmp_path) == index


def test_what_is_seen_of_windows_is_drawn_and_counted(data, monkeypatch):
    """Batches and statistics are of what `see` makes of vectors and actions, padding aside."""

    def see(window):
        newest = window["position"][:, 1:2]
        return {**window, "position": window["position"] - newest, "action": window["action"] * 2}

    monkeypatch.setattr("diffusion_policy_ros.data.dataset.SEEN_AT_ONCE", 5)
    plain, seen = WindowDataset(data, 2, 4), WindowDataset(data, 2, 4, see=see)
    batch, told = plain.batch(range(22)), seen.batch(range(22))
    assert np.array_equal(told["action"], 2 * batch["action"])
    assert np.array_equal(told["camera"], batch["camera"])
    assert not told["position"][:, 1].any()
    found = seen.statistics()
    assert np.array_equal(found["camera"]["min"], plain.statistics()["camera"]["min"])
    for key, values in (
        ("position", told["position"].reshape(-1, 3)),
        ("action", told["action"][~told["action_is_pad"]]),
    ):
        exact = values.astype(np.float64)
        for name in ("min", "max", "mean", "std"):
            assert found[key][name] == pytest.approx(getattr(exact, name)(0), abs=1e-6)
        quantiles = np.quantile(exact, QUANTILES, axis=0)
        assert found[key]["quantiles"] == pytest.approx(quantiles, abs=1e-6)
