"""Conditional 1-D U-Net of Chi et al. 2023 (https://arxiv.org/abs/2303.04137), with FiLM.

Number for number the network of the reference implementation (its names are mapped in
`interop/official.py`), arranged so that what is the same for every block is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.convolutions import Conv1d
from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.strict_yaml import Problem


@dataclass(frozen=True)
class UNet1DSettings:
    """Settings of the U-Net, under the reference's names.

    Attributes:
        name: its key in DENOISERS.
        down_dims: channels of each level; each level but the last halves the length.
        kernel_size: of the convolutions, odd.
        n_groups: of the group normalisation; divides every entry of down_dims.
        final_n_groups: of the last block's; n_groups where not given (the reference has 8).
        diffusion_step_embed_dim: size of the embedded diffusion step, even.
        cond_predict_scale: FiLM predicts scale and bias, not only bias.
    """

    name: Literal["unet1d"] = "unet1d"
    down_dims: tuple[int, ...] = (128, 256, 512)
    kernel_size: int = field(default=5, metadata={"min": 1, "max": 99})
    n_groups: int = field(default=8, metadata={"min": 1, "max": 1024})
    final_n_groups: int | None = field(default=None, metadata={"min": 1, "max": 1024})
    diffusion_step_embed_dim: int = field(default=64, metadata={"min": 4, "max": 4096})
    cond_predict_scale: bool = True

    @property
    def conditionings(self) -> tuple[str, ...]:
        """How it can be told of the observations; the first is its own choice."""
        return "global", "local", "inpainting"

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        if not self.down_dims:
            yield Problem("down_dims", "the list is empty", "give the channels of each level")
        for dim in self.down_dims:
            if dim < 1 or dim % self.n_groups:
                cure = f"use multiples of n_groups = {self.n_groups}"
                yield Problem("down_dims", f"{dim} channels", cure)
        if self.final_n_groups and self.down_dims and self.down_dims[0] % self.final_n_groups:
            what = f"{self.final_n_groups} groups do not divide {self.down_dims[0]} channels"
            yield Problem("final_n_groups", what, "use a divisor of the first of down_dims")
        if self.kernel_size % 2 == 0:
            cure = f"use {self.kernel_size - 1} or {self.kernel_size + 1}"
            yield Problem("kernel_size", f"{self.kernel_size} is even", cure)
        if self.diffusion_step_embed_dim % 2:
            what = f"{self.diffusion_step_embed_dim} is odd"
            yield Problem("diffusion_step_embed_dim", what, "use an even number")

    @property
    def final_groups(self) -> int:
        """final_n_groups, or its default."""
        return self.n_groups if self.final_n_groups is None else self.final_n_groups

    def horizon_problem(self, horizon: int) -> Problem | None:
        """Why chunks of `horizon` steps do not go through, naming the nearest that do."""
        halvings = len(self.down_dims) - 1
        factor = 2**halvings
        if horizon % factor == 0:
            return None
        below, above = horizon // factor * factor, (horizon // factor + 1) * factor
        cure = f"use {below} or {above}" if below else f"use {above}"
        return Problem("horizon", f"{horizon} steps cannot be halved {halvings} times", cure)


class SinusoidalEmbedding(nn.Module):
    """Sines, then cosines, of geometrically falling frequency.

    Args:
        dim: of the embedding: even, and at least 4, for the frequencies fall from 1 to 1e-4.

    Raises:
        ValueError: it is not.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"an embedding of {dim} numbers: give an even number, 4 or more")
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        """Diffusion steps (B,) -> (B, dim)."""
        angles = timestep[:, None] * self.frequencies[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, n_groups: int) -> None:
        super().__init__()
        self.conv = Conv1d(dim_in, dim_out, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(n_groups, dim_out)

    def forward(self, sample: Tensor) -> Tensor:
        """Channels change: (B, in, H) -> (B, out, H)."""
        return functional.mish(self.norm(self.conv(sample)))


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM (Perez et al. 2018) between, and a way around."""

    def __init__(self, dim_in: int, dim_out: int, cond_dim: int, settings: UNet1DSettings) -> None:
        super().__init__()
        kernel, groups = settings.kernel_size, settings.n_groups
        self.first = ConvBlock(dim_in, dim_out, kernel, groups)
        self.second = ConvBlock(dim_out, dim_out, kernel, groups)
        self.predict_scale = settings.cond_predict_scale
        self.film = nn.Linear(cond_dim, dim_out * (2 if settings.cond_predict_scale else 1))
        self.around = nn.Conv1d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, sample: Tensor, feature: Tensor) -> Tensor:
        """Sample (B, in, H) and the condition's feature (B, C) -> (B, out, H)."""
        hidden: Tensor = self.first(sample)
        film = self.film(feature).unsqueeze(-1)
        if self.predict_scale:
            scale, bias = film.chunk(2, dim=1)
            hidden = torch.addcmul(bias, scale, hidden)
        else:
            hidden = hidden + film
        out: Tensor = self.second(hidden) + self.around(sample)
        return out


class Level(nn.Module):
    """Two residual blocks, then a resize to half or double length."""

    def __init__(self, first: ResidualBlock, second: ResidualBlock, resize: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.resize = first, second, resize

    def forward(
        self, sample: Tensor, feature: Tensor, local: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the blocks give, (B, out, H), and the same resized; `local` is added between."""
        hidden = self.first(sample, feature)
        if local is not None:
            hidden = hidden + local
        hidden = self.second(hidden, feature)
        return hidden, self.resize(hidden)


class UNet1D(nn.Module):
    """(sample (B, H, A), timestep (B,), condition) -> (B, H, A).

    Args:
        sizes: of the sample and the condition, see Sizes; tokens it does not take.
        settings: see UNet1DSettings, which also checks them.

    Raises:
        UserError: the horizon cannot be halved; names the nearest that can.
    """

    def __init__(self, sizes: Sizes, settings: UNet1DSettings) -> None:
        super().__init__()
        problem = settings.horizon_problem(sizes.horizon or 0)
        if problem is not None:
            raise UserError(problem.what, problem.key, problem.cure)
        self.global_cond_dim, self.local_cond_dim = sizes.global_cond, sizes.local_cond
        embed, dims = settings.diffusion_step_embed_dim, settings.down_dims
        self.step_encoder = nn.Sequential(
            SinusoidalEmbedding(embed),
            nn.Linear(embed, embed * 4),
            nn.Mish(),
            nn.Linear(embed * 4, embed),
        )

        def block(dim_in: int, dim_out: int) -> ResidualBlock:
            return ResidualBlock(dim_in, dim_out, embed + sizes.global_cond, settings)

        self.local = block(sizes.local_cond, dims[0]) if sizes.local_cond else None
        self.down = nn.ModuleList()
        for i, (low, high) in enumerate(pairwise((sizes.action_dim, *dims))):
            last = i == len(dims) - 1
            halve = nn.Identity() if last else nn.Conv1d(high, high, 3, stride=2, padding=1)
            self.down.append(Level(block(low, high), block(high, high), halve))
        self.middle = nn.ModuleList([block(dims[-1], dims[-1]) for _ in range(2)])
        self.up = nn.ModuleList()
        for high, low in pairwise(reversed(dims)):
            double = nn.ConvTranspose1d(low, low, 4, stride=2, padding=1)
            self.up.append(Level(block(high * 2, low), block(low, low), double))
        self.final = ConvBlock(dims[0], dims[0], settings.kernel_size, settings.final_groups)
        self.out = nn.Conv1d(dims[0], sizes.action_dim, 1)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Predicts noise or sample, whichever it was trained for.

        Raises:
            ValueError: for a condition that the network was not built for.
        """
        # Every block applies Mish to the same features first; once is enough.
        feature = functional.mish(self._feature(timestep, condition))
        local = self._local_feature(condition, feature)
        hidden, skips = sample.transpose(1, 2), []
        for level in self.down:
            skip, hidden = level(hidden, feature, local)
            skips.append(skip)
            local = None
        for block in self.middle:
            hidden = block(hidden, feature)
        for level in self.up:
            _, hidden = level(torch.cat([hidden, skips.pop()], dim=1), feature)
        out: Tensor = self.out(self.final(hidden))
        return out.transpose(1, 2)

    def _feature(self, timestep: Tensor, condition: Condition) -> Tensor:
        feature: Tensor = self.step_encoder(timestep)
        given = 0 if condition.global_cond is None else condition.global_cond.shape[-1]
        if given != self.global_cond_dim:
            raise ValueError(f"condition of size {given}, built for {self.global_cond_dim}")
        if condition.global_cond is None:
            return feature
        return torch.cat([feature, condition.global_cond], dim=-1)

    def _local_feature(self, condition: Condition, feature: Tensor) -> Tensor | None:
        """What the finest level adds to each step, (B, down_dims[0], H)."""
        if condition.local_cond is None:
            return None
        given = condition.local_cond.shape[-1]
        if self.local is None or given != self.local_cond_dim:
            raise ValueError(f"local condition of size {given}, built for {self.local_cond_dim}")
        out: Tensor = self.local(condition.local_cond.transpose(1, 2), feature)
        return out
