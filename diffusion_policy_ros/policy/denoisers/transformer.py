"""Transformer of Chi et al. 2023 (https://arxiv.org/abs/2303.04137) section IV-A.

Actions are the decoder's tokens; the diffusion step and each observed frame are tokens of the
condition, which the actions attend to. Number for number the network of the reference
implementation (its names are mapped in `interop/official.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.dropout import Dropout, with_masks_of_windows
from diffusion_policy_ros.policy.denoisers.unet1d import SinusoidalEmbedding
from diffusion_policy_ros.strict_yaml import Problem


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of the Transformer, under the reference's names; defaults are its published ones.

    Attributes:
        name: its key in DENOISERS.
        n_layer: layers of the trunk.
        n_head: heads of each attention; divides n_emb.
        n_emb: size of a token, even.
        p_drop_emb: dropout of the embedded tokens.
        p_drop_attn: dropout within the layers.
        causal_attn: an action attends to no later action, and to no frame observed after it.
        time_as_cond: the diffusion step is a token of the condition. Otherwise it is the first
            token of the sample, and there is no condition: an encoder only, for inpainting.
        n_cond_layers: attention layers that encode the condition; with 0 a perceptron does.
    """

    name: Literal["transformer"] = "transformer"
    n_layer: int = field(default=8, metadata={"min": 1, "max": 1000})
    n_head: int = field(default=4, metadata={"min": 1, "max": 1024})
    n_emb: int = field(default=256, metadata={"min": 4, "max": 65536})
    p_drop_emb: float = field(default=0.0, metadata={"min": 0.0, "max": 0.99})
    p_drop_attn: float = field(default=0.3, metadata={"min": 0.0, "max": 0.99})
    causal_attn: bool = True
    time_as_cond: bool = True
    n_cond_layers: int = field(default=0, metadata={"min": 0, "max": 1000})

    @property
    def conditionings(self) -> tuple[str, ...]:
        """How it can be told of the observations; the first is its own choice."""
        return ("tokens", "global", "inpainting") if self.time_as_cond else ("inpainting",)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        if self.n_emb % 2:
            yield Problem("n_emb", f"{self.n_emb} is odd", "use an even number")
        if self.n_emb % self.n_head:
            cure = f"use a multiple of n_head = {self.n_head}"
            yield Problem("n_emb", f"{self.n_emb} is not divided by the heads", cure)

    def horizon_problem(self, horizon: int) -> Problem | None:
        """It takes chunks of any length."""
        return None


def causal_mask(tokens: int, seen: int, ahead: int = 0) -> Tensor:
    """(tokens, seen), added to attention: token i sees what is not more than `ahead` after it."""
    allowed = torch.arange(tokens)[:, None] + ahead >= torch.arange(seen)
    return torch.zeros(tokens, seen).masked_fill(~allowed, -torch.inf)


class Transformer(nn.Module):
    """(sample (B, H, A), timestep (B,), condition) -> (B, H, out_dim).

    Args:
        sizes: of the sample and the condition, see Sizes; a global condition is one token.
        settings: see TransformerSettings, which also checks them.
        out_dim: numbers in one step of the prediction, action_dim by default.
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self, sizes: Sizes, settings: TransformerSettings, out_dim: int | None = None
    ) -> None:
        super().__init__()
        assert sizes.horizon is not None
        assert not (sizes.local_cond or (sizes.tokens and sizes.global_cond))
        width, self.time_as_cond = settings.n_emb, settings.time_as_cond
        self.token_dim, seen = sizes.token_dim or sizes.global_cond, sizes.tokens
        seen += 1 if sizes.global_cond else 0
        length = sizes.horizon + (0 if self.time_as_cond else 1)
        self.step_embedding = SinusoidalEmbedding(width)
        self.input = nn.Linear(sizes.action_dim, width)
        self.position = nn.Parameter(torch.zeros(1, length, width))
        self.drop = Dropout(settings.p_drop_emb)
        self.cond_input = nn.Linear(self.token_dim, width) if self.token_dim else None
        if self.time_as_cond:
            self.cond_position = nn.Parameter(torch.zeros(1, seen + 1, width))
            self.cond_encoder = _condition_encoder(settings)
        kind = nn.TransformerDecoderLayer if self.time_as_cond else nn.TransformerEncoderLayer
        self.layers = nn.ModuleList([_layer(kind, settings) for _ in range(settings.n_layer)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sizes.action_dim if out_dim is None else out_dim)
        causal = settings.causal_attn
        mask = causal_mask(length, length) if causal else None
        # The first token of the condition is the step, so frame i is its token i + 1.
        memory_mask = causal_mask(length, seen + 1, ahead=1) if causal and self.token_dim else None
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("memory_mask", memory_mask, persistent=False)
        self.apply(_initialise)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Predicts noise or sample, whichever it was trained for.

        Raises:
            ValueError: for a condition that the network was not built for.
        """
        step = self.step_embedding(timestep).to(sample)[:, None]
        tokens = self.input(sample)
        if not self.time_as_cond:
            hidden = self._placed(torch.cat([step, tokens], dim=1), self.position)
            length = hidden.shape[1]
            for layer in self.layers:
                hidden = layer(hidden, _part(self.mask, length, length))
            return self._predicted(hidden[:, 1:])
        memory = self._memory(step, condition)
        hidden = self._placed(tokens, self.position)
        length, seen = hidden.shape[1], memory.shape[1]
        mask, memory_mask = (
            _part(self.mask, length, length),
            _part(self.memory_mask, length, seen),
        )
        for layer in self.layers:
            hidden = layer(hidden, memory, mask, memory_mask)
        return self._predicted(hidden)

    def _memory(self, step: Tensor, condition: Condition) -> Tensor:
        """What the actions attend to, (B, 1 + To, n_emb): the step, then the observed frames."""
        frames = condition.tokens
        if condition.global_cond is not None:
            frames = condition.global_cond[:, None]
        given = 0 if frames is None else frames.shape[-1]
        if given != self.token_dim:
            raise ValueError(f"condition of size {given}, built for {self.token_dim}")
        if frames is not None and self.cond_input is not None:
            step = torch.cat([step, self.cond_input(frames)], dim=1)
        out: Tensor = self.cond_encoder(self._placed(step, self.cond_position))
        return out

    def _placed(self, tokens: Tensor, position: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > position.shape[1]:
            raise ValueError(f"{length} tokens, built for up to {position.shape[1]}")
        out: Tensor = self.drop(tokens + position[:, :length])
        return out

    def _predicted(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(hidden))
        return out


def _part(mask: Tensor | None, tokens: int, seen: int) -> Tensor | None:
    return None if mask is None else mask[:tokens, :seen]


AnyLayer = type[nn.TransformerEncoderLayer] | type[nn.TransformerDecoderLayer]


def _layer(kind: AnyLayer, settings: TransformerSettings) -> nn.Module:
    layer = kind(
        settings.n_emb,
        settings.n_head,
        4 * settings.n_emb,
        settings.p_drop_attn,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    return with_masks_of_windows(layer)


def _condition_encoder(settings: TransformerSettings) -> nn.Sequential:
    if settings.n_cond_layers:
        layers = [
            _layer(nn.TransformerEncoderLayer, settings) for _ in range(settings.n_cond_layers)
        ]
        return nn.Sequential(*layers)
    width = settings.n_emb
    return nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))


def _initialise(module: nn.Module) -> None:
    """Small weights, no biases, as GPT-2 begins (and the reference)."""
    if isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Transformer):
        nn.init.normal_(module.position, std=0.02)
        if module.cond_input is not None:
            nn.init.normal_(module.cond_position, std=0.02)
