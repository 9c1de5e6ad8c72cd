"""Convolutions that learn faster on a CPU where a layer has more filters than places.

A chunk of 16 actions is 4 places long at the U-Net's bottom, an image 3 x 3 at ResNet's end.
There the weights are the work: oneDNN reorders megabytes of them for a handful of places, and
most of all for their gradient. Written as one product of gathered taps and weights as they lie
in memory, a layer's forward and backward take a half to a third of the time. Same numbers, to
rounding.

Only gradients' ways go through here; inference, GPUs, autocast and compiled graphs have the usual
convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` of stride 1, see above."""

    def forward(self, sample: Tensor) -> Tensor:
        """(B, in, H) -> (B, out, H')."""
        if not _by_taps(self, sample, (sample.shape[2],)):
            return super().forward(sample)
        return _add_bias(_taps_1d(sample, self.weight, int(self.padding[0])), self.bias)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, for inputs and weights in channels-last layout; see above."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        places = tuple(-(-side // self.stride[0]) for side in maps.shape[2:])
        if not _by_taps(self, maps, places):
            return super().forward(maps)
        out = _taps_2d(maps, self.weight, self.stride[0], int(self.padding[0]))
        return _add_bias(out, self.bias)


def _by_taps(conv: nn.Conv1d | nn.Conv2d, maps: Tensor, places: tuple[int, ...]) -> bool:
    """Whether gathered taps are the faster way: fewer rows than filters, and gradients wanted."""
    return (
        torch.is_grad_enabled()
        and conv.weight.requires_grad
        and maps.device.type == "cpu"
        and maps.dtype == conv.weight.dtype == torch.float32
        and len(maps) * math.prod(places) <= conv.out_channels
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _add_bias(maps: Tensor, bias: Tensor | None) -> Tensor:
    return maps if bias is None else maps + bias.view(-1, *[1] * (maps.dim() - 2))


def _taps_1d(sample: Tensor, weight: Tensor, padding: int) -> Tensor:
    out: Tensor = _Taps1d.apply(sample, weight, padding)  # type: ignore[no-untyped-call]
    return out


def _taps_2d(maps: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    out: Tensor = _Taps2d.apply(maps, weight, stride, padding)  # type: ignore[no-untyped-call]
    return out


class _Taps1d(torch.autograd.Function):
    """Rows of taps (B * H', in * kernel) times the weight as it lies, (out, in * kernel)."""

    @staticmethod
    def forward(ctx: Any, sample: Tensor, weight: Tensor, padding: int) -> Tensor:
        kernel = weight.shape[2]
        windows = functional.pad(sample, (padding, padding)).unfold(2, kernel, 1)
        taps = windows.transpose(1, 2).reshape(-1, weight.shape[1] * kernel)
        ctx.save_for_backward(taps, weight)
        ctx.shape, ctx.padding = sample.shape, padding
        rows = taps @ weight.flatten(1).t()
        return rows.view(len(sample), -1, len(weight)).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        taps, weight = ctx.saved_tensors
        (batch, channels, length), padding, kernel = ctx.shape, ctx.padding, weight.shape[2]
        places = gradient.shape[2]
        rows = gradient.transpose(1, 2).reshape(-1, len(weight))
        of_taps = (rows @ weight.flatten(1)).view(batch, places, channels, kernel)
        padded = rows.new_zeros(batch, length + 2 * padding, channels)
        for tap in range(kernel):
            padded[:, tap : tap + places] += of_taps[..., tap]
        of_sample = padded[:, padding : padding + length].transpose(1, 2)
        return of_sample, (rows.t() @ taps).view_as(weight), None


class _Taps2d(torch.autograd.Function):
    """Rows of taps (N * H' * W', kernel * kernel * in) times the weight, (out, the same)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        height, width = weight.shape[2:]
        images = functional.pad(maps.permute(0, 2, 3, 1), (0, 0, *[padding] * 4))
        windows = images.unfold(1, height, stride).unfold(2, width, stride)
        windows = windows.permute(0, 1, 2, 4, 5, 3)  # (N, H', W', kernel, kernel, in)
        places = windows.shape[:3]
        taps = windows.reshape(math.prod(places), -1)
        ctx.save_for_backward(taps, weight)
        ctx.shape, ctx.stride, ctx.padding = maps.shape, stride, padding
        rows = taps @ _channels_last(weight).flatten(1).t()
        return rows.view(*places, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        taps, weight = ctx.saved_tensors
        (count, channels, height, width), stride, padding = ctx.shape, ctx.stride, ctx.padding
        kernel, (rows_out, columns_out) = weight.shape[2:], gradient.shape[2:]
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
        of_taps = rows @ _channels_last(weight).flatten(1)
        of_taps = of_taps.view(count, rows_out, columns_out, *kernel, channels)
        padded = rows.new_zeros(count, height + 2 * padding, width + 2 * padding, channels)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                down = slice(i, i + stride * rows_out, stride)
                across = slice(j, j + stride * columns_out, stride)
                padded[:, down, across] += of_taps[:, :, :, i, j]
        of_maps = padded[:, padding : padding + height, padding : padding + width]
        of_weight = (rows.t() @ taps).view(len(weight), *kernel, channels)
        return of_maps.permute(0, 3, 1, 2), of_weight.permute(0, 3, 1, 2), None, None


def _channels_last(weight: Tensor) -> Tensor:
    """(out, in, h, w) -> (out, h, w, in), a view where the layout is channels-last."""
    return weight.permute(0, 2, 3, 1)
