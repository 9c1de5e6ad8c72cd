"""LeRobot's diffusion policies: a folder with `config.json` and `model.safetensors`.

From 0.4 on normalisation is in steps of processors, each with a file of statistics; before, the
statistics were among the weights (`normalize_inputs.buffer_...`). What the steps of a processor do
is known or the import ends: a step that is left out would be another policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.interop.foreign import Camera, Foreign, Vector
from diffusion_policy_ros.interop.official import FINAL_GROUPS, unet1d_name
from diffusion_policy_ros.policy.backbones import RESNETS
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1DSettings
from diffusion_policy_ros.policy.eyes import ImageEncoderSettings
from diffusion_policy_ros.policy.pretrained import resnet_name
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.policy.schedules import SCHEDULES

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ACTION = "observation.state", "action"
EPS = 1e-8  # what LeRobot divides by where a range is nothing
NEWER = "install a newer diffusion_policy_ros"

# Later versions write these keys, too; a configuration without them means:
LATER = {"resize_shape": None, "crop_ratio": 1.0, "use_peft": False}
USED = {
    *("type", "n_obs_steps", "horizon", "n_action_steps", "input_features", "output_features"),
    *("normalization_mapping", "vision_backbone", "crop_shape", "use_group_norm"),
    *("spatial_softmax_num_keypoints", "use_separate_rgb_encoder_per_camera", "down_dims"),
    *("kernel_size", "n_groups", "diffusion_step_embed_dim", "use_film_scale_modulation"),
    *("noise_scheduler_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end"),
    *("prediction_type", "clip_sample", "clip_sample_range", "num_inference_steps"),
}
WITHOUT_EFFECT = {
    *("device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license"),
    *("pretrained_path", "pretrained_revision", "drop_n_last_frames", "crop_is_random"),
    *("pretrained_backbone_weights", "gradient_checkpointing", "compile_model", "compile_mode"),
    *("do_mask_loss_for_padding", "optimizer_lr", "optimizer_betas", "optimizer_eps"),
    *("optimizer_weight_decay", "scheduler_name", "scheduler_warmup_steps"),
    "policy_action_contract",
}
"""What does not change the numbers that a trained policy gives."""

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


def find_lerobot(path: Path) -> Path | None:
    """The folder of a LeRobot policy at `path`: itself, or of a run the newest."""
    runs = sorted(path.glob("checkpoints/[0-9]*/pretrained_model"))
    last = path / "checkpoints" / "last" / "pretrained_model"
    for folder in (path, path / "pretrained_model", last, *reversed(runs)):
        if (folder / CONFIG).is_file():
            return folder
    return None


def read_lerobot(folder: Path) -> Foreign:
    """The policy of a folder.

    Raises:
        UserError: it is another policy than a diffusion policy, or has something that would make
            it another one if it was left out.
    """
    config = _config(folder / CONFIG)
    weights, digested = _weights(folder / WEIGHTS), [folder / CONFIG, folder / WEIGHTS]
    if (folder / PREPROCESSOR).is_file():
        scaling, files = _of_processors(folder)
        digested += files
        origin = "LeRobot, 0.4 or later"
    else:
        scaling, origin = _of_weights(config, weights, folder), "LeRobot, 0.3"
    inputs = _inputs(config, folder / CONFIG)
    separate = config["use_separate_rgb_encoder_per_camera"]
    encoders: dict[str, Mapping[str, Tensor]] = {}
    observations: list[Vector | Camera] = []
    for name, feature in inputs:
        if feature["type"] != "VISUAL":
            observations.append(_vector(name, feature, scaling, folder))
            continue
        number = len([o for o in observations if isinstance(o, Camera)])
        prefix = f"diffusion.rgb_encoder.{number}." if separate else "diffusion.rgb_encoder."
        if prefix not in encoders:
            encoders[prefix] = _encoder(weights, prefix, config["vision_backbone"], folder)
        observations.append(_camera(name, feature, config, scaling, encoders[prefix], folder))
    action = _vector(ACTION, config["output_features"][ACTION], scaling, folder)
    unet = {
        unet1d_name(_official(name.removeprefix("diffusion.unet."))): tensor
        for name, tensor in weights.items()
        if name.startswith("diffusion.unet.")
    }
    _check_all_used(weights, [*encoders, "diffusion.unet."], folder)
    return Foreign(
        origin,
        _settings(config, folder),
        tuple(observations),
        action,
        unet,
        tuple(digested),
        tuple(_remarks(config, inputs)),
        str(config.get("license") or ""),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("is missing", str(path), "copy the whole folder") from None
    except (ValueError, RecursionError):
        raise UserError("is no JSON", str(path), "copy the folder again") from None
    if not isinstance(found, dict):
        raise UserError("is not what LeRobot writes", str(path), "copy the folder again")
    return found


def _config(path: Path) -> dict[str, Any]:
    given, where = _json(path), str(path)
    if "input_shapes" in given:
        cure = "load and save it once with LeRobot 0.3"
        raise UserError("is a configuration of 2024", where, cure)
    if given.get("type") != "diffusion":
        what = f"is a policy of type '{given.get('type')}'"
        raise UserError(what, where, "only 'diffusion' can be imported")
    if given.get("use_peft"):
        raise UserError("use_peft: only an adapter is saved", where, "merge it into the policy")
    for key in given:
        if key not in USED | WITHOUT_EFFECT | LATER.keys():
            raise UserError(f"unknown key '{key}'", where, NEWER)
    full = {**LATER, **given}
    if missing := sorted(USED - full.keys()):
        raise UserError(f"no '{missing[0]}'", where, "load and save it once with its LeRobot")
    return full


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError("is missing", str(path), "copy the whole folder")
    try:
        return {name.replace("_orig_mod.", ""): t for name, t in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        what = f"cannot be read: {str(error).splitlines()[0]}"
        raise UserError(what, str(path), "copy the file again") from None


def _inputs(config: Mapping[str, Any], where: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Features in the order of the condition: state, cameras, environment."""
    features = config["input_features"]
    try:
        kinds = {name: feature["type"] for name, feature in features.items()}
        shapes = [list(map(int, f["shape"])) for f in features.values()]
        action = config["output_features"].get(ACTION)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError("input_features are not what LeRobot writes", str(where)) from None
    if kinds.get(STATE) != "STATE" or action is None or not all(shapes):
        what = f"has no '{STATE}' or no '{ACTION}'"
        raise UserError(what, str(where), "LeRobot's diffusion policies need both")
    cameras = [name for name, kind in kinds.items() if kind == "VISUAL"]
    environment = [name for name, kind in kinds.items() if kind == "ENV"][:1]
    return [(name, features[name]) for name in [STATE, *cameras, *environment]]


def _remarks(config: Mapping[str, Any], inputs: list[tuple[str, Any]]) -> Iterator[str]:
    used = {name for name, _ in inputs}
    for name in config["input_features"]:
        if name not in used:
            yield f"{name} is in its configuration, but LeRobot's network does not look at it"
    steps = config["num_inference_steps"] or config["num_train_timesteps"]
    if config["noise_scheduler_type"] == "DDPM" and steps > 20:
        yield f"samples with {steps} DDPM steps; on a robot ddim with 10 may be as good"


def _settings(config: Mapping[str, Any], folder: Path) -> PolicySettings:
    where = str(folder / CONFIG)
    sampler = str(config["noise_scheduler_type"]).lower()
    for value, known, key in (
        (sampler, ("ddpm", "ddim"), "noise_scheduler_type"),
        (config["beta_schedule"], tuple(SCHEDULES), "beta_schedule"),
        (config["prediction_type"], ("epsilon", "sample"), "prediction_type"),
    ):
        if value not in known:
            raise UserError(f"{key} '{value}' is unknown", where, did_you_mean(value, known))
    denoiser = UNet1DSettings(
        down_dims=tuple(config["down_dims"]),
        kernel_size=config["kernel_size"],
        n_groups=config["n_groups"],
        final_n_groups=FINAL_GROUPS,
        diffusion_step_embed_dim=config["diffusion_step_embed_dim"],
        cond_predict_scale=config["use_film_scale_modulation"],
    )
    return PolicySettings(
        n_obs_steps=config["n_obs_steps"],
        horizon=config["horizon"],
        n_action_steps=config["n_action_steps"],
        prediction_type=config["prediction_type"],
        schedule=config["beta_schedule"],
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        sampler=sampler,  # type: ignore[arg-type]
        num_inference_steps=config["num_inference_steps"] or config["num_train_timesteps"],
        timestep_spacing="leading",
        clip_sample=config["clip_sample"],
        clip_range=config["clip_sample_range"],
        denoiser=denoiser,
    )


# --- Networks' names -----------------------------------------------------------------------------


def _official(name: str) -> str:
    """LeRobot's name of a U-Net's tensor -> the original's."""
    name = re.sub(r"(^|\.)conv([12])\.block\.", _block, name)
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.(weight|bias)$", r"\1.conv.\2", name)


def _block(found: re.Match[str]) -> str:
    return f"{found[1]}blocks.{int(found[2]) - 1}.block."


def _encoder(
    weights: Mapping[str, Tensor], prefix: str, backbone: str, folder: Path
) -> dict[str, Tensor]:
    """Weights of an image encoder under our names."""
    if backbone not in RESNETS:
        cure = "only " + ", ".join(RESNETS) + " can be imported"
        raise UserError(f"vision_backbone '{backbone}'", str(folder / CONFIG), cure)
    found = {}
    for name, tensor in weights.items():
        if not name.startswith(prefix):
            continue
        part, _, rest = name.removeprefix(prefix).partition(".")
        if part == "backbone":
            ours = resnet_name(rest, backbone)
            if ours is not None:
                found[f"backbone.{ours}"] = tensor
        elif rest.startswith("nets."):
            found[f"to_keypoints.{rest.removeprefix('nets.')}"] = tensor
        elif part == "out":
            found[f"project.{rest}"] = tensor
    return found


def _check_all_used(weights: Mapping[str, Tensor], known: list[str], folder: Path) -> None:
    known += ["normalize_inputs.", "normalize_targets.", "unnormalize_outputs."]
    for name in weights:
        if not name.startswith(tuple(known)):
            raise UserError(f"unknown tensor '{name}'", str(folder / WEIGHTS), NEWER)


# --- Normalisation -------------------------------------------------------------------------------


def _ignored(config: Mapping[str, Any]) -> str:
    return ""


def _device(config: Mapping[str, Any]) -> str:
    kind = config.get("float_dtype")
    return "" if kind in (None, "float32") else f"float_dtype '{kind}'"


def _normaliser(config: Mapping[str, Any]) -> str:
    keys = config.get("normalize_observation_keys")
    return "" if keys is None else "normalize_observation_keys"


STEPS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "rename_observations_processor": _ignored,
    "to_batch_processor": _ignored,
    "device_processor": _device,
    "normalizer_processor": _normaliser,
    "unnormalizer_processor": _ignored,
}
"""Step of a processor -> what of its configuration is not understood."""


def _of_processors(folder: Path) -> tuple[Normalisation, list[Path]]:
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
            for key, tensor in _weights(folder / state).items():
                feature, _, statistic = key.rpartition(".")
                if (feature == ACTION) == (needed == "unnormalizer"):
                    stats.setdefault(feature, {})[statistic] = tensor
    return Normalisation(stats, modes, eps, False, aliases), files


def _steps(path: Path) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Each step's name, configuration and file."""
    try:
        steps = [
            (s.get("registry_name", s.get("class", "")), s.get("config", {}), s.get("state_file"))
            for s in _json(path)["steps"]
        ]
    except (AttributeError, KeyError, TypeError):
        raise UserError("has no steps", str(path), "copy the folder again") from None
    for kind, config, state in steps:
        if kind not in STEPS:
            what = f"the step '{kind}' is unknown, and would be another policy if left out"
            known = "only " + ", ".join(STEPS)
            raise UserError(what, str(path), f"{known} can be imported; {NEWER}")
        if odd := STEPS[kind](config):
            what = f"the step '{kind}' has {odd}, which is not known"
            raise UserError(what, str(path), NEWER)
        if kind.endswith("normalizer_processor") and not isinstance(state, str):
            raise UserError(f"the step '{kind}' has no state_file", str(path), "copy it again")
        if isinstance(state, str) and Path(state).name != state:
            what = f"the step '{kind}' has its statistics in another folder, '{state}'"
            raise UserError(what, str(path), "copy the folder again")
        yield kind, config, state or ""


def _of_weights(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> Normalisation:
    """Statistics of 0.3, whose names have lost their dots."""
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


def _affine(
    name: str, feature: Mapping[str, Any], scaling: Normalisation, folder: Path
) -> tuple[Tensor, Tensor]:
    """Center and spread of a feature, each (values,) or (channels,); float64.

    A constant number (its range is nothing) is divided by 1e-8 there: -1, or with mean and
    deviation 0, where it is what it was, and millions where it is not. Here it is not divided, and
    as an action it is the constant.
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
    if mode == "MEAN_STD":
        spread = second if is_action else second + scaling.eps
        return first, spread.where((second != 0) | (feature["type"] == "VISUAL"), 0.0 * spread)
    reach = second - first
    widened = reach + scaling.eps if scaling.is_old and not is_action else reach
    still = reach == 0
    center = (first + widened / 2).where(~still, first if is_action else first + 1)
    return center, (widened / 2).where(~still, 0.0 * reach)


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


def _vector(name: str, feature: Mapping[str, Any], scaling: Normalisation, folder: Path) -> Vector:
    center, spread = _affine(name, feature, scaling, folder)
    return Vector(name, center.float(), spread.float(), _aliases(name, scaling))


def _aliases(name: str, scaling: Normalisation) -> tuple[str, ...]:
    return (scaling.aliases[name],) if name in scaling.aliases else ()


def _camera(
    name: str,
    feature: Mapping[str, Any],
    config: Mapping[str, Any],
    scaling: Normalisation,
    weights: Mapping[str, Tensor],
    folder: Path,
) -> Camera:
    center, spread = _affine(name, feature, scaling, folder)
    if not (spread > 0).all():
        what = f"a channel of '{name}' was the same in all pictures"
        raise UserError(what, str(folder), "train again with other statistics, such as ImageNet's")
    resize, crop = config["resize_shape"], config["crop_shape"]
    if resize and config["crop_ratio"] == 1.0:
        crop = None
    keypoints = config["spatial_softmax_num_keypoints"]
    settings = ImageEncoderSettings(
        name=config["vision_backbone"],
        norm="group" if config["use_group_norm"] else "frozen",
        resize=tuple(resize or ()),
        crop=tuple(crop) if crop else 1.0,
        mean=tuple(center.tolist()),
        std=tuple(spread.tolist()),
        keypoints=keypoints,
        features=2 * keypoints,
        relu=True,
    )
    channels, height, width = feature["shape"]
    shape = (height, width, channels)
    return Camera(name, shape, settings, weights, _aliases(name, scaling))
