"""The trainer: exact resumption, refusals, what it leaves behind."""

import csv
import math
import os
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.data.loader import batch_indices
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import load_policy, run_checkpoints
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.validation import validate
from diffusion_policy_ros.report.training import training_lines
from diffusion_policy_ros.stopping import STOP_SIGNALS
from diffusion_policy_ros.train import progress
from diffusion_policy_ros.train.batches import open_data
from diffusion_policy_ros.train.learner import Learner, ema_decay, learning_rate
from diffusion_policy_ros.train.trainer import train


def quietly(*args, **kwargs):
    """Train and return the checkpoint and what was said."""
    said = []
    checkpoint = train(*args, progress="lines", say=said.append, **kwargs)
    return checkpoint, said


def tensors(checkpoint):
    """All that a checkpoint holds: averaged and trained weights, and both moments."""
    return {
        **load_file(checkpoint / "weights.safetensors"),
        **load_file(checkpoint / "training_state.safetensors"),
    }


def assert_equal_tensors(one, two):
    """Bit for bit."""
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different


@pytest.mark.parametrize(
    ("stop", "shares", "network"),
    [(1, 1, "changed"), (6, 2, "changed"), (11, 1, "changed"), (6, 2, "with_dropout")],
)
def test_resumed_is_uninterrupted(dataset, request, tmp_path, stop, shares, network):
    """2N updates in one go and N + N resumed: equal weights, averages and moments, bit for bit."""
    recipe = request.getfixturevalue(network)(batch_shares=shares)
    whole, _ = quietly(dataset, recipe, tmp_path / "whole")
    half, said = quietly(dataset, recipe, tmp_path / "halves", stop_after=stop)
    assert half.name == f"update_{stop:06d}"
    assert f"--out {tmp_path / 'halves'} --resume" in said[-1]
    resumed, _ = quietly(dataset, recipe, tmp_path / "halves", resume=True)
    assert resumed.name == whole.name == "update_000012"
    assert_equal_tensors(tensors(whole), tensors(resumed))


def test_a_changed_limit_does_not_stop_resuming(dataset, recipe, tmp_path):
    """Limits and topics are the cell's; the run goes on, with what the dataset says now."""
    quietly(dataset, recipe, tmp_path / "run", stop_after=6)
    index = dataset / "dataset.yaml"
    text = index.read_text()
    assert "topic: /pose" in text
    changed = text.replace("  action:\n", "  action:\n    limits: {velocity: 0.1}\n")
    index.write_text(changed.replace("topic: /pose", "topic: /arm/pose"))
    resumed, _ = quietly(dataset, recipe, tmp_path / "run", resume=True)
    contract = (resumed / "contract.yaml").read_text()
    assert "velocity: 0.1" in contract and "/arm/pose" in contract


def test_a_run_can_be_lengthened(dataset, changed, tmp_path):
    """With a decay of its own, N updates and then 2N are 2N in one go."""
    whole, _ = quietly(dataset, changed(decay_updates=12), tmp_path / "whole")
    quietly(dataset, changed(decay_updates=12, updates=6), tmp_path / "run")
    resumed, _ = quietly(
        dataset, changed(decay_updates=12, updates=12), tmp_path / "run", resume=True
    )
    assert_equal_tensors(tensors(whole), tensors(resumed))


def test_resuming_a_finished_run_only_says_so(dataset, recipe, tmp_path):
    """Nothing is trained or written again."""
    first, _ = quietly(dataset, recipe, tmp_path / "run")
    before = (first / "manifest.json").stat().st_mtime_ns
    again, _ = quietly(dataset, recipe, tmp_path / "run", resume=True)
    assert again == first
    assert (first / "manifest.json").stat().st_mtime_ns == before


def test_resuming_before_the_first_checkpoint_begins(dataset, recipe, tmp_path):
    """A run that was killed early starts over."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_text())
    checkpoint, _ = quietly(dataset, recipe, tmp_path / "run", resume=True)
    assert checkpoint.name == "update_000012"


def test_the_same_seed_trains_the_same_weights(dataset, recipe, changed, tmp_path):
    """Whatever the global seed; another seed trains others."""
    torch.manual_seed(1)
    one, _ = quietly(dataset, recipe, tmp_path / "one")
    torch.manual_seed(2)
    two, _ = quietly(dataset, recipe, tmp_path / "two")
    assert_equal_tensors(tensors(one), tensors(two))
    other, _ = quietly(dataset, changed(seed=1), tmp_path / "other")
    name = "denoiser.out.weight"
    assert not torch.equal(tensors(one)[name], tensors(other)[name])


def test_a_run_is_never_overwritten(dataset, recipe, tmp_path):
    """Neither a run nor anything else that stands there."""
    quietly(dataset, recipe, tmp_path / "run", stop_after=1)
    with pytest.raises(UserError, match="already exists; add --resume, or choose another --out"):
        quietly(dataset, recipe, tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thoughts.txt").write_text("...")
    with pytest.raises(UserError, match="is no run"):
        quietly(dataset, recipe, tmp_path / "notes", resume=True)
    with pytest.raises(UserError, match="no run to resume; leave out --resume"):
        quietly(dataset, recipe, tmp_path / "nowhere", resume=True)


def test_resuming_something_else_is_refused(dataset, other_dataset, recipe, changed, tmp_path):
    """Another recipe or other episodes are not the same run; its length and threads may change."""
    quietly(dataset, recipe, tmp_path / "run", stop_after=2)
    with pytest.raises(UserError, match="begun with another lr, batch_size|batch_size, lr"):
        quietly(dataset, changed(lr=0.1, batch_size=3), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="begun with other episodes"):
        quietly(other_dataset, recipe, tmp_path / "run", resume=True)
    quietly(dataset, changed(updates=4, val_every=1), tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_does_not_resume(dataset, recipe, tmp_path):
    """The file is named."""
    checkpoint, _ = quietly(dataset, recipe, tmp_path / "run", stop_after=2)
    path = checkpoint / "training_state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"training_state\.safetensors: is damaged"):
        quietly(dataset, recipe, tmp_path / "run", resume=True)


def test_nothing_is_left_where_the_dataset_is_missing(recipe, tmp_path):
    """A mistake before the first update leaves no run behind."""
    with pytest.raises(UserError, match="no such dataset"):
        quietly(tmp_path / "nowhere", recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_it_says_and_leaves_behind(dataset, changed, tmp_path):
    """Sizes and warnings first, the command that runs the policy last; table, picture, link."""
    out = tmp_path / "runs" / "first"
    checkpoint, said = quietly(dataset, changed(checkpoint_every=5, keep_checkpoints=2), out)
    assert "contract tiny" in said[0]
    assert "3 episodes" in said[1] and "windows" in said[1]
    assert "parameters" in said[2]
    told = list(training_lines(out))
    assert told[0].startswith("trained   12 updates in ")
    assert told[-1].endswith(f"policy_node --ros-args -p checkpoint:={checkpoint}")
    assert [path.name for path in run_checkpoints(out)] == ["update_000010", "update_000012"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "runs" / "latest").resolve() == out
    load_policy(tmp_path / "runs" / "latest")


def test_without_held_out_episodes_it_says_how_to_hold_some_out(dataset, changed, tmp_path):
    """The cure in one line; and the card has no nan."""
    recipe = changed(validation_fraction=0, updates=2)
    checkpoint, said = quietly(dataset, recipe, tmp_path / "run")
    (warning,) = [line for line in said if line.startswith("warning")]
    assert "no episode is held out" in warning and "training.validation_fraction=0.02" in warning
    assert "nan" not in (checkpoint / "card.md").read_text()


def test_the_table_has_losses_and_validations(dataset, recipe, tmp_path):
    """A row every log_every updates, a validation in those that have one; no row twice."""
    quietly(dataset, recipe, tmp_path / "run", stop_after=7)
    quietly(dataset, recipe, tmp_path / "run", resume=True)
    with (tmp_path / "run" / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["update"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["update"] for row in rows if row["val_loss"]] == ["6", "12"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)


def test_without_matplotlib_it_says_how_to_get_the_picture(dataset, recipe, tmp_path, monkeypatch):
    """The table is there all the same."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    quietly(dataset, recipe, tmp_path / "run")
    assert any("pip install matplotlib" in line for line in training_lines(tmp_path / "run"))
    assert (tmp_path / "run" / "loss.csv").is_file()
    assert not (tmp_path / "run" / "loss.png").exists()


@pytest.mark.parametrize("broken", [7, 10, 12])
def test_a_loss_that_is_not_finite_stops_the_run(dataset, changed, tmp_path, monkeypatch, broken):
    """With the cure; no checkpoint of NaN weights is written."""
    loss, calls = DiffusionPolicy.loss, []

    def breaking(policy, *args, **kwargs):
        calls.append(policy.training)
        return loss(policy, *args, **kwargs) * (math.nan if sum(calls) >= broken else 1.0)

    monkeypatch.setattr(DiffusionPolicy, "loss", breaking)
    with pytest.raises(UserError, match=r"the loss is nan.*lower training\.lr"):
        quietly(dataset, changed(checkpoint_every=3, log_every=100), tmp_path / "run")
    names = [path.name for path in run_checkpoints(tmp_path / "run")]
    assert names == [f"update_{u:06d}" for u in (3, 6, 9) if u < broken]


def test_validation_is_repeatable_and_without_random_crops(dataset, recipe, tmp_path):
    """The averaged weights in eval mode see the same windows and noise each time."""
    data = open_data(dataset, recipe)
    learner = Learner(recipe, data)
    first, again = (
        validate(learner.average, data.validation, 256, torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert first == again
    assert not learner.average.training
    assert all(math.isfinite(value) for value in first)


def test_held_out_episodes_are_not_trained_on(dataset, changed):
    """Split by episodes; without a fraction nothing is held out."""
    data = open_data(dataset, changed(validation_fraction=0.5))
    bags = [{e.source for e in windows.episodes} for windows in (data.training, data.validation)]
    assert len(bags[0]) == len(bags[1]) == 2
    assert not bags[0] & bags[1]
    assert open_data(dataset, changed(validation_fraction=0)).validation is None


def test_averaged_weights_are_what_is_saved(dataset, recipe, tmp_path):
    """They differ from the trained ones and follow their recursion."""
    data = open_data(dataset, recipe)
    learner = Learner(recipe, data)
    name = "denoiser.out.weight"
    average = learner.average.state_dict()[name].clone()
    with data.batches(recipe.training, 0) as batches:
        for update in range(3):
            learner.learn(next(batches))
            decay = min(0.999, (1 + update) / (10 + update))
            average = decay * average + (1 - decay) * learner.policy.state_dict()[name]
    torch.testing.assert_close(learner.average.state_dict()[name], average)


@pytest.mark.parametrize("shares", [2, 3, 7])
def test_shares_of_a_batch_are_the_batch(dataset, recipe, changed, shares):
    """Computed side by side or in one: the same gradients, to rounding, with padding masked."""

    def gradients(recipe):
        data = open_data(dataset, recipe)
        learner = Learner(recipe, data)
        with data.batches(recipe.training, 0) as batches:
            loss = learner.backward(next(batches))
        return loss, [weight.grad for weight in learner.policy.parameters()]

    (loss, whole), (other_loss, shared) = (
        gradients(recipe),
        gradients(changed(batch_shares=shares)),
    )
    torch.testing.assert_close(other_loss, loss)
    for one, other in zip(whole, shared, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_every_window_comes_once_an_epoch():
    """Epochs are permutations, one after another, and batches run across their ends."""
    indices = np.concatenate([batch_indices(20, 6, number, (0,)) for number in range(10)])
    for epoch in range(3):
        assert sorted(indices[epoch * 20 : (epoch + 1) * 20]) == list(range(20))
    assert not np.array_equal(indices[:20], indices[20:40])


def test_batches_may_be_larger_than_the_data():
    """Then windows come several times."""
    assert sorted(batch_indices(2, 6, 0, (0,))) == [0, 0, 0, 1, 1, 1]


def test_the_learning_rate_rises_and_falls(recipe):
    """Linear over the warm-up, half a cosine after it."""
    rates = [learning_rate(recipe.training, update) for update in range(12)]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[3] == pytest.approx(1e-3)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_young_averages_forget_quickly(recipe):
    """(1 + n) / (10 + n), up to ema_decay."""
    assert ema_decay(recipe.training, 0) == pytest.approx(0.1)
    assert ema_decay(recipe.training, 90) == pytest.approx(0.91)
    assert ema_decay(recipe.training, 10**6) == 0.999


def test_lines_come_where_there_is_no_terminal(dataset, recipe, tmp_path, monkeypatch, capsys):
    """No carriage returns, an estimate of what is left."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(dataset, recipe, tmp_path / "run")
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("update")]
    assert len(lines) == 6
    assert "updates/s" in lines[0] and "left" in lines[0]
    assert "\r" not in captured.out + captured.err


def _command(words, folder):
    """The command line, what it says in a file."""
    with (folder / "said").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(main(words))


def wait_for(condition):
    """Wait until it holds; a deadline, no fixed sleep."""
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_ctrl_c_saves_and_says_how_to_go_on(dataset, changed, tmp_path, forked, number):
    """The command that it prints goes on to what an uninterrupted run would have been."""
    whole, _ = quietly(dataset, changed(updates=10**4, val_every=0), tmp_path / "a", stop_after=40)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(changed(updates=10**4, val_every=0).to_text())
    words = ["train", "--dataset", str(dataset), "--config", str(recipe)]
    process = forked(target=_command, args=([*words, "--out", str(tmp_path / "b")], tmp_path))
    process.start()
    table = tmp_path / "b" / "loss.csv"
    wait_for(lambda: process.exitcode or (table.exists() and table.stat().st_size > 60))
    os.kill(process.pid, number)
    process.join(180)
    out = (tmp_path / "said").read_text()
    assert process.exitcode == 130, out
    assert "Traceback" not in out
    line = next(line for line in out.splitlines() if line.endswith("--resume"))
    assert f"--out {tmp_path / 'b'}" in line
    update = int(run_checkpoints(tmp_path / "b")[-1].name.removeprefix("update_"))
    assert 0 < update < 10**4
    target = max(update, 40)
    recipe = changed(updates=10**4, val_every=0)
    if update < target:
        quietly(dataset, recipe, tmp_path / "b", resume=True, stop_after=target)
    if target > 40:
        whole, _ = quietly(dataset, recipe, tmp_path / "a", resume=True, stop_after=target)
    assert_equal_tensors(tensors(run_checkpoints(tmp_path / "b")[-1]), tensors(whole))


def test_a_run_shows_what_is_seen_of_each_camera(dataset, recipe, tmp_path):
    """The share in a line, and a picture that begins with the dataset's first frame."""
    _, said = quietly(dataset, recipe, tmp_path / "run", stop_after=1)
    line = f"sees      camera: 16 x 20 of 20 x 24, 67% of it: {tmp_path}/run/view_camera.png"
    assert line in said
    with Image.open(tmp_path / "run" / "view_camera.png") as sheet:
        found = np.asarray(sheet)[:20, :24]
    first = np.load(dataset / "shards" / "first" / "camera.npy")[0]
    inside = slice(3, 17), slice(3, 21)
    assert np.array_equal(found[inside], first[inside])


def test_a_recipe_is_described_for_the_robot_of_a_dataset(dataset, recipe, tmp_path, capsys):
    """Without --contract: a recipe has no robot of its own."""
    (tmp_path / "mine.yaml").write_text(recipe.to_text())
    words = ["--dataset", str(dataset), "--chunks", "0", "--out", str(tmp_path / "views")]
    assert main(["describe", str(tmp_path / "mine.yaml"), *words]) == 0
    assert "contract  tiny," in capsys.readouterr().out
    assert (tmp_path / "views" / "view_camera.png").is_file()
