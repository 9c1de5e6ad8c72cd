"""A checkpoint: a directory that rebuilds the policy alone, without pickle.

    config.yaml                 the recipe
    contract.yaml               the robot
    weights.safetensors         averaged weights and normaliser statistics
    training_state.safetensors  what resuming needs besides, where there is any
    training_state.json
    episodes.json               hash of each recording of its dataset -> trained, held out
    card.md                     what this is, for people
    manifest.json               SHA-256 of every other file

It is written beside its place and renamed, so a reader finds the whole or nothing; on reading,
every file is compared with its hash first, so a truncated or altered one is named instead of run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffusion_policy_ros import __version__
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe

CONFIG, CONTRACT, WEIGHTS = "config.yaml", "contract.yaml", "weights.safetensors"
STATE_TENSORS, STATE = "training_state.safetensors", "training_state.json"
CARD, MANIFEST = "card.md", "manifest.json"
EPISODES, BEST = "episodes.json", "best"
RUNS = (CONFIG, CONTRACT, WEIGHTS)  # what running needs; the rest is for training and people
FORMAT = 1

CURE = "train again, or copy the checkpoint again"


@dataclass(frozen=True)
class TrainingState:
    """What resuming needs besides the averaged weights.

    Attributes:
        tensors: weights being trained and the optimiser's moments.
        values: plain numbers and names.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def save_checkpoint(
    directory: str | Path,
    policy: DiffusionPolicy,
    *,
    state: TrainingState | None = None,
    episodes: Mapping[str, str] | None = None,
    notes: str = "",
) -> Path:
    """Write `policy` (its averaged weights) as a checkpoint; an older one there is replaced.

    Args:
        directory: where; its parents are made.
        policy: gives weights, statistics, recipe and contract.
        state: what resuming needs.
        episodes: hash of each recording -> "trained" or "held out".
        notes: Markdown lines for the card, such as data and losses.

    Returns:
        The directory.

    Raises:
        UserError: the weights cannot be written, as on a full disk; an older one stays.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = directory.with_name(f".{directory.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _write_files(part, policy, state, notes)
        if episodes is not None:
            (part / EPISODES).write_text(json.dumps(episodes, indent=1) + "\n", encoding="utf-8")
        _write_manifest(part)
        _rename_over(part, directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return directory


def _write_files(
    part: Path, policy: DiffusionPolicy, state: TrainingState | None, notes: str
) -> None:
    (part / CONFIG).write_text(policy.recipe.to_text(), encoding="utf-8")
    (part / CONTRACT).write_text(policy.contract.text, encoding="utf-8")
    save_tensors(policy.state_dict(), part / WEIGHTS)
    (part / CARD).write_text(_card(policy, notes), encoding="utf-8")
    if state is not None:
        save_tensors(state.tensors, part / STATE_TENSORS)
        text = json.dumps(state.values, indent=1, sort_keys=True)
        (part / STATE).write_text(text + "\n", encoding="utf-8")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with a new file's usual permissions.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    # Row-major, whatever layout ran them; cloned, because safetensors refuses shared memory.
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(copies, path)
    except SafetensorError as error:
        cure = "make room, or choose another folder"
        raise UserError(f"cannot be written ({error})", path.name, cure) from None
    path.chmod(mode)  # safetensors would keep it to its owner


def _write_manifest(part: Path) -> None:
    files = {path.name: sha256(path) for path in sorted(part.iterdir())}
    manifest = {"format": FORMAT, "version": __version__, "sha256": files}
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in part.iterdir():
        _sync(path)


def _rename_over(part: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    if directory.exists():
        directory.rename(old)
    part.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
    _sync(directory.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at `path`: itself, or of a run the best one, the newest where none is chosen.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or (path / WEIGHTS).is_file():
        return path
    best = path / "checkpoints" / BEST
    if (best / MANIFEST).is_file():
        return best.with_name(best.resolve().name)
    found = run_checkpoints(path)
    if found:
        return found[-1]
    what = "there is no checkpoint here" if path.exists() else "no such directory"
    raise UserError(what, str(path), f"give a directory that holds {MANIFEST}, or a run")


def choice_lines(path: str | Path) -> Iterator[str]:
    """Say which checkpoint of a run `find_checkpoint` takes, where it is not simply the newest."""
    newest, taken = run_checkpoints(path)[-1:], find_checkpoint(path)
    if newest and newest[0].name != taken.name:
        metric = Recipe.from_text(_text(taken / CONFIG), str(taken / CONFIG)).training.metric
        yield f"{path}: {taken.name}, the best by {metric}; the newest is {newest[0].name}"


def run_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints of a run directory, oldest first."""
    updates = ((p.name.removeprefix("update_"), p) for p in Path(run).glob("checkpoints/update_*"))
    # What else is there, such as a copy that somebody keeps, is none of the training's.
    found = {int(n): p for n, p in updates if n.isdecimal() and (p / MANIFEST).is_file()}
    return [found[update] for update in sorted(found)]


def load_policy(
    directory: str | Path,
    device: str | torch.device = "cpu",
    contract: Contract | None = None,
) -> DiffusionPolicy:
    """Rebuild the policy of a checkpoint, in eval mode.

    Args:
        directory: a checkpoint, or a run, see find_checkpoint.
        device: where to put it.
        contract: the robot that it is to run on, where that is known: of the same meaning, but
            its own topics, types and limits.

    Raises:
        UserError: missing, damaged, or made for another contract.
    """
    directory = find_checkpoint(directory)
    _verify(directory, RUNS)
    ours = Contract.from_text(_text(directory / CONTRACT), str(directory / CONTRACT))
    check_contract(ours, contract, str(directory))
    recipe = Recipe.from_text(_text(directory / CONFIG), str(directory / CONFIG))
    with _Blank():
        policy = DiffusionPolicy(recipe, contract or ours)
    load_exactly(policy, _read_tensors(directory / WEIGHTS), str(directory / WEIGHTS))
    return policy.to(device).eval()


class _Blank(TorchFunctionMode):
    """Leaves weights undrawn that are about to be loaded: seconds, for a large network."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        draws = getattr(func, "__module__", "") == torch.nn.init.__name__
        if draws or func in (Tensor.uniform_, Tensor.normal_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def load_training_state(directory: Path) -> TrainingState:
    """What resuming needs of a checkpoint.

    Raises:
        UserError: it is damaged, or was saved without a training state.
    """
    _verify(directory, (*RUNS, STATE_TENSORS, STATE))
    try:
        values = dict(json.loads(_text(directory / STATE)))
    except (ValueError, TypeError, RecursionError):
        raise UserError("is damaged", str(directory / STATE), CURE) from None
    return TrainingState(_read_tensors(directory / STATE_TENSORS), values)


def load_episodes(directory: str | Path) -> dict[str, str]:
    """Hash of each recording that a checkpoint's training knew -> "trained" or "held out".

    Empty where it is not known: the checkpoint is older, or was saved without.

    Raises:
        UserError: it is damaged.
    """
    directory = find_checkpoint(directory)
    if not (directory / EPISODES).is_file():
        return {}
    _verify(directory, (EPISODES,))
    try:
        found = json.loads(_text(directory / EPISODES))
        return {str(key): str(role) for key, role in found.items()}
    except (ValueError, AttributeError, RecursionError):
        raise UserError("is damaged", str(directory / EPISODES), CURE) from None


def checkpoint_hash(directory: str | Path) -> str:
    """Sixteen characters that name a checkpoint by its content, for logs and diagnostics."""
    return sha256(find_checkpoint(directory) / MANIFEST)[:16]


def check_contract(trained: Contract, robot: Contract | None, where: str) -> None:
    """Refuse to run what was trained for another robot; topics, types and limits may differ.

    Raises:
        UserError: the meanings differ; names the first keys.
    """
    if robot is None or robot.hash == trained.hash:
        return
    other = f"'{robot.name}'" if robot.name != trained.name else "the one of this name"
    what = f"trained for contract '{trained.name}', not for {other}"
    raise UserError(
        f"{what} (they differ in {trained.difference(robot)})", where, "use the contract it has"
    )


def load_exactly(policy: DiffusionPolicy, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights by name; nothing may be missing, left over, or of another shape.

    Raises:
        UserError: they do not fit; names the first that does not.
    """
    ours = policy.state_dict()
    for name in [*ours, *tensors]:
        if name not in tensors:
            raise UserError(f"'{name}' is missing", where, "use the recipe it was trained with")
        if name not in ours:
            raise UserError(
                f"unknown tensor '{name}'", where, "use the recipe it was trained with"
            )
        if ours[name].shape != tensors[name].shape:
            what = f"'{name}' is {tuple(tensors[name].shape)}, needed {tuple(ours[name].shape)}"
            raise UserError(what, where, "use the recipe it was trained with")
    policy.load_state_dict(dict(tensors), strict=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError("is damaged: it is no text", str(path), CURE) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"not readable: {error}", str(path), CURE) from None


def _verify(directory: Path, needed: tuple[str, ...]) -> None:
    hashes = _read_manifest(directory)
    for name in needed:
        path = directory / name
        if name not in hashes or not path.is_file():
            raise UserError("is missing", str(path), CURE)
        if sha256(path) != hashes[name]:
            raise UserError("is damaged: its SHA-256 is not the manifest's", str(path), CURE)


def _read_manifest(directory: Path) -> dict[str, str]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        hashes = {str(name): str(value) for name, value in manifest["sha256"].items()}
    except FileNotFoundError:
        raise UserError("is missing", str(path), CURE) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError("is damaged", str(path), CURE) from None
    if found != FORMAT:
        what = f"format {found}, this version reads {FORMAT}"
        raise UserError(what, str(path), "install the version that wrote it")
    return hashes


def _card(policy: DiffusionPolicy, notes: str) -> str:
    settings, contract = policy.recipe.policy, policy.contract
    observations = ", ".join(
        f"{key} {'x'.join(map(str, stream.shape))}"
        for key, stream in contract.observations.items()
    )
    parameters = sum(weight.numel() for weight in policy.parameters())
    return f"""# {policy.recipe.name}: a Diffusion Policy for {contract.name}

Made with diffusion_policy_ros {__version__}.
Runs with `policy_node --ros-args -p checkpoint:=DIR`.

- Robot: contract `{contract.name}`, hash `{contract.hash}`, {contract.rate_hz:g} Hz
- Observes {settings.n_obs_steps} frames of: {observations}
- Predicts {settings.horizon} actions of {contract.action_dim} values \
({", ".join(contract.action_names)}), executes {settings.n_action_steps}
- Network: {settings.denoiser.name}, {parameters:,} parameters with the encoders
- Diffusion: {settings.schedule}, {settings.num_train_timesteps} steps, predicts the \
{settings.prediction_type}; by default {settings.num_inference_steps} {settings.sampler} steps
{notes}"""
