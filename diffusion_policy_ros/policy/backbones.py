"""Backbones: pixels (N, C, H, W) -> feature maps (N, F, h, w).

A new one is a function of (channels, settings) and a line in BACKBONES; every model of timm is
there as `timm/NAME`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.convolutions import Conv2d

TIMM = "timm/"
Norm = Callable[[int], nn.Module]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by statistics that no longer change, as pretrained weights bring them.

    Averaged weights and small batches do not fit to statistics that move.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape; epsilon is torch's 1e-5."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return maps * scale[:, None, None] + shift[:, None, None]


def group_norm(channels: int) -> nn.Module:
    """Group normalisation of 16 channels a group instead of batch statistics (Chi et al. 2023)."""
    return nn.GroupNorm(channels // 16, channels)


NORMS: dict[str, Norm] = {"group": group_norm, "frozen": FrozenBatchNorm}


def small_conv(channels: int, norm: Norm = group_norm) -> nn.Sequential:
    """Two convolutions, (N, C, H, W) -> (N, 64, about H/4, about W/4): for small machines."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 8, stride=4),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.ReLU(inplace=True),
    )


class BasicBlock(nn.Module):
    """Residual block of He et al. 2016 (https://arxiv.org/abs/1512.03385)."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)
        self.around = _around(channels_in, width, stride, norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, in, H, W) -> (N, out, H / stride, W / stride)."""
        hidden = functional.relu(self.norm1(self.conv1(maps)), inplace=True)
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.around(maps), inplace=True)


class Bottleneck(nn.Module):
    """The block of the deeper ones; its 3x3 convolution has the stride, as in torchvision."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = norm(width)
        self.conv3 = Conv2d(width, out, 1, bias=False)
        self.norm3 = norm(out)
        self.around = _around(channels_in, out, stride, norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, in, H, W) -> (N, out, H / stride, W / stride)."""
        hidden = functional.relu(self.norm1(self.conv1(maps)), inplace=True)
        hidden = functional.relu(self.norm2(self.conv2(hidden)), inplace=True)
        hidden = self.norm3(self.conv3(hidden))
        return functional.relu(hidden + self.around(maps), inplace=True)


def _around(channels_in: int, out: int, stride: int, norm: Norm) -> nn.Module:
    if stride == 1 and channels_in == out:
        return nn.Identity()
    return nn.Sequential(Conv2d(channels_in, out, 1, stride, bias=False), norm(out))


# name -> its block, and how many of them each of the four stages has
RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def resnet(name: str, channels: int, norm: Norm = group_norm) -> nn.Sequential:
    """A ResNet without its head, (N, C, H, W) -> (N, 512 or 2048, about H/32, about W/32)."""
    block, counts = RESNETS[name]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False),
        norm(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    width = 64
    for stage, count in enumerate(counts):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            layers.append(block(width, 64 * 2**stage, stride, norm))
            width = 64 * 2**stage * block.expansion
    return nn.Sequential(*layers)


class Timm(nn.Module):
    """A model of https://github.com/huggingface/pytorch-image-models without its head.

    Its batch norms keep the statistics that its weights bring, in training too: see
    FrozenBatchNorm; without weights those are 0 and 1.

    Args:
        name: as timm has it.
        channels: of the pixels.
        size: (height, width) of the pixels.
        class_token: give a transformer's class token (N, F, 1, 1) instead of its patches' maps.

    Raises:
        UserError: timm is not installed, has no such model, or the model does not take the size.
    """

    def __init__(
        self, name: str, channels: int, size: tuple[int, int], class_token: bool = False
    ) -> None:
        super().__init__()
        self.model, self.class_token = _timm_model(name, channels, size), class_token
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        if class_token and not (prefix and getattr(self.model, "cls_token", None) is not None):
            cure = "use keypoints, mean or attention"
            raise UserError(f"{name} has no class token", "policy.image_encoder.pool", cure)
        self.train()

    @property
    def batch_norms(self) -> list[nn.Module]:
        """Those that it has."""
        return [part for part in self.modules() if isinstance(part, _BatchNorm)]

    def train(self, mode: bool = True) -> Timm:
        """All but the batch norms."""
        super().train(mode)
        for norm in self.batch_norms:
            norm.eval()
        return self

    @torch.enable_grad()
    def learn_what_is_asked(self, pixels: Tensor) -> None:
        """Freeze what `forward` does not use, as some heads that timm does not leave out."""
        weights = list(self.parameters())
        found = torch.autograd.grad(self(pixels).sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            weight.requires_grad_(gradient is not None)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, F, h, w), or (N, F, 1, 1)."""
        found: Tensor = self.model.forward_features(pixels)
        if found.ndim == 4:
            first = found.shape[1] == self.model.num_features
            return found if first else found.permute(0, 3, 1, 2)
        if self.class_token:
            return found[:, 0, :, None, None]
        patches = found[:, self.model.num_prefix_tokens :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.model.patch_embed.grid_size)


def import_timm() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        cure = 'pip install "diffusion_policy_ros[vision]"'
        where = "policy.image_encoder.name"
        raise UserError(f"timm is not there ({error})", where, cure) from None
    return timm


def _timm_model(name: str, channels: int, size: tuple[int, int]) -> Any:
    timm, where = import_timm(), "policy.image_encoder.name"
    if not timm.is_model(name):
        known = timm.list_models()
        raise UserError(f"timm has no '{name}'", where, did_you_mean(name.split(".")[0], known))
    given = {"pretrained": False, "num_classes": 0, "global_pool": "", "in_chans": channels}
    try:
        try:
            return timm.create_model(name, **given, img_size=size)
        except TypeError:  # convolutions take any size
            return timm.create_model(name, **given)
    except (AssertionError, RuntimeError, ValueError) as error:
        cure = "set policy.image_encoder.resize and crop to a size that it takes"
        what = f"{name} does not take {size[0]} x {size[1]}: {error}"
        raise UserError(what, where, cure) from None
