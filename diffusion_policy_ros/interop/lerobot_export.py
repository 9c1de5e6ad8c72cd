"""A checkpoint of ours as LeRobot's: config.json, weights under its names, and its processors.

LeRobot's diffusion policy is one network with one kind of encoder. What it cannot express is
refused with the reason; what it can gives the same actions. Its normalisation has one mode for a
whole state and divides by nothing where a number is constant, so our centers and spreads are
written as means and deviations, which say any of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_policy_ros.data.formats.naming import action_names, camera_names, observed_names
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.interop.foreign import reordered_film
from diffusion_policy_ros.interop.lerobot import CONFIG, STATE, WEIGHTS
from diffusion_policy_ros.interop.lerobot_names import encoder_to_lerobot, unet_to_lerobot
from diffusion_policy_ros.interop.lerobot_scaling import ACTION, EPS, POSTPROCESSOR, PREPROCESSOR
from diffusion_policy_ros.interop.official import FINAL_GROUPS
from diffusion_policy_ros.policy.backbones import RESNETS
from diffusion_policy_ros.policy.checkpoint import checkpoint_hash, load_policy, save_tensors
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1DSettings
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.eyes import ImageEncoder
from diffusion_policy_ros.policy.normalizer import ACTION as OUR_ACTION

MODES = {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
STATISTICS = (
    "policy_preprocessor_step_3_normalizer_processor.safetensors",
    "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
)


class Sampling(NamedTuple):
    """How LeRobot samples; it visits its steps `leading`.

    Attributes:
        sampler: ddim or ddpm.
        steps: K.
    """

    sampler: str
    steps: int


def export_lerobot(
    run: str | Path, out: str | Path, sampler: str | None = None, steps: int | None = None
) -> Path:
    """Write a checkpoint as a folder that LeRobot (0.4.4 or later) loads.

    Args:
        run: a checkpoint, or a run.
        out: the new folder.
        sampler: how LeRobot samples; as the recipe does where neither this nor steps is given.
        steps: how often it asks the network.

    Raises:
        UserErrors: what LeRobot cannot express, each with the reason; nothing is written then.
    """
    out = Path(out)
    if out.exists():
        raise UserError("is there already", str(out), "give another folder, or remove it")
    policy = load_policy(run)
    settings = policy.recipe.policy
    is_own = sampler is None and steps is None
    steps = settings.num_inference_steps if steps is None else steps
    sampling = Sampling(sampler or settings.sampler, steps)
    refuse_inexpressible(policy, sampling, is_own, str(run))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        _write(part, policy, sampling, checkpoint_hash(run))
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def refuse_inexpressible(
    policy: DiffusionPolicy, sampling: Sampling, is_own: bool, where: str
) -> None:
    """Refuse what LeRobot cannot express.

    Args:
        policy: what is to be exported.
        sampling: how LeRobot is to sample.
        is_own: whether that is how the recipe does.
        where: the policy's place, for messages.

    Raises:
        UserErrors: each thing with the reason.
    """
    if errors := [*_obstacles(policy), *_sampling_obstacles(policy, sampling, is_own)]:
        raise UserErrors([UserError(what, where, cure) for what, cure in errors])


Obstacles = Iterator[tuple[str, str]]


def _obstacles(policy: DiffusionPolicy) -> Obstacles:
    """What LeRobot cannot express, and what would be."""
    settings = policy.recipe.policy
    denoiser, streams = settings.denoiser, policy.contract.observations
    if not isinstance(denoiser, UNet1DSettings):
        yield f"LeRobot has no {denoiser.name}", "train a unet1d"
    elif denoiser.final_groups != FINAL_GROUPS:
        yield f"the last block has {denoiser.final_groups} groups, LeRobot's 8", "train with 8"
    elif settings.horizon % 2 ** len(denoiser.down_dims):
        factor = 2 ** len(denoiser.down_dims)
        yield f"horizon {settings.horizon}: LeRobot's is a multiple of {factor}", "train with one"
    if settings.conditioned != "global" or settings.temporal_encoder is not None:
        yield "LeRobot's condition is all frames in a row", "train with conditioning: global"
    if settings.pred_action_steps_only:
        yield "LeRobot predicts the whole horizon", "train with pred_action_steps_only: false"
    if settings.prediction_type not in ("epsilon", "sample"):
        yield f"LeRobot predicts no {settings.prediction_type}", "train with epsilon or sample"
    if settings.tasks:
        yield "LeRobot's diffusion policy is told no task", "train one of a single task"
    if policy.frames.changes_any:
        what = "its network sees poses otherwise than the robot tells them, LeRobot's does not"
        yield what, "train with policy.actions: recorded and policy.orientation: raw"
    if all(s.is_image for s in streams.values()):
        yield "LeRobot's diffusion policy needs a state", "observe one"
    if not any(s.is_image for s in streams.values()):
        yield "LeRobot's diffusion policy needs a camera", "observe one"
    sizes = {s.shape[:2] for s in streams.values() if s.is_image}
    if len(sizes) > 1:
        said = " and ".join(f"{width}x{height}" for height, width in sorted(sizes))
        yield f"LeRobot's cameras are of one size, these are {said}", "train with pictures of one"
    yield from _eyes_obstacles(policy)


def _eyes_obstacles(policy: DiffusionPolicy) -> Obstacles:
    eyes = policy.encoder.image_encoders
    first = next(iter(eyes.values()), None)
    for key, eye in eyes.items():
        settings, view = eye.settings, eye.view
        if settings.name not in RESNETS or settings.pool != "keypoints":
            what = f"{key}: LeRobot has no {settings.name} with pool {settings.pool}"
            yield what, "train a ResNet with pool: keypoints"
        elif settings.features != 2 * settings.keypoints or not settings.relu:
            what = f"{key}: LeRobot has 2 features a keypoint, and a ReLU after them"
            yield what, f"train with features: {2 * settings.keypoints} and relu: true"
        if view.corner != tuple(round(spare / 2) for spare in view.spare):
            yield f"{key}: its crop begins elsewhere than LeRobot's", "train with crop"
        if view.resized and _ratio(eye) is None:
            what = f"{key}: no share of {view.whole} is {view.size}"
            yield what, "train with crop as a share, such as 0.9"
        if eye.channels != 3:
            yield f"{key}: LeRobot's pictures have 3 channels", "leave it out"
        assert first is not None
        alike = (first.view, _kind(first)) == (view, _kind(eye))
        if not alike:
            yield f"{key}: LeRobot has one size and encoder for all cameras", "train with one"


def _kind(eye: ImageEncoder) -> tuple[Any, ...]:
    settings = eye.settings
    return settings.name, settings.norm, settings.pool, settings.keypoints


def _ratio(eye: ImageEncoder) -> float | None:
    """The share of a resized picture that LeRobot derives the same crop from."""
    (height, width), size = eye.view.whole, eye.view.size
    crop = eye.settings.crop
    shares = [crop] if isinstance(crop, float) else [size[0] / height, size[1] / width]
    found = (r for r in [*shares, 1.0] if (int(height * r), int(width * r)) == size)
    return next(found, None)


def _sampling_obstacles(policy: DiffusionPolicy, sampling: Sampling, is_own: bool) -> Obstacles:
    settings, longest = policy.recipe.policy, policy.recipe.policy.num_train_timesteps
    if sampling.sampler not in ("ddim", "ddpm"):
        yield f"LeRobot has no {sampling.sampler}", "add --sampler ddim"
    if not 1 <= sampling.steps <= longest:
        yield f"{sampling.steps} steps, trained with {longest}", f"use 1 to {longest}"
    if is_own and settings.timestep_spacing != "leading" and sampling.steps != longest:
        what = f"it visits its steps {settings.timestep_spacing}, LeRobot leading"
        cure = f"add --steps {sampling.steps} to have them leading, or --steps {longest} for all"
        yield what, cure
    if sampling.sampler == "ddim" and settings.eta:
        yield "LeRobot's DDIM adds no noise (eta)", "add --sampler ddpm"
    if sampling.sampler == "ddpm" and settings.variance != "fixed_small":
        yield f"LeRobot's DDPM has no variance {settings.variance}", "add --sampler ddim"


# --- What is written -----------------------------------------------------------------------------


def _write(part: Path, policy: DiffusionPolicy, sampling: Sampling, digest: str) -> None:
    features = _features(policy)
    _json(part / CONFIG, _config(policy, sampling, features))
    save_tensors(_weights(policy), part / WEIGHTS)
    statistics = _statistics(policy)
    for name, steps in zip(
        (PREPROCESSOR, POSTPROCESSOR), _steps(features, *STATISTICS), strict=True
    ):
        _json(part / name, {"name": name.removesuffix(".json"), "steps": steps})
    for name in STATISTICS:
        save_tensors(statistics, part / name)
    (part / "README.md").write_text(_readme(policy, digest), encoding="utf-8")


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _features(policy: DiffusionPolicy) -> dict[str, dict[str, Any]]:
    """Name -> type and shape, inputs in LeRobot's order, then the action."""
    streams = policy.contract.observations
    state = sum(s.size for s in streams.values() if not s.is_image)
    found: dict[str, dict[str, Any]] = {STATE: {"type": "STATE", "shape": [state]}}
    cameras = camera_names(policy.contract)
    for key, stream in streams.items():
        if stream.is_image:
            height, width, channels = stream.shape
            shape = [channels, height, width]
            found[cameras[key]] = {"type": "VISUAL", "shape": shape}
    found[ACTION] = {"type": "ACTION", "shape": [policy.contract.action_dim]}
    return found


def _config(
    policy: DiffusionPolicy, sampling: Sampling, features: Mapping[str, Any]
) -> dict[str, Any]:
    settings, denoiser = policy.recipe.policy, policy.recipe.policy.denoiser
    assert isinstance(denoiser, UNet1DSettings)
    eye = next(iter(policy.encoder.image_encoders.values()))
    view = eye.view
    is_cut = view.size != view.whole
    return {
        "type": "diffusion",
        "n_obs_steps": settings.n_obs_steps,
        "input_features": {k: v for k, v in features.items() if k != ACTION},
        "output_features": {ACTION: features[ACTION]},
        "device": "cpu",
        "use_amp": False,
        "horizon": settings.horizon,
        "n_action_steps": settings.n_action_steps,
        "normalization_mapping": MODES,
        "drop_n_last_frames": settings.horizon
        - settings.n_action_steps
        - settings.n_obs_steps
        + 1,
        "vision_backbone": eye.settings.name,
        "resize_shape": list(view.whole) if view.resized else None,
        "crop_ratio": _ratio(eye) if view.resized else 1.0,
        "crop_shape": list(view.size) if is_cut else None,
        "crop_is_random": eye.view.augment.random_crop,
        "pretrained_backbone_weights": None,
        "use_group_norm": eye.settings.norm == "group",
        "spatial_softmax_num_keypoints": eye.settings.keypoints,
        "use_separate_rgb_encoder_per_camera": not _is_shared(policy),
        "down_dims": list(denoiser.down_dims),
        "kernel_size": denoiser.kernel_size,
        "n_groups": denoiser.n_groups,
        "diffusion_step_embed_dim": denoiser.diffusion_step_embed_dim,
        "use_film_scale_modulation": denoiser.cond_predict_scale,
        "noise_scheduler_type": sampling.sampler.upper(),
        "num_train_timesteps": settings.num_train_timesteps,
        "beta_schedule": settings.schedule,
        "beta_start": settings.beta_start,
        "beta_end": settings.beta_end,
        "prediction_type": settings.prediction_type,
        "clip_sample": settings.clip_sample,
        "clip_sample_range": settings.clip_range,
        "num_inference_steps": sampling.steps,
        "do_mask_loss_for_padding": policy.recipe.training.mask_padding,
    }


def _is_shared(policy: DiffusionPolicy) -> bool:
    eyes = list(policy.encoder.image_encoders.values())
    return len(eyes) > 1 and all(eye is eyes[0] for eye in eyes)


def _weights(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Under LeRobot's names, the condition in its order."""
    back = torch.argsort(_places(policy))
    unet = reordered_film(policy.denoiser.state_dict(), policy.recipe.policy, back)
    found = {f"diffusion.unet.{unet_to_lerobot(name)}": tensor for name, tensor in unet.items()}
    for number, eye in enumerate(policy.encoder.image_encoders.values()):
        prefix = "diffusion.rgb_encoder."
        prefix += "" if _is_shared(policy) else f"{number}."
        found |= {prefix + name: tensor for name, tensor in encoder_to_lerobot(eye).items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def _places(policy: DiffusionPolicy) -> Tensor:
    """Of each number of our frame, where it is in LeRobot's: vectors first."""
    streams, eyes = policy.contract.observations, policy.encoder.image_encoders
    sizes = {key: eyes[key].features if s.is_image else s.size for key, s in streams.items()}
    begin, found = 0, dict[str, Tensor]()
    for key in sorted(streams, key=lambda key: streams[key].is_image):
        found[key] = torch.arange(begin, begin + sizes[key])
        begin += sizes[key]
    return torch.cat([found[key] for key in streams])


def _statistics(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Means and deviations that give our centers and spreads."""
    normalizer, streams = policy.normalizer, policy.contract.observations
    vectors = [normalizer[key] for key, s in streams.items() if not s.is_image]
    spread = torch.cat([v.spread for v in vectors]).double()
    action = normalizer[OUR_ACTION]
    found = {
        f"{STATE}.mean": torch.cat([v.center for v in vectors]),
        f"{STATE}.std": spread.where(spread != 0, 1.0) - EPS,
        f"{ACTION}.mean": action.center,
        f"{ACTION}.std": action.spread,
    }
    cameras = camera_names(policy.contract)
    for key, eye in policy.encoder.image_encoders.items():
        for name, values in (("mean", eye.settings.mean), ("std", eye.settings.std)):
            each = torch.tensor(values, dtype=torch.float64).expand(eye.channels)
            each = each - EPS if name == "std" else each
            found[f"{cameras[key]}.{name}"] = each.view(-1, 1, 1)
    return {name: tensor.detach().float().clone() for name, tensor in found.items()}


def _steps(
    features: Mapping[str, Any], before: str, after: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of the preprocessor and of the postprocessor."""
    device = {"registry_name": "device_processor", "config": {"device": "cpu"}}
    device["config"] |= {"float_dtype": None}  # type: ignore[operator]

    def scaled(name: str, file: str, told: Mapping[str, Any]) -> dict[str, Any]:
        config = {"eps": EPS, "features": told, "norm_map": MODES}
        return {"registry_name": name, "config": config, "state_file": file}

    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    batch: dict[str, Any] = {"registry_name": "to_batch_processor", "config": {}}
    return (
        [rename, batch, device, scaled("normalizer_processor", before, features)],
        [scaled("unnormalizer_processor", after, {ACTION: features[ACTION]}), device],
    )


def _readme(policy: DiffusionPolicy, digest: str) -> str:
    """What a person has to know to run it: what the numbers are."""
    contract = policy.contract
    state = ", ".join(name for own in observed_names(contract).values() for name in own)
    action = ", ".join(name for own in action_names(contract).values() for name in own)
    lines = [f"- `{name}`: {key}" for key, name in camera_names(contract).items()]
    kinds = ", ".join(f"{part.name}: {part.kind}" for part in contract.action.fields)
    return "\n".join(
        [
            f"# {policy.recipe.name}: a Diffusion Policy for {contract.name}",
            "",
            f"Exported from a checkpoint of diffusion_policy_ros, `{digest}`, for LeRobot 0.4.4",
            f"or later. {contract.rate_hz:g} frames a second; the robot is contract",
            f"`{contract.name}`, `{contract.hash}`. Units are SI, quaternions x y z w.",
            "",
            f"- `{STATE}`: {state}",
            *lines,
            f"- `{ACTION}`: {action} ({kinds})",
            "",
        ]
    )
