"""Contracts, recipes, checkpoints, datasets and figures, damaged, and what reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.history import History
from diffusion_policy_ros.policy.checkpoint import (
    MANIFEST,
    RUNS,
    WEIGHTS,
    TrainingState,
    load_policy,
    load_training_state,
    save_checkpoint,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.shipped import config_names, config_path
from fuzzing.bags import CONTRACT, make_mcaps
from fuzzing.damage import Source, damaged, damaged_text

TINY = """
policy:
  num_inference_steps: 2
  denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}
  image_encoder: {name: small_conv, keypoints: 4, features: 0}
"""
SMALL = Contract.load("mini_lift_state")
LARGEST_NET = 600
"""Recipes with greater numbers are read, but not built: who asks for a large network gets one."""


def shipped(folder: str) -> Callable[[Path], list[str]]:
    """The texts of a folder of config/."""
    return lambda _: [
        config_path(folder, f"{name}.yaml").read_text() for name in config_names(folder)
    ]


def damage_file(base: list[str], source: Source, _number: int, folder: Path) -> Path:
    """One of them, damaged, in a file."""
    path = folder / "file.yaml"
    path.write_bytes(damaged_text(source.choice(base), source))
    return path


def read_contract(path: Path) -> Any:
    """Read it and what is made of it."""
    contract = Contract.load(path)
    History(contract, 2)
    Player(contract)
    return contract.hash, contract.action_names, contract.recorded_topics, contract.period_ns


def read_recipe(path: Path) -> Any:
    """Read it, write it, read that; build the network unless it is large."""
    recipe = Recipe.load(path)
    Sampling.of(recipe.policy)
    net = json.dumps(dataclasses.asdict(recipe.policy))
    sizes = [int(n) for n in re.findall(r"(?<![\w.])\d+(?![\w.])", net)]
    if max(sizes, default=0) <= LARGEST_NET:
        DiffusionPolicy(recipe, SMALL)
    return Recipe.from_text(recipe.to_text())


# Checkpoints


def make_checkpoint(root: Path) -> Path:
    """A small one, with a training state."""
    policy = DiffusionPolicy(Recipe.from_text(TINY), SMALL)
    state = TrainingState(dict(policy.state_dict()), {"update": 3, "seed": [1, 2]})
    return save_checkpoint(root / "policy", policy, state=state)


def damage_checkpoint(base: Path, source: Source, _number: int, folder: Path) -> Path:
    """A file is damaged, lost, or another one's; mostly the manifest says that it is whole."""
    path = folder / "policy"
    shutil.copytree(base, path)
    file = source.choice(sorted(path.iterdir()))
    way = source.random()
    if way < 0.05:
        file.unlink()
    elif way < 0.1:
        file.write_bytes(source.choice(sorted(base.iterdir())).read_bytes())
    elif file.suffix == ".yaml":
        file.write_bytes(damaged_text(file.read_text(), source))
    elif file.suffix == ".safetensors" and way < 0.5:
        file.write_bytes(_damaged_head(file.read_bytes(), source))
    else:
        file.write_bytes(damaged(file.read_bytes(), source))
    if file.name != MANIFEST and source.random() < 0.8:
        manifest = json.loads((path / MANIFEST).read_text())
        for other in path.iterdir():
            if other.name in manifest["sha256"]:
                manifest["sha256"][other.name] = hashlib.sha256(other.read_bytes()).hexdigest()
        (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def _damaged_head(data: bytes, source: Source) -> bytes:
    """A tensor's name, type, shape or place is another one's."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    a, b = source.sample([name for name in head if name != "__metadata__"], 2)
    part = source.choice(("name", "dtype", "shape", "data_offsets"))
    if part == "name":
        head[a], head[b] = head[b], head[a]
    else:
        values = {
            "dtype": source.choice(("I64", "F16", "BF16", "BOOL", "X")),
            "shape": source.choice(([], [0], [2**40], [-1], head[b]["shape"])),
            "data_offsets": source.choice(([0, 4], [0, 2**62], [8, 0], head[b]["data_offsets"])),
        }
        head[a][part] = values[part]
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def read_checkpoint(path: Path) -> Any:
    """Load it to run, and to resume."""
    failed: list[UserError] = []
    for read in (load_policy, load_training_state):
        try:
            _refuse_large(path)
            read(path)
        except UserError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return sorted(file.name for file in path.iterdir())


def _refuse_large(path: Path) -> None:
    """As for recipes: whoever asks for a large network gets one."""
    known = set(_large(f"{Recipe.from_text(TINY).to_text()}{SMALL.text}".encode()))
    for name in RUNS:
        file = path / name
        if name != WEIGHTS and file.is_file() and set(_large(file.read_bytes())) - known:
            raise UserError("large numbers are not tried")


def _large(text: bytes) -> list[bytes]:
    return re.findall(rb"[1-9][\d_]{3,}|0x[0-9a-f]{3,}", text)


def make_dataset(root: Path) -> Path:
    """One of one bag."""
    convert([make_mcaps(root)[0]], CONTRACT, root / "dataset", options=Options(keep_idle=True))
    return root / "dataset"


def damage_dataset(base: Path, source: Source, _number: int, folder: Path) -> Path:
    """Its index is damaged, or the head of an array."""
    path = folder / "dataset"
    shutil.copytree(base, path)
    file = source.choice([f for f in sorted(path.rglob("*")) if f.is_file() and f.stat().st_size])
    data = file.read_bytes()
    if file.suffix == ".yaml":
        file.write_bytes(damaged_text(data.decode(), source))
    else:
        file.write_bytes(damaged(data[:256], source) + data[256:])
    return path


def read_dataset(path: Path) -> Any:
    """Statistics and the first and last window."""
    windows = WindowDataset(path, 2, 8)
    windows.statistics()
    return {key: array.shape for key, array in windows.batch([0, len(windows) - 1]).items()}


def make_figures(_root: Path) -> str:
    """Those of a replay of nothing."""
    return json.dumps(
        {"format": 1, "tolerances": {"actions": 1e-4}, "error": {}, "frames": {},
         "first_actions": [[[0.0]]]}
    )  # fmt: skip


def damage_figures(base: str, source: Source, _number: int, folder: Path) -> Path:
    """In a file, damaged."""
    path = folder / "replay.json"
    path.write_bytes(damaged_text(base, source))
    return path
