"""What a recipe can ask of a training: less memory, bfloat16, compilation, early ends, loggers."""

import math
import sys
import types

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.exc import TorchDynamoException

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import run_checkpoints
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.report.training import training_lines
from diffusion_policy_ros.train import hooks
from diffusion_policy_ros.train.batches import open_data
from diffusion_policy_ros.train.learner import Learner, decay_groups
from diffusion_policy_ros.train.trainer import train


def quietly(*args, **kwargs):
    """Train and return the checkpoint and what was said."""
    said = []
    return train(*args, progress="lines", say=said.append, **kwargs), said


def gradients(dataset, recipe):
    """Loss and gradients of the first batch."""
    data = open_data(dataset, recipe)
    learner = Learner(recipe, data)
    with data.batches(recipe.training, 0) as batches:
        loss = learner.backward(next(batches))
    return loss, [w.grad for w in learner.policy.parameters() if w.requires_grad]


@pytest.mark.parametrize("network", ["changed", "with_dropout"])
@pytest.mark.parametrize(("parts", "shares"), [(2, 1), (3, 2), (6, 1)])
def test_accumulated_gradients_are_the_batch_s(dataset, request, network, parts, shares):
    """Computed one after another or in one: the same, to rounding, padding and dropout too."""
    changed = request.getfixturevalue(network)
    loss, whole = gradients(dataset, changed())
    other_loss, parted = gradients(
        dataset, changed(gradient_accumulation=parts, batch_shares=shares)
    )
    torch.testing.assert_close(other_loss, loss)
    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_near_and_keeps_float32_weights(dataset, changed, tmp_path):
    """Losses agree to two digits; what is saved is float32; it resumes bit for bit."""
    loss, _ = gradients(dataset, changed())
    mixed, found = gradients(dataset, changed(precision="bfloat16"))
    assert mixed.dtype == torch.float32
    assert mixed != loss
    torch.testing.assert_close(mixed, loss, rtol=3e-2, atol=0)
    assert all(gradient.dtype == torch.float32 for gradient in found)
    recipe = changed(precision="bfloat16", updates=4)
    whole, _ = quietly(dataset, recipe, tmp_path / "whole")
    quietly(dataset, recipe, tmp_path / "halves", stop_after=2)
    resumed, _ = quietly(dataset, recipe, tmp_path / "halves", resume=True)
    for file in ("weights.safetensors", "training_state.safetensors"):
        one, two = load_file(whole / file), load_file(resumed / file)
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("error", "settings", "message"),
    [
        (torch.cuda.OutOfMemoryError, {}, "resume with training.gradient_accumulation=2"),
        (TorchDynamoException, {"compile": True}, "resume with training.compile=false"),
    ],
)
def test_what_a_machine_cannot_do_is_one_line(
    dataset, changed, tmp_path, monkeypatch, error, settings, message
):
    """A GPU's memory that is full, a compiler that is missing; the cure goes on with the run."""

    def fail(*_):
        raise error("no room\nand more")

    monkeypatch.setattr(DiffusionPolicy, "compile_networks", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", fail)
        with pytest.raises(UserError, match=f"no room; {message}"):
            quietly(dataset, changed(updates=1, **settings), tmp_path / "run")
    key, _, value = message.rpartition(".")[2].partition("=")
    quietly(dataset, changed(updates=1, **{key: value}), tmp_path / "run", resume=True)


def test_what_is_no_compilers_fault_is_not_said_to_be(dataset, changed, tmp_path, monkeypatch):
    """Although networks are compiled: another cure would be wrong."""

    def fail(*_):
        raise RuntimeError("of something else")

    monkeypatch.setattr(DiffusionPolicy, "compile_networks", lambda _: None)
    monkeypatch.setattr(Learner, "learn", fail)
    with pytest.raises(RuntimeError, match="of something else"):
        quietly(dataset, changed(updates=1, compile=True), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiling takes two minutes of a free core
def test_compiled_networks_learn_the_same(dataset, changed):
    """The same gradients, to rounding, with shares side by side."""
    loss, plain = gradients(dataset, changed(batch_shares=2))
    other, compiled = gradients(dataset, changed(batch_shares=2, compile=True))
    torch.testing.assert_close(other, loss)
    for one, two in zip(plain, compiled, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)


def with_errors(monkeypatch, errors):
    """Let validations find these action errors."""
    left = iter(errors)
    monkeypatch.setattr(hooks, "validate", lambda *_: (1.0, next(left)))


STOPPING = {"updates": 40, "val_every": 2, "early_stop": 2, "keep_checkpoints": 1}


def test_it_stops_early_and_keeps_the_best(dataset, changed, tmp_path, monkeypatch):
    """Two validations without a smaller error end it; best and newest checkpoint are kept."""
    with_errors(monkeypatch, [0.5, 0.4, 0.6, 0.4])
    quietly(dataset, changed(**STOPPING), tmp_path / "run")
    said = list(training_lines(tmp_path / "run"))
    names = [path.name for path in run_checkpoints(tmp_path / "run")]
    assert names == ["update_000004", "update_000008"]
    assert any("stopped   early" in line and "update_000004" in line for line in said)
    assert said[-1].endswith("update_000004")


def test_patience_is_resumed(dataset, changed, tmp_path, monkeypatch):
    """Interrupted between, it stops where it would have; then there is nothing more to do."""
    with_errors(monkeypatch, [0.5, 0.4, 0.6, 0.4])
    quietly(dataset, changed(**STOPPING), tmp_path / "run", stop_after=7)
    quietly(dataset, changed(**STOPPING), tmp_path / "run", resume=True)
    assert run_checkpoints(tmp_path / "run")[-1].name == "update_000008"
    quietly(dataset, changed(**STOPPING), tmp_path / "run", resume=True)
    assert list(training_lines(tmp_path / "run"))[-1].endswith("update_000004")


def test_early_stop_needs_a_validation(changed):
    """Refused with the recipe."""
    with pytest.raises(UserError, match="early_stop.*no validation to judge by"):
        changed(early_stop=1, val_every=0)


def test_event_files_hold_what_the_table_holds(dataset, recipe, tmp_path):
    """Losses and validations by update; a resumed run goes on with them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quietly(dataset, recipe, tmp_path / "run", stop_after=7)
    quietly(dataset, recipe, tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in events.Scalars("val_action_error")] == [6, 12]
    assert all(math.isfinite(event.value) for event in events.Scalars("val_loss"))


def test_without_tensorboard_there_is_the_table(dataset, recipe, tmp_path, monkeypatch):
    """Nothing fails where the package is missing."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    quietly(dataset, recipe, tmp_path / "run", stop_after=2)
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "loss.csv").is_file()


def test_wandb_is_refused_where_it_is_missing(dataset, changed, tmp_path, monkeypatch):
    """With the cure."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="training.wandb_project.*pip install wandb"):
        quietly(dataset, changed(wandb_project="arms"), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # the corrected command must not find a run


def test_wandb_gets_the_numbers_in_one_run(dataset, changed, tmp_path, monkeypatch):
    """A resumed training goes on with the run that it began (a stand-in for the package)."""
    begun, logged = [], []
    run = types.SimpleNamespace(
        log=lambda numbers, step: logged.append((step, numbers)), finish=lambda: None
    )
    module = types.SimpleNamespace(init=lambda **how: begun.append(how) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    recipe = changed(wandb_project="arms")
    quietly(dataset, recipe, tmp_path / "run", stop_after=7)
    quietly(dataset, recipe, tmp_path / "run", resume=True)
    assert [how["project"] for how in begun] == ["arms", "arms"]
    assert begun[0]["id"] == begun[1]["id"]
    assert [step for step, _ in logged] == [2, 4, 6, 8, 10, 12]
    assert logged[2][1].keys() == {"loss", "val_loss", "val_action_error", "seconds"}


def test_what_is_decayed():
    """Matrices only; the encoders' by their own rate, as the original trains its Transformer."""
    recipe = Recipe.load("can_image_transformer")
    policy = DiffusionPolicy(recipe, Contract.load("robomimic_can"))
    weights = dict(policy.named_parameters())
    names = {id(weight): name for name, weight in weights.items()}
    decays = {
        names[id(weight)]: group["weight_decay"]
        for group in decay_groups(weights, recipe.training)
        for weight in group["params"]
    }
    assert decays.keys() == weights.keys()
    expected = {
        "denoiser.layers.0.linear1.weight": 1e-3,
        "denoiser.layers.0.self_attn.in_proj_weight": 1e-3,
        "denoiser.layers.0.linear1.bias": 0.0,
        "denoiser.layers.0.norm1.weight": 0.0,
        "denoiser.position": 0.0,
        "denoiser.cond_position": 0.0,
    }
    assert expected.items() <= decays.items()
    kernels = {decay for name, decay in decays.items() if "encoder." in name[:8] and decay}
    assert kernels == {1e-6}
