"""Checkpoints of the original (real-stanford/diffusion_policy): a `.ckpt` with its configuration.

It is read by `TorchFile`, without unpickling; the configuration is OmegaConf's objects, of which
only the data are taken. The policy is `ema_model` where `training.use_ema` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_policy_ros.errors import UserError, first_line
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
from diffusion_policy_ros.interop.original_config import (
    ENCODER,
    RESOLVE,
    TRANSFORMER,
    UNET,
    Kind,
    kind_of,
    plain,
    scheduler_settings,
)
from diffusion_policy_ros.interop.torch_file import StoredTensor, TorchFile
from diffusion_policy_ros.policy.backbones import RESNETS
from diffusion_policy_ros.policy.eyes import ImageEncoderSettings
from diffusion_policy_ros.policy.pretrained import IMAGENET_MEAN, IMAGENET_STD, resnet_name
from diffusion_policy_ros.policy.recipe import PolicySettings


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
            raise UserError(what, str(path), RESOLVE) from None


def _read(file: TorchFile, path: Path) -> Foreign:
    config, where = _config(file, path), str(path)
    kind, given = kind_of(config["policy"], where)
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
        given, noise = self.given, scheduler_settings(self.given["noise_scheduler"], self.where)
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
        pooled = "obs_encoder" in self.given
        told = {n: (t.get("type", "low_dim"), t["shape"]) for n, t in self._observed().items()}
        for name, (kind, _) in told.items():
            if kind not in ("rgb", "low_dim"):
                raise UserError(f"'{name}' is of type {kind}", self.where, "only rgb and low_dim")
        # MultiImageObsEncoder sorts its keys, pictures first; robomimic's encoder does not.
        names = sorted(told, key=lambda name: (told[name][0] != "rgb", name)) if pooled else told
        shared: dict[str, Mapping[str, Tensor]] = {}
        for name in names:
            kind, shape = told[name]
            if kind == "low_dim":
                yield self.vector(name)
            else:
                yield (
                    self._pooled_camera(name, shape, shared)
                    if pooled
                    else self._camera(name, shape)
                )

    def _observed(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.given["shape_meta"]["obs"]
        return found

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

    def _pooled_camera(
        self, name: str, shape: list[int], shared: dict[str, Mapping[str, Tensor]]
    ) -> Camera:
        """Of MultiImageObsEncoder: a ResNet whose maps' means are the features."""
        told = self._pooled_settings(shape)
        scale, offset = self._scaling(name)
        norm = (IMAGENET_MEAN, IMAGENET_STD) if told["imagenet_norm"] else ((0.0,), (1.0,))
        # ImageNet's are applied to what the normaliser has taken to -1..1 already.
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in norm)
        owner, backbone = "rgb" if told["share_rgb_model"] else name, told["rgb_model"]["name"]
        if owner not in shared:
            shared[owner] = self._resnet(f"obs_encoder.key_model_map.{owner}.", backbone)
        weights = shared[owner]
        frozen = any(key.endswith("running_mean") for key in weights)
        settings = ImageEncoderSettings(
            name=backbone,
            norm="frozen" if frozen else "group",
            crop=tuple(told["crop_shape"]) if told["crop_shape"] else 1.0,
            mean=tuple(((mean - offset) / scale).tolist()),
            std=tuple((std / scale).tolist()),
            pool="mean",
            features=0,
        )
        channels, height, width = shape
        return Camera(name, (height, width, channels), settings, weights)

    def _pooled_settings(self, shape: list[int]) -> dict[str, Any]:
        """All arguments of its encoder."""
        given = dict(self.given["obs_encoder"])
        target, where = str(given.pop("_target_", "")), f"{self.where}: obs_encoder"
        if target.rpartition(".")[2] != "MultiImageObsEncoder":
            raise UserError(f"'{target}' is unknown", where, "only MultiImageObsEncoder")
        told = arguments(where, given, ENCODER)
        model = told["rgb_model"]
        if not str(model.get("_target_", "")).endswith("get_resnet"):
            raise UserError(f"rgb_model is '{model.get('_target_')}'", where, "only get_resnet")
        if model.get("name") not in RESNETS:
            raise UserError(
                f"rgb_model '{model.get('name')}'", where, f"only {', '.join(RESNETS)}"
            )
        if told["resize_shape"] and list(told["resize_shape"]) != list(shape[1:]):
            what = (
                "pictures are resized, which torchvision did differently from version to version"
            )
            raise UserError(what, where, "train with pictures of that size and no resize_shape")
        if told["crop_shape"] and not told["random_crop"]:
            what = "crop_shape without random_crop, of which some versions did nothing"
            raise UserError(what, where, "train with random_crop: true")
        return told

    def _resnet(self, prefix: str, kind: str) -> dict[str, Tensor]:
        """A ResNet's weights under our names."""
        named = {resnet_name(n, kind): (n, t) for n, t in self._below(prefix).items()}
        left = named.pop(None, ("num_batches_tracked",))[0]
        if not left.endswith("num_batches_tracked"):
            raise UserError(f"unknown tensor '{prefix}{left}'", self.where, "only a plain ResNet")
        return {f"backbone.{ours}": tensor for ours, (_, tensor) in named.items()}

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
