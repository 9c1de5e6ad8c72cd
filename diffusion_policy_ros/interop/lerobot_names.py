"""Names of tensors, LeRobot's and ours, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_policy_ros.interop.official import unet1d_name
from diffusion_policy_ros.policy.backbones import RESNETS
from diffusion_policy_ros.policy.eyes import ImageEncoder
from diffusion_policy_ros.policy.pretrained import resnet_name


def unet_from_lerobot(name: str) -> str:
    """LeRobot's name of a U-Net's tensor -> ours."""
    return unet1d_name(_to_official(name))


def _to_official(name: str) -> str:
    """LeRobot's name of a U-Net's tensor -> the original's."""
    name = re.sub(r"(^|\.)conv([12])\.block\.", _block, name)
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.(weight|bias)$", r"\1.conv.\2", name)


def _block(found: re.Match[str]) -> str:
    return f"{found[1]}blocks.{int(found[2]) - 1}.block."


def encoder_from_lerobot(
    weights: Mapping[str, Tensor], prefix: str, backbone: str
) -> dict[str, Tensor]:
    """Weights of an image encoder under our names.

    Args:
        weights: LeRobot's.
        prefix: of the encoder's.
        backbone: a key of RESNETS.
    """
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


_UNET_NAMES = (
    (r"^step_encoder\.", "diffusion_step_encoder."),
    (r"^final\.(conv|norm)\.", r"final_conv.0.\1."),
    (r"^out\.", "final_conv.1."),
    (r"^(down|up)\.(\d+)\.first\.", r"\1_modules.\2.0."),
    (r"^(down|up)\.(\d+)\.second\.", r"\1_modules.\2.1."),
    (r"^(down|up)\.(\d+)\.resize\.", r"\1_modules.\2.2."),
    (r"^middle\.", "mid_modules."),
    (r"\.first\.(?=conv|norm)", ".conv1."),
    (r"\.second\.(?=conv|norm)", ".conv2."),
    (r"\.film\.", ".cond_encoder.1."),
    (r"\.around\.", ".residual_conv."),
    (r"\.conv\.(?=weight|bias)", ".block.0."),
    (r"\.norm\.(?=weight|bias)", ".block.1."),
)
"""Ours -> LeRobot's, applied in order."""


def unet_to_lerobot(name: str) -> str:
    """Our name of a U-Net's tensor -> LeRobot's."""
    for pattern, theirs in _UNET_NAMES:
        name = re.sub(pattern, theirs, name)
    return name


def encoder_to_lerobot(eye: ImageEncoder) -> dict[str, Tensor]:
    """Weights of an image encoder under LeRobot's names."""
    found = {}
    for name, tensor in eye.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            theirs = f"backbone.{_resnet_name(rest, eye.settings.name)}"
            if rest.endswith("running_mean"):  # a count that nothing reads when running
                found[theirs.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
        else:
            theirs = {"to_keypoints": "pool.nets", "project": "out"}[part] + f".{rest}"
        found[theirs] = tensor
    found["pool.pos_grid"] = eye.pool.grid  # type: ignore[assignment]
    return found


def _resnet_name(name: str, kind: str) -> str:
    """Our name of a ResNet's tensor -> by its place, see `resnet_name`."""
    index, _, rest = name.partition(".")
    number, stage = int(index) - 4, 0
    if number < 0:
        return name
    for count in RESNETS[kind][1]:
        if number < count:
            break
        number, stage = number - count, stage + 1
    rest = re.sub(r"^norm", "bn", rest).replace("around.", "downsample.")
    return f"{4 + stage}.{number}.{rest}"
