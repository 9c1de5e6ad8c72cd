"""Multi-layer perceptron over the whole chunk: small, fast, and enough for short ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.unet1d import SinusoidalEmbedding
from diffusion_policy_ros.strict_yaml import Problem


@dataclass(frozen=True)
class MLPSettings:
    """Settings of the perceptron.

    Attributes:
        name: its key in DENOISERS.
        hidden_size: width of each layer.
        num_layers: hidden layers.
        diffusion_step_embed_dim: size of the embedded diffusion step, even.
    """

    name: Literal["mlp"] = "mlp"
    hidden_size: int = field(default=256, metadata={"min": 1, "max": 65536})
    num_layers: int = field(default=4, metadata={"min": 1, "max": 1000})
    diffusion_step_embed_dim: int = field(default=64, metadata={"min": 4, "max": 4096})

    @property
    def conditionings(self) -> tuple[str, ...]:
        """How it can be told of the observations; the first is its own choice."""
        return "global", "inpainting"

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        if self.diffusion_step_embed_dim % 2:
            what = f"{self.diffusion_step_embed_dim} is odd"
            yield Problem("diffusion_step_embed_dim", what, "use an even number")

    def horizon_problem(self, horizon: int) -> Problem | None:
        """It takes chunks of any length."""
        return None


class MLP(nn.Module):
    """(sample (B, H, A), timestep (B,), condition) -> (B, H, A).

    Args:
        sizes: of the sample and of condition.global_cond, see Sizes.
        settings: see MLPSettings.
    """

    def __init__(self, sizes: Sizes, settings: MLPSettings) -> None:
        super().__init__()
        assert sizes.horizon is not None
        chunk, width = sizes.horizon * sizes.action_dim, settings.hidden_size
        self.global_cond_dim = sizes.global_cond
        self.step_embedding = SinusoidalEmbedding(settings.diffusion_step_embed_dim)
        given = chunk + settings.diffusion_step_embed_dim + sizes.global_cond
        self.first = nn.Linear(given, width)
        self.layers = nn.ModuleList(
            [nn.Linear(width, width) for _ in range(settings.num_layers - 1)]
        )
        self.out = nn.Linear(width, chunk)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Predicts noise or sample, whichever it was trained for.

        Raises:
            ValueError: for a condition that the network was not built for.
        """
        known = [sample.flatten(1), self.step_embedding(timestep).to(sample)]
        if condition.global_cond is not None:
            known.append(condition.global_cond)
        given = 0 if condition.global_cond is None else condition.global_cond.shape[-1]
        if given != self.global_cond_dim:
            raise ValueError(f"condition of size {given}, built for {self.global_cond_dim}")
        hidden = functional.mish(self.first(torch.cat(known, dim=-1)))
        for layer in self.layers:
            hidden = hidden + functional.mish(layer(hidden))
        out: Tensor = self.out(hidden)
        return out.view_as(sample)
