"""From an observation window to the denoiser's condition.

Images enter as the uint8 (B, To, H, W, C) that they are stored and observed as. That layout is
torch's channels-last already, so nothing is transposed in memory on the way to the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.convolutions import Conv2d
from diffusion_policy_ros.policy.normalizer import Normalizer, module_name
from diffusion_policy_ros.policy.view import ViewSettings, look, look_varied, view_of

Observation = Mapping[str, Tensor]


class SpatialSoftmax(nn.Module):
    """Expected coordinates of feature maps, each from -1 to 1.

    Finn et al. 2016 (https://arxiv.org/abs/1509.06113): where in the image a feature is.
    """

    grid: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        grid = torch.stack([x.flatten(), y.flatten()], dim=1)
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, K, H, W) -> x and y of each, (N, 2 K)."""
        # Never in bfloat16: 8 bits are too few for a place in an image.
        with torch.autocast(maps.device.type, enabled=False):
            attention = maps.float().flatten(2).softmax(dim=-1)
            return (attention @ self.grid.to(attention)).flatten(1)


def small_conv(channels: int) -> nn.Sequential:
    """Two convolutions, (N, C, H, W) -> (N, 64, about H/4, about W/4): for small machines."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 8, stride=4),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.ReLU(inplace=True),
    )


class BasicBlock(nn.Module):
    """Residual block of He et al. 2016 (https://arxiv.org/abs/1512.03385), group-normalised."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = _group_norm(channels_out)
        self.conv2 = Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = _group_norm(channels_out)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            around = Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.around = nn.Sequential(around, _group_norm(channels_out))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, in, H, W) -> (N, out, H / stride, W / stride)."""
        hidden = functional.relu(self.norm1(self.conv1(maps)), inplace=True)
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.around(maps), inplace=True)


def resnet18(channels: int) -> nn.Sequential:
    """ResNet-18 without its head, (N, C, H, W) -> (N, 512, about H/32, about W/32).

    Group normalisation (16 channels a group) instead of batch statistics, which averaged weights
    would not fit to, as in Chi et al. 2023.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False),
        _group_norm(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    width = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(width, out, stride), BasicBlock(out, out, 1)]
        width = out
    return nn.Sequential(*layers)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


# name -> backbone for a number of channels, (N, C, H, W) -> feature maps
IMAGE_ENCODERS: dict[str, Callable[[int], nn.Module]] = {
    "small_conv": small_conv,
    "resnet18": resnet18,
}


@dataclass(frozen=True)
class ImageEncoderSettings(ViewSettings):
    """How one camera's picture becomes features; each camera has weights of its own.

    Attributes:
        name: a key of IMAGE_ENCODERS.
        keypoints: of the spatial softmax, two coordinates each.
        features: size after a last linear layer; 0 leaves the coordinates as they are.
    """

    name: Literal["small_conv", "resnet18"] = "resnet18"
    keypoints: int = field(default=32, metadata={"min": 1, "max": 1024})
    features: int = field(default=64, metadata={"min": 0, "max": 4096})


class ImageEncoder(nn.Module):
    """One camera: uint8 (B, To, H, W, C) -> features (B, To, F).

    Args:
        stream: the camera in the contract.
        settings: see ImageEncoderSettings.

    Raises:
        UserError: the crop is larger than the image, or the image too small for the backbone.
    """

    def __init__(self, stream: Stream, settings: ImageEncoderSettings) -> None:
        super().__init__()
        height, width, channels = stream.shape
        self.view = view_of(stream.name, (height, width), settings)
        self.backbone = IMAGE_ENCODERS[settings.name](channels)
        with torch.no_grad():
            try:
                maps = self.backbone(torch.zeros(1, channels, *self.view.size))
            except RuntimeError:
                seen = "{} x {}".format(*self.view.size)
                what = f"{height} x {width}, of which {seen} is seen, is too small for"
                cure = "use a larger image, or a smaller encoder"
                raise UserError(f"{what} {settings.name}", f"image {stream.name}", cure) from None
        self.to_keypoints = nn.Conv2d(maps.shape[1], settings.keypoints, 1)
        # A constant moves no key point: learning it would only gather errors of rounding.
        self.to_keypoints.bias.requires_grad_(False)  # type: ignore[union-attr]
        self.pool = SpatialSoftmax(*maps.shape[2:])
        self.features = settings.features or 2 * settings.keypoints
        self.project: nn.Module = nn.Identity()
        if settings.features:
            self.project = nn.Linear(2 * settings.keypoints, settings.features)
        _to_channels_last(self)

    def forward(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Images (B, To, H, W, C) -> (B, To, F); in training varied by `numbers`, see view.py."""
        seen = look(images, self.view)
        if numbers is not None:
            seen = look_varied(images, self.view, numbers)
        return self.encode(seen.flatten(0, 1)).view(*images.shape[:2], -1)

    def encode(self, frames: Tensor) -> Tensor:
        """What is seen of frames (N, h, w, C), in 0..255 -> features (N, F)."""
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        keypoints = self.pool(self.to_keypoints(self.backbone(pixels)))
        features: Tensor = self.project(keypoints)
        return features


def _to_channels_last(module: nn.Module) -> None:
    """Lay out the convolutions' weights as their inputs are, so that nothing is reordered."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


class ObservationEncoder(nn.Module):
    """Observation window -> features (B, To, Do) of each frame, keys in the contract's order.

    Args:
        contract: says which keys there are.
        settings: of the cameras' encoders.
    """

    def __init__(self, contract: Contract, settings: ImageEncoderSettings) -> None:
        super().__init__()
        self.module_names = {key: module_name(key) for key in contract.observations}
        self.cameras = nn.ModuleDict(
            {
                module_name(key): ImageEncoder(stream, settings)
                for key, stream in contract.observations.items()
                if stream.is_image
            }
        )
        vectors = sum(s.size for s in contract.observations.values() if not s.is_image)
        eyes = self.image_encoders.values()
        self.frame_features = vectors + sum(eye.features for eye in eyes)

    @property
    def image_encoders(self) -> dict[str, ImageEncoder]:
        """Key of each camera -> its encoder, in the contract's order."""
        named = {key: self.cameras[n] for key, n in self.module_names.items() if n in self.cameras}
        return {key: camera for key, camera in named.items() if isinstance(camera, ImageEncoder)}

    def forward(
        self,
        observation: Observation,
        normalizer: Normalizer,
        views: Tensor | None = None,
    ) -> Tensor:
        """Images (B, To, H, W, C) and vectors (B, To, D) in physical units -> (B, To, Do).

        `views` (B, cameras, numbers) are what varies of the pictures in training, see view.py.
        """
        numbers = iter([] if views is None else views.unbind(1))
        parts = [
            self.cameras[name](observation[key], next(numbers, None))
            if name in self.cameras
            else normalizer[key].normalize(observation[key])
            for key, name in self.module_names.items()
        ]
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class TemporalEncoderSettings:
    """How the features of a window's frames become one vector, instead of being put in a row.

    Attributes:
        hidden_size: size of the vector.
        num_layers: recurrent layers.
    """

    hidden_size: int = field(default=256, metadata={"min": 1, "max": 65536})
    num_layers: int = field(default=1, metadata={"min": 1, "max": 100})


class TemporalEncoder(nn.Module):
    """Features of each frame -> one vector of the window, read from old to new.

    A gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078): its size does not
    grow with the window, as that of the flattened frames does.

    Args:
        frame_features: Do, size of a frame.
        settings: see TemporalEncoderSettings.
    """

    def __init__(self, frame_features: int, settings: TemporalEncoderSettings) -> None:
        super().__init__()
        self.features = settings.hidden_size
        self.unit = nn.GRU(frame_features, self.features, settings.num_layers, batch_first=True)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, To, Do) -> (B, hidden_size)."""
        states, _ = self.unit(frames)
        newest: Tensor = states[:, -1]
        return newest
