"""How large a policy is."""

from __future__ import annotations

from torch import nn

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.recipe import Recipe


def output_size(recipe: Recipe, contract: Contract) -> int:
    """Values that one inference gives: H * Da, or Ta * Da with pred_action_steps_only."""
    return recipe.policy.predicted_steps * contract.action_dim


def param_count(module: nn.Module) -> int:
    """How many parameters a network, or a part of one, has."""
    return sum(parameter.numel() for parameter in module.parameters())
