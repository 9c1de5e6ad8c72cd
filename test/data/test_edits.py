"""Episodes that are chosen, tagged, dropped, split, merged and compacted; and taken back."""

import dataclasses
import errno
import os

import numpy as np
import pytest
from made_bags import CONTRACT, PERIOD, START, TEXT
from test_store import VIDEO, contents, pictures, recording

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data import compaction, edits
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.index import Index
from diffusion_policy_ros.data.store import Recording, adding
from diffusion_policy_ros.errors import UserError


def write(folder, seeds=range(4), images="auto", contract=CONTRACT):
    """Episodes of 3, 4, 5, … frames: every other one a success."""
    with adding(folder, contract, images) as new:
        for seed in seeds:
            arrays = recording(3 + seed, seed).arrays
            task = "pick the cube" if seed < 2 else "open the drawer"
            new.add(Recording(f"demo_{seed}", arrays, seed % 2 == 0, task))
    return folder


@pytest.fixture
def data(tmp_path):
    """Four episodes."""
    return write(tmp_path / "data")


def verb(*words):
    """Run `diffusion-policy data`, which has to succeed."""
    assert main(["data", *map(str, words)]) == 0


def sources(folder):
    """What a reader finds."""
    return [episode.source for episode in Dataset(folder).episodes]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("", [0, 1, 2, 3]),
        ("success=true", [0, 2]),
        ("success!=true", [1, 3]),
        ("task=pick*", [0, 1]),
        ("task!=pick*, frames>=6", [3]),
        ("frames<4", [0]),
        ("source=demo_[12], success=false", [1]),
        ("tag=", [0, 1, 2, 3]),
    ],
)
def test_conditions_choose_episodes(data, where, found):
    """By what is said of them, and their length; all conditions hold."""
    assert edits.chosen(data, where) == found


def test_a_task_with_brackets_is_chosen_by_its_name(tmp_path):
    """Though brackets are a choice of letters, too."""
    with adding(tmp_path / "data", CONTRACT) as new:
        new.add(Recording("one", recording(3, 0).arrays, True, "put [red] block"))
    assert edits.chosen(tmp_path / "data", "task=put [red] block") == [0]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("frames>99", "data: none of 4 episodes fits 'frames>99'; loosen it"),
        ("tag=clean", "data: no episode has the tag 'clean'; give some"),
        ("task=pick the cub", "did you mean 'pick the cube'"),
        ("frame>3", "nothing is known of 'frame'; did you mean 'frames'"),
        (",", "',' holds no condition; write success=true"),
        (" ", "' ' holds no condition"),
        ("success", "'success' is no condition; write success=true"),
        ("frames>many", "give a number"),
        ("success=yes", "use true, false, unknown"),
        ("task>a", "compare task with = or !="),
    ],
)
def test_a_choice_that_makes_no_sense_is_told_in_one_line(data, where, message, capsys):
    """With what is meant; nothing changes."""
    before = contents(data)
    assert main(["data", "drop", str(data), "--where", where]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert contents(data) == before


def test_a_dropped_episode_is_out_of_everything_until_it_is_kept(data):
    """Readers skip it, its frames stay, the same recording is not added again."""
    verb("drop", data, "--where", "success=false")
    assert sources(data) == ["demo_0", "demo_2"]
    with adding(data, CONTRACT) as new:
        again = dataclasses.replace(recording(4, 1), task="pick the cube")
        assert new.add(again).status == "present"
    assert np.array_equal(Dataset(data).episode(1)["position"], recording(5, 2).arrays["position"])
    verb("keep", data, "--episodes", 1)
    assert sources(data) == ["demo_0", "demo_1", "demo_2"]


def test_every_edit_can_be_undone_in_turn(data):
    """Whatever it changed, and only that; also after more was added."""
    states = [Index.load(data).episodes]
    verb("tag", data, "clean", "slow", "--episodes", 0, 2)
    verb("tag", data, "slow", "--remove", "--where", "tag=slow", "--weight", 2)
    states += [Index.load(data).episodes]
    verb("split", data, "held_out", "--share", 0.5, "--seed", 3)
    states += [Index.load(data).episodes]
    assert [e.split for e in states[-1]].count("held_out") == 2
    verb("drop", data, "--where", "tag=clean")
    with adding(data, CONTRACT) as new:
        new.add(recording(9, 9))
    verb("undo", data)
    assert Index.load(data).episodes[:4] == states[-1]
    verb("undo", data)
    assert Index.load(data).episodes[:4] == states[-2]
    assert [e.tags for e in states[-2]] == [("clean",), (), ("clean",), ()]
    verb("undo", data)
    verb("undo", data)
    assert Index.load(data).episodes[:4] == states[0]
    assert sources(data)[4] == "demo_9"
    with pytest.raises(UserError, match="there is nothing to undo"):
        edits.undo(data)


def test_a_list_says_what_is_known_of_each(data, capsys):
    """A line each, and their sum; dropped ones when asked for."""
    verb("drop", data, "--episodes", 3)
    capsys.readouterr()
    verb("list", data)
    said = capsys.readouterr().out
    assert "demo_1" in said and "open the drawer" in said and "demo_3" not in said
    assert "3 episodes, 12 frames" in said
    verb("list", data, "--dropped")
    assert "dropped" in capsys.readouterr().out


@pytest.mark.parametrize("images", ["raw", "jpeg", "png", VIDEO])
def test_a_compaction_removes_only_what_was_dropped(tmp_path, images):
    """What is left reads the same, bit for bit, and is as it was on the disk."""
    data = write(tmp_path / "data", range(6), images)
    verb("tag", data, "clean", "--where", "frames>=5")
    verb("drop", data, "--episodes", 0, 3)
    before = Dataset(data)
    episodes = [before.episode(n) for n in range(4)]
    files = [before.rows["camera"].kept(before.first_row(n)) for n in range(4)]
    size = compaction.size_of(data)
    verb("compact", data)
    after = Dataset(data)
    assert compaction.size_of(data) < size
    assert len(Index.load(data).episodes) == 4
    assert sum(Index.load(data).shards.values()) == sum(e.frames for e in after.episodes)
    for number, wanted in enumerate(episodes):
        found = after.episode(number)
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
        kept = after.rows["camera"].kept(after.first_row(number))
        assert np.array_equal(kept, files[number])
    for name in ("source", "hash", "success", "task", "tags"):
        values = [[getattr(e, name) for e in d.episodes] for d in (before, after)]
        assert values[0] == values[1]
    with pytest.raises(UserError, match="there is nothing to undo"):
        edits.undo(data)


def test_a_compaction_encodes_when_it_is_asked_to(tmp_path):
    """Raw pictures of an old dataset become files; png of the same pixels."""
    data = write(tmp_path / "data", images="raw")
    verb("compact", data, "--images", "png")
    assert not list(data.glob("shards/*/camera.npy"))
    assert np.array_equal(Dataset(data).episode(1)["camera"], pictures(4, 1))


def full(*_):
    """What a disk without room says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where",
    ["shards.ShardWriter.close", "npy.NpyWriter.append", "index.Index.save"],
)
@pytest.mark.parametrize("images", ["raw", VIDEO])
def test_a_full_disk_in_the_midst_of_a_compaction_loses_nothing(
    tmp_path, monkeypatch, where, images
):
    """One line; old or new, never half, and what was dropped can still be kept."""
    data = write(tmp_path / "data", images=images)
    verb("drop", data, "--episodes", 1)
    before = contents(data)
    monkeypatch.setattr(f"diffusion_policy_ros.data.{where}", full)
    with pytest.raises(UserError, match="data: the disk is full; make room"):
        compaction.compact(data)
    monkeypatch.undo()
    after = contents(data)
    assert {name: after[name] for name in before} == before
    assert sources(data) == ["demo_0", "demo_2", "demo_3"]
    edits.undo(data)
    assert len(sources(data)) == 4
    verb("drop", data, "--episodes", 1)
    verb("compact", data)
    assert {p.name for p in (data / "shards").iterdir()} == set(Index.load(data).shards)


def test_nothing_is_undone_after_a_compaction_that_was_killed_at_its_end(data, monkeypatch):
    """Its dataset is whole, and what was noted before is of lines that are no more."""

    def killed(*args):
        before(*args)
        raise KeyboardInterrupt

    verb("drop", data, "--episodes", 1)
    before = compaction.commit
    monkeypatch.setattr(compaction, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        compaction.compact(data)
    with pytest.raises(UserError, match="nothing to undo; a compaction ends edits"):
        edits.undo(data)
    assert sources(data) == ["demo_0", "demo_2", "demo_3"]


def test_a_reader_is_told_when_a_dataset_was_compacted_meanwhile(data):
    """Its files are gone; one line."""
    reading = Dataset(data)
    verb("drop", data, "--episodes", 1)
    verb("compact", data)
    with pytest.raises(UserError, match="is gone: the dataset was compacted"):
        reading.episode(0)


def test_a_dataset_of_which_all_was_dropped_is_not_compacted_away(data):
    """It holds nothing then, which is rarely meant."""
    verb("drop", data, "--where", "frames>0")
    with pytest.raises(UserError, match="holds no episodes.*data keep"):
        compaction.compact(data)
    verb("undo", data)
    assert len(sources(data)) == 4


def test_datasets_are_merged_with_what_is_said_of_them(tmp_path):
    """A recording that is in both once; how pictures are kept stays; a choice may be made."""
    first = write(tmp_path / "first", range(3), "raw")
    second = write(tmp_path / "second", range(1, 5), "jpeg")
    verb("tag", second, "evening")
    verb("merge", first, second, "--out", tmp_path / "all", "--where", "frames>=4")
    merged = Dataset(tmp_path / "all")
    assert [e.source for e in merged.episodes] == ["demo_1", "demo_2", "demo_3", "demo_4"]
    assert [e.tags for e in merged.episodes] == [(), (), ("evening",), ("evening",)]
    for number, (folder, at) in enumerate([(first, 1), (first, 2), (second, 2), (second, 3)]):
        wanted = Dataset(folder).episode(at)
        found = merged.episode(number)
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(UserError, match="has all of them already"):
        compaction.merge([first, second], tmp_path / "all", "frames>=4")
    with pytest.raises(UserError, match="is merged into itself"):
        compaction.merge([first, second], first)


def test_stretches_of_one_recording_are_merged_in_turn(tmp_path):
    """Each once, though they are of one recording."""
    parts = [recording(4, seed).arrays for seed in range(3)]
    with adding(tmp_path / "data", CONTRACT) as new:
        for number, arrays in enumerate(parts):
            stamps = (START + (10 * number + np.arange(4)) * PERIOD).astype(np.int64)
            new.add(Recording(f"part{number}", {**arrays, "stamp_ns": stamps}, hash=f"{number}"))
    index = Index.load(tmp_path / "data")
    of_one = tuple(dataclasses.replace(e, hash="one") for e in index.episodes)
    dataclasses.replace(index, episodes=of_one).save(tmp_path / "data")
    verb("merge", tmp_path / "data", "--out", tmp_path / "all", "--where", "source=part1")
    verb("merge", tmp_path / "data", "--out", tmp_path / "all")
    assert sources(tmp_path / "all") == ["part1", "part0", "part2"]


@pytest.mark.parametrize("whole", [True, False], ids=["shards", "each shard"])
def test_shards_may_lie_elsewhere(tmp_path, whole):
    """Behind links, as on another disk: a compaction writes there, and removes but the link."""
    data, elsewhere = write(tmp_path / "data"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in [data / "shards"] if whole else list((data / "shards").iterdir()):
        path.rename(elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)
    verb("drop", data, "--episodes", 1)
    verb("compact", data)
    assert sources(data) == ["demo_0", "demo_2", "demo_3"]
    assert (data / "shards").is_symlink() == whole
    assert len(list((data / "shards").iterdir())) == 1
    with adding(data, CONTRACT) as new:
        new.add(recording(9, 9))
    assert sources(data)[3] == "demo_9"


def test_datasets_of_other_meanings_are_not_merged(tmp_path):
    """It says in what they differ, and writes nothing."""
    other = Contract.from_text(TEXT.replace("rate_hz: 20", "rate_hz: 10"))
    first, second = write(tmp_path / "first"), write(tmp_path / "second", contract=other)
    with pytest.raises(UserError, match="they differ in rate_hz"):
        compaction.merge([first, second], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tag"], "nothing to say of them; give a tag"),
        (["tag", "a,b"], "'a,b' is no tag"),
        (["tag", " a"], "' a' is no tag"),
        (["tag", "\udce4"], "is no text"),
        (["tag", "--task", "\udce4"], "is no text; write it in UTF-8"),
        (["tag", "--weight=-1"], "use 0 or more"),
        (["drop"], "give --where or --episodes"),
        (["keep"], "none of the episodes is dropped"),
        (["drop", "--episodes", "7"], "has no episode 7; choose from 0 to 3"),
        (["split", "held_out", "--share", "1.5"], "use a number between 0 and 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(data, words, message, capsys):
    """In one line, and nothing changes."""
    before = contents(data)
    assert main(["data", words[0], str(data), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert contents(data) == before


@pytest.mark.parametrize("words", [["undo"], ["compact"], ["drop", "--episodes", "0"]])
@pytest.mark.parametrize("there", [True, False])
def test_where_no_dataset_is_none_is_begun(tmp_path, words, there, capsys):
    """Neither folders nor a lock are left by what only changes one."""
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    assert main(["data", words[0], str(folder), *words[1:]]) == 2
    assert "is no dataset" if there else "no such dataset" in capsys.readouterr().err
    assert not list(folder.iterdir()) if there else not list(tmp_path.iterdir())


def test_episodes_are_chosen_while_nobody_else_writes(data, monkeypatch):
    """Not before: their numbers, and what is said of them, may be others then."""

    def meanwhile(folder):
        monkeypatch.undo()
        index = Index.load(folder)
        dataclasses.replace(index, episodes=index.episodes[::-1]).save(folder)
        return before(folder)

    before = edits.exclusive
    monkeypatch.setattr(edits, "exclusive", meanwhile)
    verb("drop", data, "--where", "source=demo_0")
    assert sources(data) == ["demo_3", "demo_2", "demo_1"]


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'{"said": "drop", "before": [["s", 0, {"wait": 1}]]}',
        b'{"said": "drop", "before": [["s", 0, {"weight": "much"}]]}',
        b'{"said": "drop", "before": [["s", 0, 5]]}',
    ],
)
def test_a_damaged_note_of_edits_is_told_and_harms_nothing(data, text, capsys):
    """One line with the cure; the dataset itself reads as ever."""
    (data / edits.EDITS).write_bytes(text)
    assert main(["data", "undo", str(data)]) == 2
    said = capsys.readouterr().err
    assert "edits.jsonl: is damaged; remove it" in said and len(said.splitlines()) == 1
    assert len(sources(data)) == 4
    (data / edits.EDITS).unlink()
    verb("drop", data, "--episodes", 1)
    verb("undo", data)
