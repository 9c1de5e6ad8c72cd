"""LeRobot's diffusion policies: a folder with `config.json` and `model.safetensors`.

From 0.4 on normalisation is in steps of processors, each with a file of statistics; before, the
statistics were among the weights (`normalize_inputs.buffer_...`). What the steps of a processor do
is known or the import ends: a step that is left out would be another policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.interop.foreign import Camera, Foreign, Vector
from diffusion_policy_ros.interop.lerobot_names import encoder_from_lerobot, unet_from_lerobot
from diffusion_policy_ros.interop.lerobot_scaling import (
    ACTION,
    NEWER,
    PREPROCESSOR,
    Normalisation,
    affine,
    of_processors,
    of_weights,
    read_json,
    read_tensors,
)
from diffusion_policy_ros.interop.official import FINAL_GROUPS
from diffusion_policy_ros.policy.backbones import RESNETS
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1DSettings
from diffusion_policy_ros.policy.eyes import ImageEncoderSettings
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.policy.schedules import SCHEDULES

CONFIG, WEIGHTS = "config.json", "model.safetensors"
STATE = "observation.state"

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
    try:
        return _read(folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"is not laid out as LeRobot's: {first_line(error)}"
        raise UserError(what, str(folder / CONFIG), "copy the folder again") from None


def _read(folder: Path) -> Foreign:
    config = _config(folder / CONFIG)
    settings = _settings(config, folder)
    weights, digested = read_tensors(folder / WEIGHTS), [folder / CONFIG, folder / WEIGHTS]
    if (folder / PREPROCESSOR).is_file():
        scaling, files = of_processors(folder)
        digested += files
        origin = "LeRobot, 0.4 or later"
    else:
        scaling, origin = of_weights(config, weights, folder), "LeRobot, 0.3"
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
            encoders[prefix] = encoder_from_lerobot(weights, prefix, config["vision_backbone"])
        observations.append(_camera(name, feature, config, scaling, encoders[prefix], folder))
    action = _vector(ACTION, config["output_features"][ACTION], scaling, folder)
    unet = {
        unet_from_lerobot(name.removeprefix("diffusion.unet.")): tensor
        for name, tensor in weights.items()
        if name.startswith("diffusion.unet.")
    }
    _check_all_used(weights, [*encoders, "diffusion.unet."], folder)
    return Foreign(
        origin,
        settings,
        tuple(observations),
        action,
        unet,
        tuple(digested),
        tuple(_remarks(config, inputs)),
        str(config.get("license") or ""),
    )


def _config(path: Path) -> dict[str, Any]:
    given, where = read_json(path), str(path)
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
        (config["vision_backbone"], tuple(RESNETS), "vision_backbone"),
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


def _check_all_used(weights: Mapping[str, Tensor], known: list[str], folder: Path) -> None:
    known += ["normalize_inputs.", "normalize_targets.", "unnormalize_outputs."]
    for name in weights:
        if not name.startswith(tuple(known)):
            raise UserError(f"unknown tensor '{name}'", str(folder / WEIGHTS), NEWER)


def _vector(name: str, feature: Mapping[str, Any], scaling: Normalisation, folder: Path) -> Vector:
    center, spread = affine(name, feature, scaling, folder)
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
    center, spread = affine(name, feature, scaling, folder)
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
