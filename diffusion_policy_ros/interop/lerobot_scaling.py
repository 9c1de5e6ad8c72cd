"""How LeRobot scales numbers: steps of processors with their statistics, or weights of before.

What the steps do is known or the import ends: a step that is left out would be another policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
ACTION = "action"
EPS = 1e-8  # what LeRobot divides by where a range is nothing
NEWER = "install a newer diffusion_policy_ros"

Stats = Mapping[str, Mapping[str, Tensor]]
"""Feature -> min, max, mean, std, q01, ... -> its values."""


class Normalisation(NamedTuple):
    """How a checkpoint scales its numbers.

    Attributes:
        stats: of inputs and action.
        modes: type of a feature -> how it is scaled.
        eps: see EPS.
        is_old: 0.3, which adds eps to every range instead of only to none.
        aliases: name of a feature -> what its dataset called it.
    """

    stats: Stats
    modes: Mapping[str, str]
    eps: float
    is_old: bool
    aliases: Mapping[str, str]


def read_json(path: Path) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        UserError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("is missing", str(path), "copy the whole folder") from None
    except (ValueError, RecursionError):
        raise UserError("is no JSON", str(path), "copy the folder again") from None
    if not isinstance(found, dict):
        raise UserError("is not what LeRobot writes", str(path), "copy the folder again")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, under the names of a network that is not compiled.

    Raises:
        UserError: it is missing, or damaged.
    """
    if not path.is_file():
        raise UserError("is missing", str(path), "copy the whole folder")
    try:
        return {name.replace("_orig_mod.", ""): t for name, t in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        what = f"cannot be read: {str(error).splitlines()[0]}"
        raise UserError(what, str(path), "copy the file again") from None


STEPS: dict[str, tuple[str, ...]] = {
    "rename_observations_processor": ("rename_map",),
    "to_batch_processor": (),
    "device_processor": ("device", "float_dtype"),
    "normalizer_processor": ("eps", "features", "norm_map"),
    "unnormalizer_processor": ("eps", "features", "norm_map"),
}
"""Step of a processor -> what of its configuration is understood."""


def _odd(kind: str, config: Mapping[str, Any]) -> str:
    """What of a step's configuration is not understood; empty where all is."""
    for key, value in config.items():
        if key not in STEPS[kind] and value is not None:
            return f"{key}: {json.dumps(value)}"
    dtype = config.get("float_dtype")
    return "" if dtype in (None, "float32") else f"float_dtype: {dtype}"


def of_processors(folder: Path) -> tuple[Normalisation, list[Path]]:
    """What the processors of 0.4 and later do, and the files that say so.

    Raises:
        UserError: a step is not understood, or damaged.
    """
    files, stats = list[Path](), dict[str, dict[str, Tensor]]()
    modes: dict[str, str] = {}
    aliases: dict[str, str] = {}
    eps = EPS
    for name, needed in ((PREPROCESSOR, "normalizer"), (POSTPROCESSOR, "unnormalizer")):
        steps = list(_steps(folder / name))
        files.append(folder / name)
        if f"{needed}_processor" not in [kind for kind, _, _ in steps]:
            raise UserError(f"no {needed}_processor", str(folder / name), "copy the whole folder")
        for kind, config, state in steps:
            aliases |= {new: old for old, new in config.get("rename_map", {}).items()}
            if not kind.endswith("normalizer_processor"):
                continue
            given = {str(k): str(v) for k, v in config.get("norm_map", {}).items()}
            if modes and given != modes:
                what = "norm_map is another one than the preprocessor's"
                raise UserError(what, str(folder / name), "copy the whole folder")
            modes, eps = given, float(config.get("eps", EPS))
            files.append(folder / state)
            for key, tensor in read_tensors(folder / state).items():
                feature, _, statistic = key.rpartition(".")
                if (feature == ACTION) == (needed == "unnormalizer"):
                    stats.setdefault(feature, {})[statistic] = tensor
    return Normalisation(stats, modes, eps, False, aliases), files


def _steps(path: Path) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Each step's name, configuration and file."""
    try:
        steps = [
            (s.get("registry_name", s.get("class", "")), s.get("config", {}), s.get("state_file"))
            for s in read_json(path)["steps"]
        ]
    except (AttributeError, KeyError, TypeError):
        raise UserError("has no steps", str(path), "copy the folder again") from None
    for kind, config, state in steps:
        if kind not in STEPS:
            what = f"the step '{kind}' is unknown, and would be another policy if left out"
            known = "only " + ", ".join(STEPS)
            raise UserError(what, str(path), f"{known} can be imported; {NEWER}")
        if odd := _odd(kind, config):
            what = f"the step '{kind}' has {odd}, which is not known"
            raise UserError(what, str(path), NEWER)
        if kind.endswith("normalizer_processor") and not isinstance(state, str):
            raise UserError(f"the step '{kind}' has no state_file", str(path), "copy it again")
        if isinstance(state, str) and Path(state).name != state:
            what = f"the step '{kind}' has its statistics in another folder, '{state}'"
            raise UserError(what, str(path), "copy the folder again")
        yield kind, config, state or ""


def of_weights(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> Normalisation:
    """Statistics of 0.3 among the weights, where their names have lost their dots.

    Raises:
        UserError: there are none.
    """
    stats = {}
    names = [("normalize_inputs", name) for name in config["input_features"]]
    for group, name in [*names, ("unnormalize_outputs", ACTION)]:
        prefix = f"{group}.buffer_{name.replace('.', '_')}."
        stats[name] = {
            key.removeprefix(prefix): tensor
            for key, tensor in weights.items()
            if key.startswith(prefix)
        }
    if not any(stats.values()):
        what = f"there is no {PREPROCESSOR}, and there are no statistics among the weights"
        raise UserError(what, str(folder), "copy the whole folder; without them it cannot run")
    return Normalisation(stats, config["normalization_mapping"], EPS, True, {})


LIMITS = {
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
    "MEAN_STD": ("mean", "std"),
}
"""Mode -> its statistics."""


def affine(
    name: str, feature: Mapping[str, Any], scaling: Normalisation, folder: Path
) -> tuple[Tensor, Tensor]:
    """Center and spread of a feature, each (values,) or (channels,); float64.

    A constant number (its range is nothing) is divided by 1e-8 there: -1, or with mean and
    deviation 0, where it is what it was, and millions where it is not. Here it is not divided, and
    as an action it is the constant.

    Raises:
        UserError: its statistics are missing, or of another size.
    """
    mode = scaling.modes.get(feature["type"], "IDENTITY")
    size = feature["shape"][0]
    if mode == "IDENTITY":
        return _full(size, 0.0), _full(size, 1.0)
    if mode not in LIMITS:
        cure = did_you_mean(mode, [*LIMITS, "IDENTITY"])
        raise UserError(f"normalization '{mode}' is unknown", str(folder), cure)
    first, second = (_statistic(name, key, size, scaling, folder) for key in LIMITS[mode])
    is_action = feature["type"] == "ACTION"
    constant = torch.full_like(first, 0.0 if is_action else 1.0)  # an input's spread: not divided
    if mode == "MEAN_STD":
        spread = second if is_action else second + scaling.eps
        return first, spread.where((second != 0) | (feature["type"] == "VISUAL"), constant)
    reach = second - first
    widened = reach + scaling.eps if scaling.is_old and not is_action else reach
    spread = (widened / 2).where(reach != 0, constant)
    return first + spread, spread


def _full(size: int, value: float) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64)


def _statistic(name: str, key: str, size: int, scaling: Normalisation, folder: Path) -> Tensor:
    found = scaling.stats.get(name, {}).get(key)
    if found is None:
        what = f"the statistics have no '{key}' of '{name}', so LeRobot left it as it is"
        cure = "give it the statistics of its dataset, or IDENTITY in its normalization_mapping"
        raise UserError(what, str(folder), cure)
    value = found.double().flatten()
    if len(value) != size or not value.isfinite().all():
        what = f"'{key}' of '{name}' has {len(value)} values, or is not finite; {size} are meant"
        raise UserError(what, str(folder), "train again, or copy the folder again")
    return value
