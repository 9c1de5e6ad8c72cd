"""Denoisers: networks (sample (B, H, A), timestep (B,), condition) -> (B, H, A).

A new one is one file here, with its settings, and one line in DENOISERS.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from diffusion_policy_ros.policy.denoisers.condition import Condition
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1D, UNet1DSettings

__all__ = ["DENOISERS", "Condition", "DenoiserSettings"]

DenoiserSettings = UNet1DSettings

# name -> constructor taking (action_dim, global_cond_dim, settings)
DENOISERS: dict[str, Callable[[int, int, DenoiserSettings], nn.Module]] = {"unet1d": UNet1D}
