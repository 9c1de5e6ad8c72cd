"""A run's folder that was copied, lies on a full disk, or has more in it than training wrote."""

import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import find_checkpoint, run_checkpoints
from diffusion_policy_ros.policy.run import begin_run, checkpoint_path, keep_checkpoints
from diffusion_policy_ros.train.progress import Log
from diffusion_policy_ros.train.trainer import train


def quietly(*args, **kwargs):
    """Train, and return what was said."""
    said = []
    train(*args, progress="none", say=said.append, **kwargs)
    return said


def checkpoints(run, *updates):
    """What `keep_checkpoints` looks for, of these updates."""
    for update in updates:
        folder = checkpoint_path(run, update)
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()


def test_the_newest_of_a_million_updates_is_the_newest(tmp_path):
    """Names of six digits are in the order of the alphabet, longer ones are not."""
    checkpoints(tmp_path, 995_000, 999_999, 1_000_000)
    keep_checkpoints(tmp_path, 1, [])
    assert [path.name for path in run_checkpoints(tmp_path)] == ["update_1000000"]
    assert find_checkpoint(tmp_path).name == "update_1000000"


def test_a_copy_that_somebody_keeps_is_neither_newest_nor_removed(tmp_path):
    """Only what training names so is a checkpoint of the run."""
    checkpoints(tmp_path, 5, 10)
    kept = checkpoint_path(tmp_path, 5).with_name("update_000005_good")
    shutil.copytree(checkpoint_path(tmp_path, 5), kept)
    keep_checkpoints(tmp_path, 1, [])
    assert [path.name for path in run_checkpoints(tmp_path)] == ["update_000010"]
    assert kept.is_dir()


@pytest.mark.parametrize("best", [1, 0])
def test_a_run_whose_links_became_folders_goes_on(dataset, changed, tmp_path, best):
    """As scp and rsync leave them; `best` is a link again, or gone where none is chosen."""
    out = tmp_path / "run"
    quietly(dataset, changed(keep_best=1), out, stop_after=6)
    link = out / "checkpoints" / "best"
    name = os.readlink(link)
    link.unlink()
    shutil.copytree(link.with_name(name), link)
    quietly(dataset, changed(keep_best=best), out, resume=True)
    assert link.is_symlink() == bool(best) and link.exists() == bool(best)
    assert find_checkpoint(out).name in ("update_000006", "update_000012")


def test_latest_is_only_ever_a_link(recipe, tmp_path, monkeypatch):
    """What else has that name stays, a run of that name too; no disk needs to have links."""
    runs = tmp_path / "runs"
    begin_run(runs / "latest", recipe)
    begin_run(runs / "one", recipe)
    assert (runs / "latest" / "recipe.yaml").is_file() and not (runs / "latest").is_symlink()
    shutil.rmtree(runs / "latest")

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    begin_run(runs / "two", recipe)
    assert sorted(path.name for path in runs.iterdir()) == ["one", "two"]


def test_a_run_goes_on_by_the_name_of_the_link(dataset, changed, tmp_path):
    """`--out runs/latest --resume`: the link went round in a circle."""
    quietly(dataset, changed(), tmp_path / "runs" / "first", stop_after=2)
    quietly(dataset, changed(), tmp_path / "runs" / "latest", stop_after=3, resume=True)
    assert os.readlink(tmp_path / "runs" / "latest") == "first"
    assert run_checkpoints(tmp_path / "runs" / "first")[-1].name == "update_000003"


def test_the_best_are_kept_on_a_disk_without_links(dataset, changed, tmp_path, monkeypatch):
    """As a copy, anew with each that is better; training ended with the first one."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    keeping = changed(keep_best=1, keep_checkpoints=1, val_every=4)
    out = tmp_path / "run"
    quietly(dataset, keeping, out)
    manifest = (find_checkpoint(out) / "manifest.json").read_text()
    same = [p.name for p in run_checkpoints(out) if (p / "manifest.json").read_text() == manifest]
    best = json.loads((run_checkpoints(out)[-1] / "training_state.json").read_text())["best"]
    assert find_checkpoint(out).name == "best"
    assert same == [checkpoint_path(out, best[0][1]).name]


def test_who_is_killed_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    """While it is removed, or written: what is left is none, and goes with the next."""
    checkpoints(tmp_path, 5, 10)
    left = checkpoint_path(tmp_path, 7).with_name(f".update_000007.part-{2**40}")
    left.mkdir()
    monkeypatch.setattr(shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        keep_checkpoints(tmp_path, 1, [])
    assert [path.name for path in run_checkpoints(tmp_path)] == ["update_000010"]
    monkeypatch.undo()
    keep_checkpoints(tmp_path, 1, [])
    assert [path.name for path in left.parent.iterdir()] == ["update_000010"]


def interrupt(*_):
    """A second Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def full_disk():
    """No file can be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_takes_nothing_of_a_run(dataset, recipe, tmp_path):
    """Resuming writes recipe and table anew: beside the old ones, until they are whole."""
    out = tmp_path / "run"
    quietly(dataset, recipe, out, stop_after=6)
    before = {path: path.read_text() for path in (out / "recipe.yaml", out / "loss.csv")}
    with full_disk(), pytest.raises(OSError, match="too large"):
        begin_run(out, recipe)
    with full_disk(), pytest.raises(OSError, match="too large"):
        Log(out, recipe, ["val_loss"], 6, "none", len)
    assert {path: path.read_text() for path in before} == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_command_that_goes_on_can_be_pasted(dataset, changed, tmp_path):
    """Names with blanks are quoted."""
    said = quietly(dataset, changed(updates=3), tmp_path / "my run", stop_after=1)
    assert f"--out '{tmp_path / 'my run'}' --resume" in said[-1]
    with pytest.raises(UserError, match="already exists"):
        quietly(dataset, changed(updates=3), tmp_path / "my run")
