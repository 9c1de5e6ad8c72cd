"""What training draws from: datasets, episodes, weights, splits; by any number of readers."""

import dataclasses
import itertools
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors.torch import load_file

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.compaction import compact
from diffusion_policy_ros.data.dataset import Index
from diffusion_policy_ros.data.edits import chosen, edit
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import load_episodes
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.train.batches import open_data
from diffusion_policy_ros.train.trainer import train

VIDEO = pytest.param(
    "video",
    marks=pytest.mark.skipif(find_spec("av") is None, reason="needs av: pip install '.[video]'"),
)


def with_data(recipe, *sources, **settings):
    """The recipe with datasets of its own."""
    lines = ", ".join("{" + ", ".join(f"{k}: {v!r}" for k, v in s.items()) + "}" for s in sources)
    changed = {f"training.{key}": str(value) for key, value in settings.items()}
    return Recipe.from_text(recipe.to_text(), overrides={"data": f"[{lines}]", **changed})


def change(folder, numbers, **values):
    """Say something of some episodes."""
    edit(folder, "test", lambda: numbers, lambda episode: dataclasses.replace(episode, **values))


def drawn(data, settings, batches):
    """Which dataset, and which episode, each window of many batches is of."""
    windows, counts = data.training, np.zeros(len(data.training.dataset.episodes))
    for update in range(batches):
        indices = data.indices(settings, update)
        numbers = np.array(windows.numbers)[windows.episode_of[indices]]
        counts += np.bincount(numbers, minlength=len(counts))
    return counts


def test_several_datasets_are_drawn_by_their_weights(dataset, other_dataset, recipe):
    """Each window as often as its dataset's weight says, to within one an epoch."""
    sources = ({"path": str(dataset)}, {"path": str(other_dataset), "weight": 3.0})
    both = with_data(recipe, *sources, validation_fraction=0.0)
    data = open_data(None, both)
    assert data.training.dataset.origin == [0] * 4 + [1] * 4
    assert len(data.training) == 2 * 41
    # 82 windows and batches of 6: three epochs are 41 batches.
    counts = drawn(data, both.training, 41)
    assert counts.sum() == 246
    assert counts[:4].sum() == pytest.approx(246 / 4, abs=3)
    assert counts[4:] == pytest.approx(3 * counts[:4], abs=9)


def test_equal_weights_are_drawn_as_ever(dataset, other_dataset, recipe, changed):
    """Every window once an epoch; and just as without any weights."""
    data = open_data(None, with_data(recipe, {"path": str(dataset), "weight": 2.0}))
    assert data.shares is None
    settings = changed().training
    plain = open_data(dataset, recipe)
    for update in range(9):
        assert np.array_equal(data.indices(settings, update), plain.indices(settings, update))


def test_an_episodes_own_weight_counts(dataset, recipe):
    """0 is never drawn."""
    change(dataset, [1], weight=0.0)
    data = open_data(dataset, with_data(recipe, validation_fraction=0.0))
    counts = drawn(data, recipe.training, 41)
    assert counts[1] == 0
    assert (counts[[0, 2, 3]] > 0).all()
    change(dataset, range(4), weight=0.0)
    with pytest.raises(UserError, match="all episodes have the weight 0"):
        open_data(dataset, recipe)


def test_a_recipe_chooses_episodes(dataset, other_dataset, recipe):
    """Each dataset by conditions of its own; what is left out is counted."""
    change(dataset, [0, 2], tags=("clean",))
    sources = (
        {"path": str(dataset), "where": "tag=clean"},
        {"path": str(other_dataset), "where": "frames>=10"},
    )
    data = open_data(None, with_data(recipe, *sources, validation_fraction=0.0))
    assert data.training.numbers == [0, 2, 4, 5, 7]
    assert (data.split.left_out, data.split.failed) == (3, 0)
    nothing = with_data(recipe, {"path": str(dataset), "where": "frames>99"})
    with pytest.raises(UserError, match="none of 4 episodes fits 'frames>99'") as caught:
        open_data(None, nothing)
    assert len(str(caught.value).splitlines()) == 1


def test_datasets_of_other_meanings_are_not_mixed(dataset, other_dataset, recipe):
    """One line says in what they differ."""
    index = Index.load(other_dataset)
    text = index.contract.replace("rate_hz: 10", "rate_hz: 20")
    hashed = Contract.from_text(text).hash
    dataclasses.replace(index, contract=text, contract_hash=hashed).save(other_dataset)
    sources = ({"path": str(dataset)}, {"path": str(other_dataset)})
    with pytest.raises(UserError, match="they differ in rate_hz"):
        open_data(None, with_data(recipe, *sources))


def test_a_recording_in_two_datasets_is_on_one_side(dataset, recipe, make_dataset, tmp_path):
    """Otherwise validation would look at what was trained on."""
    copy = make_dataset(tmp_path / "copy")
    for seed in range(4):
        sources = ({"path": str(dataset)}, {"path": str(copy)})
        data = open_data(None, with_data(recipe, *sources, validation_fraction=0.5, seed=seed))
        trained, held = ({e.hash for e in w.episodes} for w in (data.training, data.validation))
        assert not trained & held
        assert len(data.validation.episodes) == 4


def test_the_datasets_split_wins(dataset, recipe, tmp_path):
    """Held out by name, whatever the seed; the checkpoint knows, and so does a resumed run."""
    change(dataset, [2], split="held_out")
    for seed in range(3):
        data = open_data(dataset, with_data(recipe, seed=seed, validation_fraction=0.5))
        assert [e.hash for e in data.validation.episodes] == ["hash2-0"]
        assert len(data.training.episodes) == 3
    checkpoint = train(dataset, recipe, tmp_path / "run", progress="none", stop_after=1)
    assert load_episodes(checkpoint)["hash2-0"] == "held out"
    change(dataset, [2], split="")
    change(dataset, [0], split="held_out")
    with pytest.raises(UserError, match="begun with other episodes"):
        train(dataset, recipe, tmp_path / "run", resume=True, progress="none")
    change(dataset, [0, 1, 2, 3], split="held_out")
    with pytest.raises(UserError, match="all episodes that were chosen are held out"):
        open_data(dataset, recipe)


def test_what_is_for_training_is_not_held_out_by_chance(dataset, recipe):
    """Among the others the seed decides."""
    change(dataset, [0, 1, 3], split="train")
    for seed in range(4):
        data = open_data(dataset, with_data(recipe, seed=seed, validation_fraction=0.5))
        assert [e.hash for e in data.validation.episodes] == ["hash2-0"]


def test_where_all_is_for_training_it_says_how_to_hold_some_out(dataset, changed, tmp_path):
    """Not that there are too few."""
    change(dataset, [0, 1, 2, 3], split="train")
    said = []
    train(dataset, changed(updates=1), tmp_path / "run", progress="none", say=said.append)
    (warning,) = [line for line in said if "no episode is held out" in line]
    assert warning.endswith("diffusion-policy data split DATASET held_out --share 0.1")


def test_dropped_episodes_are_not_learned_from(dataset, recipe):
    """Nor held out."""
    change(dataset, chosen(dataset, "frames<10"), dropped=True)
    data = open_data(dataset, recipe)
    hashes = {e.hash for e in (*data.training.episodes, *data.validation.episodes)}
    assert hashes == {"hash0-0", "hash1-0", "hash3-0"}


def test_a_run_without_any_dataset_is_refused(recipe):
    """It says where to name one."""
    with pytest.raises(UserError, match="--dataset, or in the recipe's data"):
        open_data(None, recipe)


def test_batches_are_the_same_for_any_number_of_readers(dataset, changed):
    """In their order, from any update on."""
    seen = {}
    for readers in (1, 3):
        settings = changed(readers=readers)
        data = open_data(dataset, settings)
        with data.batches(settings.training, 5) as batches:
            seen[readers] = list(itertools.islice(batches, 9))
    for one, three in zip(*seen.values(), strict=True):
        assert np.array_equal(one.padding, three.padding)
        for key, values in one.arrays.items():
            assert np.array_equal(values, three.arrays[key])


@pytest.mark.parametrize("kept", ["png", VIDEO])
def test_what_is_learned_does_not_depend_on_readers_nor_on_how_pictures_are_kept(
    dataset, changed, tmp_path, make_dataset, kept
):
    """Raw by one reader at once, png by three with an interruption: the same bits; video, too."""
    quiet = {"progress": "none", "say": lambda line: None}
    if kept == "video":
        compact(dataset, "video")
    first = train(dataset, changed(readers=1, val_every=0), tmp_path / "raw", **quiet)
    files = make_dataset(tmp_path / "files")
    compact(files, kept)
    assert list(files.glob("shards/*/camera.ends.npy"))
    index = Index.load(files)
    assert [e.start for e in index.episodes] == [e.start for e in Index.load(dataset).episodes]
    train(files, changed(readers=3, val_every=0), tmp_path / "run", stop_after=5, **quiet)
    recipe = changed(readers=2, val_every=0)
    second = train(files, recipe, tmp_path / "run", resume=True, **quiet)
    ours, theirs = (load_file(path / "weights.safetensors") for path in (first, second))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_run_goes_on_when_its_dataset_was_compacted_meanwhile(dataset, changed, tmp_path):
    """What was dropped before is gone for good, rows have moved: the weights are the same bits."""
    change(dataset, [1], dropped=True)
    quiet = {"progress": "none", "say": len}
    recipe = changed(val_every=0)
    whole = train(dataset, recipe, tmp_path / "whole", **quiet)
    train(dataset, recipe, tmp_path / "run", stop_after=5, **quiet)
    before = [e.start for e in Index.load(dataset).episodes if not e.dropped]
    compact(dataset)
    assert [e.start for e in Index.load(dataset).episodes] != before
    resumed = train(dataset, recipe, tmp_path / "run", resume=True, **quiet)
    ours, theirs = (load_file(path / "weights.safetensors") for path in (whole, resumed))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    change(dataset, [0], dropped=True)
    with pytest.raises(UserError, match="begun with other episodes.*training.init_from"):
        train(dataset, recipe, tmp_path / "run", resume=True, **quiet)


@pytest.mark.parametrize("kept", ["png", VIDEO])
def test_a_broken_picture_ends_training_in_one_line(dataset, changed, tmp_path, kept):
    """With file and cure, from whichever reader."""
    compact(dataset, kept)
    (path,) = dataset.glob("shards/*/camera.[iv]*")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"camera.*: picture .*: (not a|no) whole (jpeg|video)"):
        train(dataset, changed(readers=3), tmp_path / "run", progress="none", say=len)
