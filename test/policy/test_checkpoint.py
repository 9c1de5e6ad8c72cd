"""Checkpoints: whole or refused."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import (
    CARD,
    CONFIG,
    CONTRACT,
    MANIFEST,
    STATE,
    STATE_TENSORS,
    WEIGHTS,
    TrainingState,
    checkpoint_hash,
    find_checkpoint,
    load_exactly,
    load_policy,
    load_training_state,
    save_checkpoint,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy


@pytest.fixture
def policy(recipe, contract, statistics):
    """A small untrained policy."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(recipe, contract)
    policy.set_statistics(statistics)
    return policy.eval()


@pytest.fixture
def saved(policy, tmp_path):
    """Its checkpoint, with a training state."""
    state = TrainingState({"weights/x": torch.arange(3.0)}, {"update": 7})
    return save_checkpoint(tmp_path / "checkpoint", policy, state=state, notes="- well trained\n")


def flip_bit(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_checkpoint_rebuilds_the_policy_alone(policy, saved, batch, tmp_path):
    """The same samples wherever it was moved; recipe, contract, statistics included."""
    moved = shutil.move(saved, tmp_path / "elsewhere")
    other = load_policy(moved)
    noise = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.sample(batch, noise=noise), policy.sample(batch, noise=noise))
    assert other.recipe == policy.recipe
    assert other.contract.hash == policy.contract.hash
    assert not other.training


def test_it_is_made_of_plain_files(saved):
    """The files of the design, no pickle, and a card that a person can read."""
    names = {path.name for path in saved.iterdir()}
    assert names == {CONFIG, CONTRACT, WEIGHTS, STATE, STATE_TENSORS, CARD, MANIFEST}
    card = (saved / CARD).read_text()
    assert "tiny" in card and "well trained" in card
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_the_training_state_comes_back(saved):
    """Tensors and plain values."""
    state = load_training_state(saved)
    assert state.values == {"update": 7}
    assert torch.equal(state.tensors["weights/x"], torch.arange(3.0))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CONTRACT, MANIFEST])
def test_one_flipped_bit_is_refused_by_file(saved, name):
    """No altered weight, recipe or contract ever runs."""
    flip_bit(saved / name)
    with pytest.raises(UserError) as caught:
        load_policy(saved)
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [STATE, STATE_TENSORS])
def test_a_damaged_training_state_stops_resuming_but_not_running(saved, name):
    """What running does not need is not looked at."""
    flip_bit(saved / name)
    load_policy(saved)
    with pytest.raises(UserError, match=f"{name}: is damaged"):
        load_training_state(saved)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CONTRACT, MANIFEST])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(saved, name, share):
    """A copy that was cut off, anywhere."""
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=name):
        load_policy(saved)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CONTRACT])
def test_missing_files_are_named(saved, name):
    """One line with the file's path."""
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"{name}: is missing"):
        load_policy(saved)


def test_another_robot_is_refused_with_the_difference(saved, contract):
    """The first keys in which the contracts differ are named; an equal meaning is accepted."""
    load_policy(saved, contract=Contract.from_text("# a comment\n" + contract.text))
    other = Contract.from_text(contract.text.replace("rate_hz: 10", "rate_hz: 20"))
    with pytest.raises(UserError, match="differ in rate_hz"):
        load_policy(saved, contract=other)


def test_a_robot_of_the_same_meaning_brings_its_own_topics_and_limits(saved, contract):
    """What was trained stays valid, and runs with what this robot's contract says."""
    topic = next(iter(contract.topics))
    text = contract.text.replace("action:", "action:\n  limits: {velocity: 0.1}")
    robot = Contract.from_text(text.replace(f"topic: {topic}", "topic: /renamed"))
    found = load_policy(saved, contract=robot).contract
    assert found.hash == contract.hash
    assert found.action.limits.velocity == 0.1 and "/renamed" in found.topics


def test_saving_again_replaces_and_leaves_nothing_behind(policy, saved):
    """No temporary directory stays, and the newer weights are there."""
    with torch.no_grad():
        next(policy.parameters()).add_(1)
    save_checkpoint(saved, policy)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert torch.equal(next(load_policy(saved).parameters()), next(policy.parameters()))
    with pytest.raises(UserError, match="is missing"):
        load_training_state(saved)


def test_a_failed_save_leaves_the_old_checkpoint(policy, saved, monkeypatch):
    """Written beside its place, renamed at the end."""
    before = checkpoint_hash(saved)
    monkeypatch.setattr(
        "diffusion_policy_ros.policy.checkpoint._write_manifest", lambda part: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(saved, policy)
    assert checkpoint_hash(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_full_disk_is_a_users_error(policy, saved, monkeypatch):
    """And the checkpoint from before stays."""
    before = checkpoint_hash(saved)

    def full(tensors, path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("diffusion_policy_ros.policy.checkpoint.save_file", full)
    with pytest.raises(UserError, match="No space left.*make room"):
        save_checkpoint(saved, policy)
    assert checkpoint_hash(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_run_is_its_newest_checkpoint(policy, tmp_path):
    """A run's directory can stand wherever a checkpoint can."""
    for update in (5, 10, 2):
        save_checkpoint(tmp_path / "checkpoints" / f"update_{update:06d}", policy)
    assert find_checkpoint(tmp_path).name == "update_000010"
    load_policy(tmp_path)


def test_where_there_is_none_it_says_so(tmp_path):
    """An empty and a missing directory differ in the message."""
    with pytest.raises(UserError, match="no checkpoint here"):
        load_policy(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        load_policy(tmp_path / "nowhere")


def test_another_format_is_refused(saved):
    """A later version's checkpoint is not guessed at."""
    manifest = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(UserError, match="format 2, this version reads 1"):
        load_policy(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("denoiser.out.bias"), "'denoiser.out.bias' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
        (lambda t: t.update({"denoiser.out.bias": torch.zeros(9)}), "is (9,), needed (8,)"),
    ],
)
def test_weights_are_loaded_by_name_or_not_at_all(policy, change, message):
    """No tensor is dropped, left over or left at random."""
    tensors = policy.state_dict()
    change(tensors)
    with pytest.raises(UserError) as caught:
        load_exactly(policy, tensors, "weights")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"{", b"\x80", b"[1]", b"[" * 100_000], ids=["json", "text", "list", "deep"]
)
def test_a_training_state_that_says_it_is_whole_is_read_with_care(saved, data):
    """A manifest that fits tells where bytes come from, not that they mean anything."""
    (saved / STATE).write_bytes(data)
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["sha256"][STATE] = hashlib.sha256(data).hexdigest()
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"{STATE}: is damaged"):
        load_training_state(saved)
