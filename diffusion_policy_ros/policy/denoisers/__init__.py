"""Denoisers: networks (sample (B, H, A), timestep (B,), condition) -> (B, H, A).

A new one is one file here, with its settings, and one line in DENOISERS and in DenoiserSettings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.mlp import MLP, MLPSettings
from diffusion_policy_ros.policy.denoisers.transformer import Transformer, TransformerSettings
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1D, UNet1DSettings

__all__ = ["DENOISERS", "Condition", "DenoiserSettings", "Sizes"]

# The first is meant where a recipe names none.
DenoiserSettings = UNet1DSettings | TransformerSettings | MLPSettings

# name -> constructor taking (sizes, settings of that name)
DENOISERS: dict[str, Callable[[Sizes, Any], nn.Module]] = {
    "unet1d": UNet1D,
    "transformer": Transformer,
    "mlp": MLP,
}
