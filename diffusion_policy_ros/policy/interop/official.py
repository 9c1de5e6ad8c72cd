"""The reference implementation's networks (real-stanford/diffusion_policy) under its own names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.denoisers.condition import Condition
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1D, UNet1DSettings

# Reference constructor's arguments and its defaults.
UNET1D_DEFAULTS: dict[str, Any] = {
    "local_cond_dim": None,
    "global_cond_dim": None,
    "diffusion_step_embed_dim": 256,
    "down_dims": (256, 512, 1024),
    "kernel_size": 3,
    "n_groups": 8,
    "cond_predict_scale": False,
}

FINAL_GROUPS = 8  # the reference's last block leaves n_groups at its own default

# Applied in order; the reference's names -> ours.
_UNET1D_NAMES = (
    (r"^diffusion_step_encoder\.", "step_encoder."),
    (r"^(down|up)_modules\.(\d+)\.0\.", r"\1.\2.first."),
    (r"^(down|up)_modules\.(\d+)\.1\.", r"\1.\2.second."),
    (r"^(down|up)_modules\.(\d+)\.2\.conv\.", r"\1.\2.resize."),
    (r"^mid_modules\.", "middle."),
    (r"\.blocks\.0\.block\.", ".first.block."),
    (r"\.blocks\.1\.block\.", ".second.block."),
    (r"\.cond_encoder\.1\.", ".film."),
    (r"\.residual_conv\.", ".around."),
    (r"^final_conv\.0\.", "final."),
    (r"^final_conv\.1\.", "out."),
    (r"(^|\.)block\.0\.", r"\1conv."),
    (r"(^|\.)block\.1\.", r"\1norm."),
)


def unet1d_name(name: str) -> str:
    """Our name of the parameter that the reference's ConditionalUnet1D calls `name`."""
    for pattern, ours in _UNET1D_NAMES:
        name = re.sub(pattern, ours, name)
    return name


class OfficialUNet1D(nn.Module):
    """Our U-Net called as the reference calls its own."""

    def __init__(self, net: UNet1D) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> Tensor:
        """Predict from sample (B, H, A), timestep, a number or (B,), and global_cond (B, C)."""
        step = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        out: Tensor = self.net(sample, step, Condition(global_cond, local_cond))
        return out


def build_unet1d(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> OfficialUNet1D:
    """The network that ConditionalUnet1D(**config) with these weights is.

    Args:
        config: the reference constructor's arguments.
        state_dict: its weights under its names.

    Raises:
        UserError: for an unknown argument, local conditioning, or weights that do not fit.
    """
    for key in config:
        if key != "input_dim" and key not in UNET1D_DEFAULTS:
            cure = did_you_mean(key, ["input_dim", *UNET1D_DEFAULTS])
            raise UserError(f"unknown argument '{key}'", "ConditionalUnet1D", cure)
    full = {**UNET1D_DEFAULTS, **config}
    if full["local_cond_dim"] is not None:
        raise UserError("local conditioning", "local_cond_dim", "use global_cond_dim instead")
    settings = UNet1DSettings(
        down_dims=tuple(full["down_dims"]),
        kernel_size=full["kernel_size"],
        n_groups=full["n_groups"],
        diffusion_step_embed_dim=full["diffusion_step_embed_dim"],
        cond_predict_scale=full["cond_predict_scale"],
    )
    net = UNet1D(full["input_dim"], full["global_cond_dim"] or 0, settings, FINAL_GROUPS)
    _load(net, {unet1d_name(name): tensor for name, tensor in state_dict.items()})
    return OfficialUNet1D(net)


def _load(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        net.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        what = "weights do not fit: " + " ".join(str(error).split())[:300]
        raise UserError(what, "state_dict", "give the config that they were made with") from error
