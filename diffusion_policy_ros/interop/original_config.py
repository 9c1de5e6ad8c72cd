"""What the configuration of one of the original's checkpoints says: its policy and scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.interop.pickles import Made
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
    "DiffusionUnetImagePolicy": Kind(
        {"shape_meta": None, "obs_encoder": None, **UNET, "obs_as_global_cond": True},
        is_unet=True,
        has_cameras=True,
    ),
    "DiffusionTransformerHybridImagePolicy": Kind(
        {**IMAGE, **TRANSFORMER, "obs_as_cond": True}, is_unet=False, has_cameras=True
    ),
}
# Of MultiImageObsEncoder, the encoder of DiffusionUnetImagePolicy.
ENCODER = {
    "shape_meta": None,
    "rgb_model": None,
    "resize_shape": None,
    "crop_shape": None,
    "random_crop": True,
    "use_group_norm": False,
    "share_rgb_model": False,
    "imagenet_norm": False,
}
REFUSED = {
    "DiffusionUnetTimmPolicy": "its encoder is timm's CLIP and it observes poses relative to the "
    "episode's start, which no stream of a contract tells",
    "DiffusionUnetVideoPolicy": "its encoder is of videos",
}
"""Class -> why it cannot be imported."""


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
                raise UserError(f"its configuration holds a {node.of}", where, RESOLVE)
            return walk(inner, depth + 1)
        if isinstance(node, dict):
            return {str(walk(k, depth + 1)): walk(v, depth + 1) for k, v in node.items()}
        if isinstance(node, list | tuple):
            return [walk(child, depth + 1) for child in node]
        if isinstance(node, str) and "${" in node:
            raise UserError(f"its configuration has '{node}' not filled in", where, RESOLVE)
        if node is None or isinstance(node, str | int | float | bool):
            return node
        raise UserError(f"its configuration holds a {type(node).__name__}", where, RESOLVE)

    return walk(value, 0)


class _Nothing:
    pass


RESOLVE = "save it again with diffusion_policy, whose workspace resolves it"


def kind_of(policy: Mapping[str, Any], where: str) -> tuple[Kind, dict[str, Any]]:
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


def scheduler_settings(told: Mapping[str, Any], where: str) -> dict[str, Any]:
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
