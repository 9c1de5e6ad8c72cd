"""Pictures kept as video: the same pixels however they are read, near to what was seen."""

import io
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from made_bags import CONTRACT, MS, PERIOD, START, TEXT, make_bag, pose, write_bag
from PIL import Image
from test_store import COMPRESSED, as_file, compressed, contents, recording

av = pytest.importorskip("av", reason="needs av: pip install -e '.[video]'")

from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.compaction import compact, merge  # noqa: E402
from diffusion_policy_ros.data.convert import Options, convert  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset, Index, WindowDataset  # noqa: E402
from diffusion_policy_ros.data.pictures import encoded, storage  # noqa: E402
from diffusion_policy_ros.data.store import adding  # noqa: E402
from diffusion_policy_ros.data.video import CLIP, clip_of, pictures_of  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402

SIZE = (61, 87)
LARGER = TEXT.replace("shape: [4, 6, 3]", f"shape: [{SIZE[0]}, {SIZE[1]}, 3]")
FRAMES = (11, 6, 9)


def seen(frames, seed=0, size=SIZE, noise=1.5):
    """What a camera sees that moves past a wall in some colours, with the noise that it has."""
    rng = np.random.default_rng(seed)
    height, width = size
    wall = Image.fromarray(rng.integers(30, 220, (6, 9, 3), dtype=np.uint8))
    wall = np.asarray(wall.resize((width + frames, height), Image.Resampling.BICUBIC), float)
    moved = np.stack([wall[:, f : f + width] for f in range(frames)])
    return np.clip(np.rint(moved + rng.normal(0, noise, moved.shape)), 0, 255).astype(np.uint8)


def larger(frames, seed):
    """A demonstration before that wall."""
    return recording(frames, seed, camera=seen(frames, seed))


def psnr(found, wanted):
    """Peak signal to noise ratio, dB."""
    return 10 * np.log10(255**2 / np.mean((found.astype(float) - wanted) ** 2))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three recordings, none of whole clips."""
    folder = tmp_path_factory.mktemp("video") / "data"
    with adding(folder, Contract.from_text(LARGER), "video") as new:
        for seed, frames in enumerate(FRAMES):
            assert new.add(larger(frames, seed)).status == "kept"
    return folder


@pytest.fixture(scope="module")
def decoded(dataset):
    """All its pictures, each clip by itself, from the first to the last."""
    column = Dataset(dataset).rows["camera"]
    clips = [clip for clip in map(column.kept, range(sum(FRAMES))) if clip]
    return np.concatenate([np.stack(list(pictures_of(clip))) for clip in clips])


def test_it_is_smaller_than_jpeg_and_near_to_what_was_seen(dataset, decoded):
    """Within some steps; odd sizes, too."""
    wanted = np.concatenate([seen(frames, seed) for seed, frames in enumerate(FRAMES)])
    assert decoded.shape == wanted.shape
    assert all(psnr(*pair) > 36 for pair in zip(decoded, wanted, strict=True))
    (path,) = dataset.glob("shards/*/camera.video")
    assert path.stat().st_size < 0.6 * sum(len(encoded(p, "jpeg")) for p in wanted)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    frames=st.integers(1, CLIP),
    seed=st.integers(0, 9),
)
def test_any_size_and_number_of_pictures_makes_a_clip(size, frames, seed):
    """As many come out, of the same size; the same bytes each time."""
    given_ones = seen(frames, seed, size)
    clip = clip_of(given_ones)
    found = np.stack(list(pictures_of(clip)))
    assert found.shape == given_ones.shape
    assert np.abs(found.astype(int) - given_ones).mean() < 8
    assert clip == clip_of(list(given_ones))


@settings(max_examples=40, deadline=None)
@given(
    takes=st.lists(
        st.lists(st.integers(0, sum(FRAMES) - 1), min_size=1, max_size=9), min_size=1, max_size=6
    ),
    readers=st.integers(1, 3),
)
def test_a_picture_is_the_same_whatever_was_read_before_it(dataset, decoded, takes, readers):
    """In any order, twice, across recordings, by one reader or several at the same time."""
    column = Dataset(dataset).rows["camera"]
    with ThreadPoolExecutor(readers) as pool:
        for rows, found in zip(takes, pool.map(column.take, map(np.array, takes)), strict=True):
            assert np.array_equal(found, decoded[rows])


def test_windows_are_of_their_episodes_alone(dataset, decoded):
    """As those of any other dataset."""
    windows = WindowDataset(dataset, 3, 4)
    found = windows.batch(np.arange(len(windows)))["camera"]
    starts, rows = np.cumsum([0, *FRAMES[:-1]]), np.arange(sum(FRAMES))
    firsts = np.repeat(starts, FRAMES)
    wanted = np.maximum(rows[:, None] + np.arange(-2, 1), firsts[:, None])
    assert np.array_equal(found, decoded[wanted])


def test_a_batch_decodes_each_clip_once(dataset, monkeypatch):
    """Whatever the order of its windows."""
    begun = []

    def counted(clip):
        begun.append(clip)
        return pictures_of(clip)

    monkeypatch.setattr("diffusion_policy_ros.data.video.pictures_of", counted)
    windows = WindowDataset(dataset, 2, 4)
    windows.batch(np.random.default_rng(0).permutation(len(windows)))
    assert len(begun) == sum(-(-frames // CLIP) for frames in FRAMES)


def test_pictures_that_are_given_in_one_place_are_kept_apart(tmp_path):
    """A reader of other formats may have but one array, which it fills anew each time."""
    pictures = seen(6)

    def filled():
        place = np.empty_like(pictures[0])
        for picture in pictures:
            place[:] = picture
            yield place

    for name, camera in (("one", pictures), ("other", filled())):
        with adding(tmp_path / name, Contract.from_text(LARGER), "video") as new:
            new.add(recording(6, camera=camera))
    one, other = (Dataset(tmp_path / name).episode(0)["camera"] for name in ("one", "other"))
    assert np.array_equal(one, other)


def test_of_a_clip_that_was_cut_off_no_picture_is_made_up(dataset):
    """Wherever: the decoder would guess what is missing, of a byte at the end without a word."""
    clip = Dataset(dataset).rows["camera"].kept(0)
    assert len(list(pictures_of(clip))) == CLIP
    for length in range(len(clip)):
        assert not list(pictures_of(clip[:length]))


def in_stretches(folder, out, stretches):
    """The dataset with other episodes of its rows: (first, frames) each."""
    index = Index.load(folder)
    one = index.episodes[0]
    lines = [
        replace(one, source=f"{n}", hash=f"{n:016d}", start=first, frames=frames)
        for n, (first, frames) in enumerate(stretches)
    ]
    out.mkdir()
    (out / "shards").symlink_to(folder / "shards")
    replace(index, episodes=tuple(lines)).save(out)
    return Dataset(out)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stretches=st.lists(
        st.integers(0, sum(FRAMES) - 1).flatmap(
            lambda first: st.tuples(st.just(first), st.integers(1, sum(FRAMES) - first))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_merge_keeps_clips_as_they_are_wherever_episodes_begin(
    dataset, decoded, tmp_path_factory, stretches
):
    """Pictures are the same bits, vectors stay beside them, and no clip is encoded anew."""
    folder = tmp_path_factory.mktemp("merged")
    source = in_stretches(dataset, folder / "source", stretches)
    merge([folder / "source"], folder / "out")
    merged = Dataset(folder / "out")
    clips = {clip for clip in map(source.rows["camera"].kept, range(sum(FRAMES))) if clip}
    rows = sum(Index.load(folder / "out").shards.values())
    kept = {clip for clip in map(merged.rows["camera"].kept, range(rows)) if clip}
    assert kept <= clips
    for number, (first, frames) in enumerate(stretches):
        wanted, found = source.episode(number), merged.episode(number)
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
        assert np.array_equal(found["camera"], decoded[first : first + frames])


@pytest.mark.parametrize(("images", "file"), [("png", "camera.images"), ("raw", "camera.npy")])
def test_a_video_becomes_what_else_is_asked_for(dataset, decoded, tmp_path, images, file):
    """From a row in the midst of a clip on; nothing more is lost, and no row comes along."""
    in_stretches(dataset, tmp_path / "source", [(6, 4), (13, 9)])
    merge([tmp_path / "source"], tmp_path / "out", images=images)
    assert len(list(tmp_path.glob(f"out/shards/*/{file}"))) == 1
    assert sum(Index.load(tmp_path / "out").shards.values()) == 13
    assert np.array_equal(Dataset(tmp_path / "out").episode(0)["camera"], decoded[6:10])
    assert np.array_equal(Dataset(tmp_path / "out").episode(1)["camera"], decoded[13:22])


@pytest.mark.parametrize("images", ["raw", "jpeg", "png"])
def test_what_was_kept_otherwise_becomes_video(tmp_path, images):
    """Just as if the pictures had come so; raw and png ones as if they were new."""
    contract = Contract.from_text(LARGER)
    with adding(tmp_path / "data", contract, images) as new:
        new.add(larger(10, 0))
        new.add(larger(7, 1))
    before = Dataset(tmp_path / "data").episode(1)["camera"]
    with adding(tmp_path / "new", contract, "video") as new:
        new.add(recording(7, 1, camera=before))
    assert main(["data", "compact", str(tmp_path / "data"), "--images", "video"]) == 0
    assert not list(tmp_path.glob("data/shards/*/camera.[in]*"))
    found, wanted = Dataset(tmp_path / "data").episode(1), Dataset(tmp_path / "new").episode(0)
    assert np.array_equal(found["camera"], wanted["camera"])


def bag_of(path, contract, files, kind):
    """A bag of pictures, each a jpeg or png, by a camera of that type."""
    messages = []
    for i, data in enumerate(files):
        ns = START + i * PERIOD
        messages.append(("/pose", ns + MS, pose(ns, (0.01 * i, len(files), 0.2))))
        messages.append(("/camera", ns + 2 * MS, compressed(ns, data)))
    return write_bag(path, messages, contract)


def test_a_bag_of_compressed_pictures_becomes_video(tmp_path):
    """Of what the node would see; a bag that is rejected half-way leaves nothing in it."""
    text = COMPRESSED.replace("shape: [4, 6, 3]", f"shape: [{SIZE[0]}, {SIZE[1]}, 3]")
    text = text.replace("    - {name: gripper, kind: binary}\n", "")
    head, _, _ = text.partition("  record:")
    contract = Contract.from_text(f"{head}  record: next_state\n")
    pictures = seen(10)
    files = [as_file(p, "png") for p in pictures]
    bags = [
        bag_of(tmp_path / name, contract, files[:n], "png") for name, n in (("a", 8), ("c", 10))
    ]
    convert(bags, contract, tmp_path / "data", options=Options(images="video"))
    dataset = Dataset(tmp_path / "data")
    assert [e.frames for e in dataset.episodes] == [7, 9]
    assert list(tmp_path.glob("data/shards/*/camera.video"))
    for number, frames in ((0, 7), (1, 9)):
        assert psnr(dataset.episode(number)["camera"], pictures[:frames]) > 36


def test_bags_of_small_pictures_and_several_processes_make_the_same_video(tmp_path, capsys):
    """Video where it is asked for, whatever the size; the same bytes for any number."""
    told = {"contract": TEXT}
    bags = [
        str(make_bag(tmp_path / f"bag{seed}", metadata=told, seed=seed, idle=3))
        for seed in range(3)
    ]
    for jobs in (1, 2):
        out = tmp_path / f"data{jobs}"
        words = ["--jobs", f"{jobs}", "--images", "video"]
        assert main(["convert", *bags, "--out", str(out), *words]) == 0
    one, two = contents(tmp_path / "data1"), contents(tmp_path / "data2")
    assert one == two
    assert sum(name.endswith("camera.video") for name in one) == 3


def test_depth_and_grey_are_never_video():
    """Nothing of a depth may be lost, and grey has no three colours."""
    stream = CONTRACT.observations["camera"]
    assert storage(stream, "video") == "video"
    assert storage(replace(stream, shape=(4, 6, 1)), "video") == "png"
    depth = replace(stream, shape=(4, 6, 1), encoding="16UC1", near=0.1, far=1.0)
    assert depth.is_depth
    assert storage(depth, "video") == "png"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("by", [b"\0", as_file(seen(1)[0])])
def test_a_damaged_clip_is_told_in_one_line(dataset, tmp_path, share, by):
    """Nothing is made up for what is missing; other clips are read as ever, before and after."""
    column = in_stretches(dataset, tmp_path / "source", [(0, 26)]).rows["camera"]
    first, second = (len(column.kept(row)) for row in (0, CLIP))
    start, stop = first + int(share * second), first + second
    (tmp_path / "source/shards").unlink()
    shutil.copytree(dataset / "shards", tmp_path / "source/shards")
    (path,) = tmp_path.glob("source/shards/*/camera.video")
    data = path.read_bytes()
    path.write_bytes(data[:start] + (by * (stop - start))[: stop - start] + data[stop:])
    broken = Dataset(tmp_path / "source").rows["camera"]
    for _ in range(2):
        assert np.array_equal(broken.take(np.array([1])), column.take(np.array([1])))
        with pytest.raises(UserError, match="camera.video: picture [4-7]: no whole video") as told:
            broken.take(np.arange(4, 8))
        assert len(str(told.value).splitlines()) == 1
        assert np.array_equal(broken.take(np.array([9])), column.take(np.array([9])))


@pytest.fixture
def no_av(monkeypatch):
    """A machine without PyAV."""
    monkeypatch.setitem(sys.modules, "av", None)


def test_without_av_nothing_is_begun(tmp_path, no_av, capsys, monkeypatch):
    """One line with the cure, before anything is read, and nothing is written."""
    raw = tmp_path / "raw"
    with adding(raw, CONTRACT) as new:
        new.add(recording())
    before = contents(raw)
    for room in ("convert", "compaction"):
        begun = f"diffusion_policy_ros.data.{room}.ShardWriter"
        monkeypatch.setattr(begun, lambda *_: pytest.fail("it was begun"))
    bag = str(make_bag(tmp_path / "bag", metadata={"contract": TEXT}))
    for words in (
        ["convert", bag, "--out", str(tmp_path / "out")],
        ["data", "compact", str(raw)],
        ["data", "merge", str(raw), "--out", str(tmp_path / "out")],
    ):
        capsys.readouterr()
        assert main([*words, "--images", "video"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("av is not installed; pip install 'diffusion_policy_ros[video]'")
        assert not (tmp_path / "out").exists()
    assert contents(raw) == before
    with pytest.raises(UserError, match="av is not installed"):
        with adding(tmp_path / "out", CONTRACT, "video") as new:
            pytest.fail("it was begun")


def test_a_video_opens_without_av_and_can_be_looked_after(dataset, tmp_path, no_av, capsys):
    """The cure is said when the first picture is needed; copies need none."""
    windows = WindowDataset(dataset, 2, 4)
    assert len(windows) == sum(FRAMES)
    assert "position" in windows.statistics(images=False)
    with pytest.raises(UserError, match=r"av is not installed; pip install .*\[video\]"):
        windows.batch([0])
    run = tmp_path / "run"  # a training writes nothing, so that the same command does it then
    eye = "policy.image_encoder={name: small_conv, keypoints: 4}"
    words = ["--dataset", str(dataset), "--config", "small_state", "--out", str(run), eye]
    assert main(["train", *words]) == 2 and not run.exists()
    merge([dataset], tmp_path / "copy")
    assert main(["data", "drop", str(tmp_path / "copy"), "--episodes", "0"]) == 0
    compact(tmp_path / "copy")
    assert [e.frames for e in Dataset(tmp_path / "copy").episodes] == list(FRAMES[1:])


def test_who_shows_and_exports_reads_it_as_any_other(dataset, decoded, tmp_path, capsys):
    """Strips of frames, statistics, and pictures of another format: of the same pixels."""
    copy = tmp_path / "copy"
    merge([dataset], copy)
    assert main(["data", "show", str(copy)]) == 0
    assert copy.with_suffix(".html").stat().st_size > 1000
    found = WindowDataset(copy, 2, 4).statistics()["camera"]
    assert np.allclose(found["mean"], decoded.reshape(-1, 3).mean(axis=0))
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: '.[lerobot]'")
    out = tmp_path / "lerobot"
    assert main(["data", "export", "lerobot", str(copy), "--out", str(out)]) == 0
    tables = [parquet.read_table(path) for path in sorted(out.glob("data/*/*.parquet"))]
    files = [one["bytes"] for t in tables for one in t["observation.images.camera"].to_pylist()]
    shown = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])
    assert np.array_equal(shown, decoded)
