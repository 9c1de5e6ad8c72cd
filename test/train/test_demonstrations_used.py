"""Which demonstrations are learned from, which are held out, and where training begins."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusion_policy_ros.data.dataset import Dataset, Index, WindowDataset
from diffusion_policy_ros.data.split import split
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import (
    choice_lines,
    find_checkpoint,
    load_episodes,
    load_policy,
)
from diffusion_policy_ros.train import hooks
from diffusion_policy_ros.train.batches import open_data
from diffusion_policy_ros.train.learner import Learner
from diffusion_policy_ros.train.trainer import train


def quietly(*args, **kwargs):
    """Train and return the checkpoint and what was said."""
    said = []
    return train(*args, progress="lines", say=said.append, **kwargs), said


def rewrite(folder, change):
    """Change each episode of a dataset: `change(number, episode)`."""
    index = Index.load(folder)
    episodes = tuple(change(n, episode) for n, episode in enumerate(index.episodes))
    dataclasses.replace(index, episodes=episodes).save(folder)
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_a_held_out_demonstration_is_held_out_whole(make_dataset, tmp_path, changed, seed):
    """Ten recordings cut into four segments each: none is on both sides."""
    folder = make_dataset(tmp_path / "segments", frames=(3,) * 40)
    rewrite(folder, lambda n, e: dataclasses.replace(e, source=f"bag{n // 4}", hash=f"h{n // 4}"))
    data = open_data(folder, changed(validation_fraction=0.2, seed=seed))
    trained, held = ({e.hash for e in w.episodes} for w in (data.training, data.validation))
    assert (len(trained), len(held)) == (8, 2)
    assert not trained & held
    assert len(data.validation.episodes) == 8


def test_demonstrations_that_failed_are_not_learned_from_unless_told(dataset, changed, tmp_path):
    """It says how many; those of which nothing is known are used; all failed is refused."""
    rewrite(dataset, lambda n, e: dataclasses.replace(e, success=(False, True, None, None)[n]))
    _, said = quietly(dataset, changed(updates=1), tmp_path / "run")
    assert any("2 episodes" in line and "1 that failed left out" in line for line in said)
    data = open_data(dataset, changed())
    used = {e.source for e in [*data.training.episodes, *data.validation.episodes]}
    assert used == {"bag1", "bag2", "bag3"}
    assert len(open_data(dataset, changed(include_failed="true")).training.episodes) == 3
    rewrite(dataset, lambda n, e: dataclasses.replace(e, success=False))
    with pytest.raises(UserError, match="all 4 episodes are marked as failed.*include_failed"):
        open_data(dataset, changed())


def test_a_run_that_would_be_split_otherwise_does_not_resume(dataset, recipe, changed, tmp_path):
    """Such as one of failures, begun when they were learned from; a plain one resumes."""
    plain = open_data(dataset, recipe).split.fingerprints
    assert plain[-1] == "ebae56b69fa5d063"  # as the first version computed it
    rewrite(dataset, lambda n, e: dataclasses.replace(e, success=n > 0))
    assert open_data(dataset, changed(include_failed="true")).split.fingerprints == plain
    assert not set(open_data(dataset, recipe).split.fingerprints) & set(plain)


def test_a_run_resumes_with_the_very_episodes_that_it_was_begun_with(dataset, changed, tmp_path):
    """Not with as many others; tags and tasks that no policy is told may change meanwhile."""
    rewrite(dataset, lambda n, e: dataclasses.replace(e, success=n != 0))
    recipe = changed(updates=2, validation_fraction=0)
    quietly(dataset, recipe, tmp_path / "run", stop_after=1)
    rewrite(dataset, lambda n, e: dataclasses.replace(e, success=n != 1))
    with pytest.raises(UserError, match="begun with other episodes"):
        quietly(dataset, recipe, tmp_path / "run", resume=True)
    said = {"success": None, "tags": ("clean",), "task": "pick"}
    rewrite(dataset, lambda n, e: dataclasses.replace(e, **said | {"success": n != 0}))
    quietly(dataset, recipe, tmp_path / "run", resume=True)


def test_tasks_belong_to_a_run_whose_policy_is_told_them(dataset):
    """Their words are part of what it learns."""

    def first(told):
        found = split(
            Dataset(dataset), [""], [1.0] * 4, 0.0, np.random.default_rng(0), False, told
        )
        return found.fingerprints[0]

    before = first(True), first(False)
    rewrite(dataset, lambda n, e: dataclasses.replace(e, task="pick" if n else ""))
    assert first(True) != before[0] and first(False) == before[1]


def test_windows_are_padded_no_further_than_asked(dataset):
    """As the original's sampler: the last window ends pad_after actions beyond the episode."""
    usual = WindowDataset(dataset, n_obs_steps=2, horizon=8)
    assert usual.padding(range(len(usual))).sum(1).max() == 6
    windows = WindowDataset(dataset, n_obs_steps=2, horizon=8, pad_after=3)
    padding = windows.padding(range(len(windows)))
    beyond = padding[:, 1:].sum(1)
    assert beyond.max() == 3
    lengths = [episode.frames for episode in windows.episodes]
    # create_indices of diffusion_policy: starts from -(To - 1) to length - horizon + pad_after.
    assert len(windows) == sum(length - 8 + 3 + 1 + 1 for length in lengths)
    assert np.bincount(windows.episode_of).tolist() == [length - 3 for length in lengths]
    batch, same = windows.batch([0]), usual.batch([0])
    assert all(np.array_equal(batch[key], same[key]) for key in batch)
    with pytest.raises(UserError, match="shorter than 39 frames.*pad_after"):
        WindowDataset(dataset, n_obs_steps=2, horizon=40, pad_after=0)


def test_images_are_not_read_for_statistics(dataset, recipe, monkeypatch):
    """No normaliser needs them."""
    data = open_data(dataset, recipe)
    images = data.training.dataset.rows["camera"]
    monkeypatch.setattr(type(images), "take", _refusing(images, type(images).take))
    Learner(recipe, data)
    with pytest.raises(AssertionError, match="images were read"):
        data.training.statistics()


def _refusing(images, take):
    def refuse(column, rows):
        assert column is not images, "images were read"
        return take(column, rows)

    return refuse


def test_a_checkpoint_knows_its_demonstrations(dataset, recipe, tmp_path):
    """Which were learned from, which held out; by the recordings' content."""
    checkpoint, _ = quietly(dataset, recipe, tmp_path / "run", stop_after=1)
    roles = load_episodes(tmp_path / "run")
    assert sorted(roles.values()) == ["held out", *["trained"] * 3]
    held = open_data(dataset, recipe).validation.episodes[0].hash
    assert roles[held] == "held out"
    (checkpoint / "episodes.json").write_text("{}")
    with pytest.raises(UserError, match=r"episodes\.json: is damaged"):
        load_episodes(checkpoint)


def test_a_run_means_its_best_checkpoint_where_one_was_chosen(
    dataset, changed, tmp_path, monkeypatch
):
    """After early stopping; whoever takes it says so. Otherwise the newest, silently."""
    errors = iter([0.5, 0.4, 0.6, 0.4])
    monkeypatch.setattr(hooks, "validate", lambda *_: (1.0, next(errors)))
    run = tmp_path / "run"
    stopping = {"updates": 40, "val_every": 2, "keep_checkpoints": 1}
    quietly(dataset, changed(early_stop=2, **stopping), run)
    assert find_checkpoint(run) == run / "checkpoints" / "update_000004"
    (line,) = choice_lines(run)
    assert "update_000004, the best by val_action_error; the newest is update_000008" in line
    assert list(choice_lines(find_checkpoint(run))) == []
    monkeypatch.undo()
    quietly(dataset, changed(**{**stopping, "updates": 9, "val_every": 0}), run, resume=True)
    assert find_checkpoint(run).name == "update_000009"
    assert list(choice_lines(run)) == []


def test_training_begins_with_the_weights_of_a_checkpoint(
    dataset, other_dataset, changed, tmp_path
):
    """Of other episodes; scaled as its weights were, or anew; then it resumes without it."""
    before, _ = quietly(dataset, changed(), tmp_path / "before")
    weights = load_file(before / "weights.safetensors")
    name, center = "denoiser.out.weight", "normalizer.keys.position.center"
    for normalizer in ("checkpoint", "dataset"):
        recipe = changed(init_from=before.parents[1], init_normalizer=normalizer)
        learner = Learner(recipe, open_data(other_dataset, recipe))
        (line, *_) = learner.begin()
        assert line.startswith(f"begins    with the weights of {before}")
        for policy in (learner.policy, learner.average):
            assert torch.equal(policy.state_dict()[name], weights[name])
            kept = torch.equal(policy.state_dict()[center], weights[center])
            assert kept == (normalizer == "checkpoint")
    recipe = changed(init_from=before.parents[1], updates=2)
    _, said = quietly(other_dataset, recipe, tmp_path / "after", stop_after=1)
    assert any(line.startswith("begins") for line in said)
    before.parents[1].rename(tmp_path / "moved")
    checkpoint, said = quietly(other_dataset, recipe, tmp_path / "after", resume=True)
    assert not any(line.startswith("begins") for line in said)
    assert not torch.equal(load_policy(checkpoint).state_dict()[name], weights[name])


def test_data_beyond_the_checkpoint_s_range_is_told(dataset, make_dataset, changed, tmp_path):
    """By key, with the cure."""
    before, _ = quietly(dataset, changed(updates=1), tmp_path / "before")
    wide = make_dataset(tmp_path / "wide", seed=2)
    path = wide / "shards" / "first" / "position.npy"
    np.save(path, 3 * np.load(path))
    _, said = quietly(wide, changed(updates=1, init_from=before), tmp_path / "after")
    (warning,) = [line for line in said if "times what it was scaled by" in line]
    assert warning.startswith("warning   position reaches 3")
    assert "training.init_normalizer=dataset" in warning


def test_weights_that_do_not_fit_are_refused(dataset, changed, tmp_path):
    """Another network, or none: one line, and no run is left behind."""
    before, _ = quietly(dataset, changed(updates=1), tmp_path / "before")
    recipe = changed(init_from=before)
    wider = dataclasses.replace(
        recipe.policy, denoiser=dataclasses.replace(recipe.policy.denoiser, down_dims=(16, 32))
    )
    with pytest.raises(UserError, match=r"training\.init_from: .*use the recipe it was trained"):
        quietly(dataset, dataclasses.replace(recipe, policy=wider), tmp_path / "run")
    with pytest.raises(UserError, match="no such directory"):
        quietly(dataset, changed(init_from=tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
