"""Checkpoints of the original (real-stanford/diffusion_policy): a `.ckpt` with its configuration.

It is read by `TorchFile`, without unpickling; the configuration is OmegaConf's objects, of which
only the data are taken. The policy is `ema_model` where `training.use_ema` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.interop.foreign import Camera, Foreign, Vector
from diffusion_policy_ros.interop.official import (
    DUMMY,
    TRANSFORMER_DEFAULTS,
    UNET1D_DEFAULTS,
    UNUSED_LOCAL,
    Arguments,
    arguments,
    transformer_name,
    transformer_settings,
    unet1d_name,
    unet1d_settings,
)
from diffusion_policy_ros.interop.pickles import Made
from diffusion_policy_ros.interop.torch_file import StoredTensor, TorchFile
from diffusion_policy_ros.policy.eyes import ImageEncoderSettings
from diffusion_policy_ros.policy.pretrained import resnet_name
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.policy.schedules import SCHEDULES

DEEPEST, MOST = 50, 100_000
"""Levels and values of a configuration; one that has more is none."""

REQUIRED = ("horizon", "n_action_steps", "n_obs_steps", "noise_scheduler")
# What a policy's constructor takes besides, and its defaults.
LOWDIM = {"model": None, "obs_dim": None, "action_dim": None, "pred_action_steps_only": False}
IMAGE = {
    "shape_meta": None,
    "crop_shape": (76, 76),
    "obs_encoder_group_norm": False,
    "eval_fixed_crop": False,
}
UNET = {
    "diffusion_step_embed_dim": 256,
    "down_dims": (256, 512, 1024),
    "kernel_size": 5,
    "n_groups": 8,
    "cond_predict_scale": True,
}
TRANSFORMER = {
    "n_layer": 8,
    "n_cond_layers": 0,
    "n_head": 4,
    "n_emb": 256,
    "p_drop_emb": 0.0,
    "p_drop_attn": 0.3,
    "causal_attn": True,
    "time_as_cond": True,
    "pred_action_steps_only": False,
}


class Kind(NamedTuple):
    """A class of policies.

    Attributes:
        defaults: its constructor's arguments.
        is_unet: U-Net or Transformer.
        has_cameras: image policy or low-dimensional.
    """

    defaults: Mapping[str, Any]
    is_unet: bool
    has_cameras: bool


POLICIES = {
    "DiffusionUnetLowdimPolicy": Kind(
        {
            **LOWDIM,
            "obs_as_local_cond": False,
            "obs_as_global_cond": False,
            "oa_step_convention": False,
        },
        is_unet=True,
        has_cameras=False,
    ),
    "DiffusionTransformerLowdimPolicy": Kind(
        {**LOWDIM, "obs_as_cond": False}, is_unet=False, has_cameras=False
    ),
    "DiffusionUnetHybridImagePolicy": Kind(
        {**IMAGE, **UNET, "obs_as_global_cond": True}, is_unet=True, has_cameras=True
    ),
    "DiffusionTransformerHybridImagePolicy": Kind(
        {**IMAGE, **TRANSFORMER, "obs_as_cond": True}, is_unet=False, has_cameras=True
    ),
}
REFUSED = {
    "DiffusionUnetTimmPolicy": "its encoder is timm's CLIP and it observes poses relative to the "
    "episode's start, which no stream of a contract tells",
    "DiffusionUnetImagePolicy": "its encoder pools and normalises pictures in its own way",
    "DiffusionUnetVideoPolicy": "its encoder is of videos",
}
"""Class -> why it cannot be imported."""


def read_original(path: Path) -> Foreign:
    """The policy of a `.ckpt`.

    Raises:
        UserError: it is another project's, damaged, hostile, or of a policy that cannot be
            expressed here.
    """
    with TorchFile(path) as file:
        try:
            return _read(file, path)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"its configuration is not laid out as diffusion_policy's: {first_line(error)}"
            raise UserError(what, str(path), _CURE) from None


def _read(file: TorchFile, path: Path) -> Foreign:
    config, where = _config(file, path), str(path)
    kind, given = _kind(config["policy"], where)
    use_ema = bool(config.get("training", {}).get("use_ema"))
    state = _state(file, "ema_model" if use_ema else "model", where)
    reading = _Reading(kind, given, state, config, where)
    return Foreign(
        "diffusion_policy of Chi et al. 2023" + (", EMA weights" if use_ema else ""),
        reading.settings(),
        tuple(reading.observations()),
        reading.vector("action"),
        reading.denoiser(),
        (path,),
        tuple(reading.remarks()),
    )


# --- Configuration -------------------------------------------------------------------------------


def _config(file: TorchFile, path: Path) -> dict[str, Any]:
    content, where = file.content, str(path)
    if not isinstance(content, dict):
        raise UserError("is no checkpoint", where, "give a .ckpt of diffusion_policy")
    if "cfg" not in content or "state_dicts" not in content:
        made = "of Lightning" if "pytorch-lightning_version" in content else "another project's"
        what = f"is a checkpoint {made}: it holds {', '.join(map(str, list(content)[:6]))}"
        raise UserError(what, where, "give a .ckpt that diffusion_policy's workspace has saved")
    config = plain(content["cfg"], where)
    if not isinstance(config, dict) or not isinstance(config.get("policy"), dict):
        raise UserError("its cfg has no policy", where, "give a .ckpt of diffusion_policy")
    return config


def plain(value: Any, where: str) -> Any:
    """OmegaConf's objects -> dicts, lists and values.

    Raises:
        UserError: it is too large, holds something else, or what is still to be filled in.
    """
    left = [MOST]

    def walk(node: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > DEEPEST or left[0] < 0:
            raise UserError("its configuration has no end", where, "copy the file again")
        if isinstance(node, Made):
            state = node.state if isinstance(node.state, dict) else {}
            inner = state.get("_content", state.get("_val", _Nothing))
            if inner is _Nothing:
                raise UserError(f"its configuration holds a {node.of}", where, _CURE)
            return walk(inner, depth + 1)
        if isinstance(node, dict):
            return {str(walk(k, depth + 1)): walk(v, depth + 1) for k, v in node.items()}
        if isinstance(node, list | tuple):
            return [walk(child, depth + 1) for child in node]
        if isinstance(node, str) and "${" in node:
            raise UserError(f"its configuration has '{node}' not filled in", where, _CURE)
        if node is None or isinstance(node, str | int | float | bool):
            return node
        raise UserError(f"its configuration holds a {type(node).__name__}", where, _CURE)

    return walk(value, 0)


class _Nothing:
    pass


_CURE = "save it again with diffusion_policy, whose workspace resolves it"


def _kind(policy: Mapping[str, Any], where: str) -> tuple[Kind, dict[str, Any]]:
    """Which class it is, and all its arguments."""
    target = str(policy.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if name in REFUSED:
        cure = "train one of " + ", ".join(POLICIES)
        raise UserError(f"{name} cannot be imported: {REFUSED[name]}", where, cure)
    if name not in POLICIES or not module.startswith("diffusion_policy."):
        raise UserError(f"policy '{target}' is unknown", where, did_you_mean(name, POLICIES))
    kind = POLICIES[name]
    known = {**kind.defaults, **dict.fromkeys(REQUIRED), "num_inference_steps": None}
    for key in policy:
        if key not in known and key != "_target_":
            cure = did_you_mean(key, known)
            raise UserError(f"unknown argument '{key}' of {name}", where, cure)
    full = {**known, **policy}
    for key, value in full.items():
        may_miss = key in ("num_inference_steps", "crop_shape")
        if value is None and not may_miss:
            raise UserError(f"{name} has no '{key}'", where, "copy the file again")
    return kind, full


def _state(file: TorchFile, name: str, where: str) -> dict[str, Tensor]:
    states = file.content["state_dicts"]
    found = states.get(name) if isinstance(states, dict) else None
    if not isinstance(found, dict):
        what = f"it has no '{name}'"
        raise UserError(what, where, "give a .ckpt that diffusion_policy's workspace has saved")
    for key, stored in found.items():
        if not isinstance(stored, StoredTensor):
            raise UserError(f"'{key}' in its {name} is no tensor", where, "copy the file again")
    return {str(key): file.read(stored).float() for key, stored in found.items()}


# --- The policy ----------------------------------------------------------------------------------


class _Reading:
    """A policy's configuration and weights, told in our terms."""

    def __init__(
        self,
        kind: Kind,
        given: Mapping[str, Any],
        state: Mapping[str, Tensor],
        config: Mapping[str, Any],
        where: str,
    ) -> None:
        self.kind, self.given, self.state, self.where = kind, given, state, where
        self.config = config
        self.conditioning = self._conditioning()

    def _conditioning(self) -> str:
        how = {"obs_as_global_cond": "global", "obs_as_local_cond": "local"}
        told = [ours for theirs, ours in how.items() if self.given.get(theirs)]
        if self.given.get("obs_as_cond"):
            told = ["tokens"]
        found = told[0] if told else "inpainting"
        if found == "inpainting" and self.kind.has_cameras:
            what = "images are inpainted with the actions (obs_as_global_cond: false)"
            raise UserError(what, self.where, "train with obs_as_global_cond or obs_as_cond: true")
        if self.kind.is_unet and not self.given.get("oa_step_convention", True):
            what = "oa_step_convention is false: its first action is of the frame after the newest"
            raise UserError(what, self.where, "train with oa_step_convention: true")
        return found

    def settings(self) -> PolicySettings:
        """What it is, all but the cameras' encoders."""
        given, noise = self.given, _noise(self.given["noise_scheduler"], self.where)
        steps = given["num_inference_steps"] or noise["num_train_timesteps"]
        network = self._network()
        make = unet1d_settings if self.kind.is_unet else transformer_settings
        return PolicySettings(
            n_obs_steps=given["n_obs_steps"],
            horizon=given["horizon"],
            n_action_steps=given["n_action_steps"],
            num_inference_steps=steps,
            timestep_spacing="leading",
            conditioning=self.conditioning,  # type: ignore[arg-type]
            pred_action_steps_only=bool(given.get("pred_action_steps_only", False)),
            denoiser=make(network),
            **noise,
        )

    def _network(self) -> Arguments:
        """All arguments of the network's constructor."""
        name = "ConditionalUnet1D" if self.kind.is_unet else "TransformerForDiffusion"
        defaults = UNET1D_DEFAULTS if self.kind.is_unet else TRANSFORMER_DEFAULTS
        if self.kind.has_cameras:
            own = UNET if self.kind.is_unet else TRANSFORMER
            told = {key: self.given[key] for key in own if key in defaults}
            sizes = {"input_dim": 1, "output_dim": 1, "horizon": 1}  # follow from the weights
            told |= {key: value for key, value in sizes.items() if key in defaults}
        else:
            told = dict(self.given["model"])
            target = str(told.pop("_target_", "")).rpartition(".")[2]
            if target != name:
                raise UserError(f"network '{target}' is unknown", self.where, f"use {name}")
        return arguments(f"{self.where}: {name}", told, defaults)

    def denoiser(self) -> dict[str, Tensor]:
        """The network's weights under our names."""
        as_cond = self._network().get("time_as_cond", True)
        unused = (UNUSED_LOCAL, DUMMY, "mask", "memory_mask")
        found = {}
        for name, tensor in self._below("model.").items():
            if not name.startswith(unused):
                rename = unet1d_name if self.kind.is_unet else transformer_name
                ours = rename(name) if self.kind.is_unet else transformer_name(name, as_cond)
                found[ours] = tensor
        return found

    def _below(self, prefix: str) -> dict[str, Tensor]:
        named = {k: v for k, v in self.state.items() if k.startswith(prefix)}
        return {name.removeprefix(prefix): tensor for name, tensor in named.items()}

    def observations(self) -> Iterator[Vector | Camera]:
        """In the order of the configuration, which is that of the condition."""
        if not self.kind.has_cameras:
            yield self.vector("obs")
            return
        for name, told in self.given["shape_meta"]["obs"].items():
            kind, shape = told.get("type", "low_dim"), told["shape"]
            if kind not in ("rgb", "low_dim"):
                raise UserError(f"'{name}' is of type {kind}", self.where, "only rgb and low_dim")
            yield self._camera(name, shape) if kind == "rgb" else self.vector(name)

    def vector(self, name: str) -> Vector:
        """Its scale and offset, as they are: normalised = value * scale + offset."""
        scale, offset = self._scaling(name)
        return Vector(name, -offset / scale, 1 / scale)

    def _scaling(self, name: str) -> tuple[Tensor, Tensor]:
        prefix, parts = f"normalizer.params_dict.{name}.", []
        for part in ("scale", "offset"):
            if prefix + part not in self.state:
                what = f"the normalizer has no '{part}' of '{name}'"
                raise UserError(what, self.where, "train again: it was saved without statistics")
            parts.append(self.state[prefix + part].double().flatten())
        scale, offset = parts
        if not (scale.isfinite() & offset.isfinite() & (scale != 0)).all():
            what = f"the normalizer's scale of '{name}' is 0 or not finite"
            raise UserError(what, self.where, "train again")
        return scale, offset

    def _camera(self, name: str, shape: list[int]) -> Camera:
        scale, offset = self._scaling(name)
        channels, height, width = shape
        crop = self.given["crop_shape"]
        weights = self._encoder(f"obs_encoder.obs_nets.{name}.nets.", name)
        keypoints = len(weights["to_keypoints.weight"])
        settings = ImageEncoderSettings(
            norm="group" if self.given["obs_encoder_group_norm"] else "frozen",
            crop=tuple(crop) if crop else 1.0,
            mean=tuple((-offset / scale).tolist()),
            std=tuple((1 / scale).tolist()),
            keypoints=keypoints,
            features=len(weights["project.weight"]),
            relu=True,
        )
        return Camera(name, (height, width, channels), settings, weights)

    def _encoder(self, prefix: str, camera: str) -> dict[str, Tensor]:
        """Of robomimic's VisualCore: ResNet 18, spatial softmax, linear."""
        found = {}
        for name, tensor in self._below(prefix).items():
            part, _, rest = name.partition(".")
            if part == "0":
                ours = resnet_name(rest.removeprefix("nets."), "resnet18")
                if ours is not None:
                    found[f"backbone.{ours}"] = tensor
            elif part == "1" and rest.startswith("nets."):
                found[f"to_keypoints.{rest.removeprefix('nets.')}"] = tensor
            elif part == "3":
                found[f"project.{rest}"] = tensor
        if "to_keypoints.weight" not in found or "project.weight" not in found:
            what = f"the encoder of '{camera}' is not robomimic's ResNet with a spatial softmax"
            raise UserError(what, self.where, "only that one can be imported")
        temperature = self.state.get(f"{prefix}1.temperature")
        if temperature is not None and not math.isclose(float(temperature), 1.0):
            what = f"the spatial softmax of '{camera}' has a temperature of {float(temperature):g}"
            raise UserError(what, self.where, "only 1 can be imported")
        return found

    def remarks(self) -> Iterator[str]:
        """What a user should know."""
        if self.given.get("crop_shape") and not self.given["eval_fixed_crop"]:
            yield "cropped pictures at random when running, too; here it is the centre"
        if self.config.get("n_latency_steps"):
            steps = self.config["n_latency_steps"]
            yield f"its first {steps} actions were meant to be late (n_latency_steps)"


def _is(*known: Any) -> Callable[[Any], bool]:
    return lambda value: value in known


# Arguments of diffusers' schedulers beyond those that are used, and what of them is understood.
SCHEDULERS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "DDPMScheduler": {
        "variance_type": _is("fixed_small", "fixed_large"),
        "thresholding": _is(False),
        "timestep_spacing": _is("leading"),
        "steps_offset": _is(0),
        "trained_betas": _is(None),
        "rescale_betas_zero_snr": _is(False),
    },
    "DDIMScheduler": {
        "set_alpha_to_one": _is(True),
        "steps_offset": _is(0),
        "thresholding": _is(False),
        "timestep_spacing": _is("leading"),
        "trained_betas": _is(None),
        "rescale_betas_zero_snr": _is(False),
    },
}
PREDICTS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}


def _noise(told: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The scheduler in our settings."""
    name = str(told.get("_target_", "")).rpartition(".")[2]
    if name not in SCHEDULERS:
        cure = did_you_mean(name, SCHEDULERS)
        raise UserError(f"noise_scheduler '{name}' is unknown", where, cure)
    defaults = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
    }
    for key, value in told.items():
        if key in defaults or key == "_target_":
            continue
        if key not in SCHEDULERS[name] or not SCHEDULERS[name][key](value):
            what = f"noise_scheduler has {key}: {value}, which is not known"
            raise UserError(what, where, "train with the defaults of diffusion_policy")
    full = {**defaults, **told}
    for key, known in (("beta_schedule", SCHEDULES), ("prediction_type", PREDICTS)):
        if full[key] not in known:
            what = f"noise_scheduler.{key} '{full[key]}' is unknown"
            raise UserError(what, where, did_you_mean(full[key], known))
    return {
        "sampler": "ddpm" if name == "DDPMScheduler" else "ddim",
        "num_train_timesteps": full["num_train_timesteps"],
        "beta_start": full["beta_start"],
        "beta_end": full["beta_end"],
        "schedule": full["beta_schedule"],
        "clip_sample": full["clip_sample"],
        "clip_range": full["clip_sample_range"],
        "prediction_type": PREDICTS[full["prediction_type"]],
        "variance": full.get("variance_type", "fixed_small"),
    }
