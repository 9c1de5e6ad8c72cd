"""From an observation window to the denoiser's condition.

Images enter as the uint8 (B, To, H, W, C) that they are stored and observed as. That layout is
torch's channels-last already, so nothing is transposed in memory on the way to the convolutions.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.backbones import (
    NORMS,
    RESNETS,
    TIMM,
    Norm,
    Timm,
    resnet,
    small_conv,
)
from diffusion_policy_ros.policy.normalizer import Normalizer, module_name
from diffusion_policy_ros.policy.tasks import TASK
from diffusion_policy_ros.policy.view import ViewSettings, look, look_varied, view_of
from diffusion_policy_ros.strict_yaml import Problem

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


class MeanPool(nn.Module):
    """The mean of each feature map, (N, F, h, w) -> (N, F)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, F, h, w) -> (N, F)."""
        return maps.mean(dim=(2, 3))


class AttentionPool(nn.Module):
    """Means of the feature maps, weighted by how much a place answers a learned query.

    Args:
        channels: F.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(channels))  # begins as the plain mean

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, F, h, w) -> (N, F)."""
        places = maps.flatten(2)
        scores = torch.einsum("nfp,f->np", places, self.query) / len(self.query) ** 0.5
        return torch.einsum("nfp,np->nf", places, scores.softmax(-1))


# name -> backbone for a number of channels and a norm, (N, C, H, W) -> feature maps
IMAGE_ENCODERS: dict[str, Callable[[int, Norm], nn.Module]] = {
    "small_conv": small_conv,
    **{name: functools.partial(resnet, name) for name in RESNETS},
}


@dataclass(frozen=True)
class ImageEncoderSettings(ViewSettings):
    """How one camera's picture becomes features.

    Attributes:
        name: a key of IMAGE_ENCODERS, or timm/NAME for any model of timm.
        norm: of a ResNet: "group", or "frozen" for the batch norm of its pretrained weights.
        weights: file of a pretrained backbone, read when training begins; see pretrained.py.
        weights_sha256: the beginning of its hash.
        mean: subtracted from each channel's value in 0..1; one number for all channels, or each.
        std: what is left is divided by it. ImageNet's are in pretrained.py.
        pool: what becomes of the feature maps: "keypoints" (spatial softmax), "mean", "attention"
            (a learned query), or a transformer's class token, "cls".
        keypoints: of the spatial softmax, two coordinates each.
        features: size after a last linear layer; 0 leaves what is pooled as it is.
        relu: whether what is below zero is cut off after that.
        shared: one encoder for all cameras instead of one each.
    """

    name: str = "resnet18"
    norm: Literal["group", "frozen"] = "group"
    weights: str | None = None
    weights_sha256: str | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    pool: Literal["keypoints", "mean", "attention", "cls"] = "keypoints"
    keypoints: int = field(default=32, metadata={"min": 1, "max": 1024})
    features: int = field(default=64, metadata={"min": 0, "max": 4096})
    relu: bool = False
    shared: bool = False

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        yield from super().problems()
        if self.name not in IMAGE_ENCODERS and not self.name.startswith(TIMM):
            known = [*IMAGE_ENCODERS, f"{TIMM}NAME"]
            yield Problem("name", f"'{self.name}' is unknown", did_you_mean(self.name, known))
        if not self.std or min(self.std) <= 0 or not self.mean:
            cure = "give numbers above 0, one or each channel's"
            yield Problem("std", f"{list(self.std)}", cure)
        if self.pool == "cls" and not self.name.startswith(TIMM):
            yield Problem("pool", f"{self.name} has no class token", "use keypoints or mean")


class ImageEncoder(nn.Module):
    """One camera: uint8 (B, To, H, W, C) -> features (B, To, F).

    Args:
        stream: the camera in the contract.
        settings: see ImageEncoderSettings.

    Attributes:
        view: what is seen of a picture.
        channels: C.
        features: F.

    Raises:
        UserError: the crop is larger than the image, or the image too small for the backbone.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, stream: Stream, settings: ImageEncoderSettings) -> None:
        super().__init__()
        height, width, self.channels = stream.shape
        self.settings = settings
        self.view = view_of(stream.name, (height, width), settings)
        if stream.is_depth:
            self.view = self.view._replace(augment=self.view.augment.without_colours)
        mean, std = (_each(v, self.channels, stream.name) for v in (settings.mean, settings.std))
        self.register_buffer("scale", 255 * std, persistent=False)
        self.register_buffer("offset", mean / std, persistent=False)
        if settings.name.startswith(TIMM):
            name, token = settings.name.removeprefix(TIMM), settings.pool == "cls"
            self.backbone: nn.Module = Timm(name, self.channels, self.view.size, token)
        else:
            self.backbone = IMAGE_ENCODERS[settings.name](self.channels, NORMS[settings.norm])
        self.to_keypoints: nn.Module = nn.Identity()
        self.pool, pooled = self._pool(stream, settings)
        if isinstance(self.backbone, Timm):
            self.backbone.learn_what_is_asked(torch.zeros(1, self.channels, *self.view.size))
        self.features = settings.features or pooled
        self.project: nn.Module = nn.Identity()
        if settings.features:
            self.project = nn.Linear(pooled, settings.features)
        self.activation = nn.ReLU() if settings.relu else nn.Identity()
        _to_channels_last(self)

    def _pool(self, stream: Stream, settings: ImageEncoderSettings) -> tuple[nn.Module, int]:
        """What pools the maps, and the size of that."""
        with torch.no_grad():
            try:
                maps = self.backbone(torch.zeros(1, self.channels, *self.view.size))
            except RuntimeError:
                seen, whole = ("{} x {}".format(*s) for s in (self.view.size, stream.shape[:2]))
                what = f"{whole}, of which {seen} is seen, is too small for {settings.name}"
                cure = "use a larger image, or a smaller encoder"
                raise UserError(what, f"image {stream.name}", cure) from None
        channels = maps.shape[1]
        if settings.pool == "keypoints":
            # A constant moves no key point: learning it would only gather errors of rounding.
            self.to_keypoints = nn.Conv2d(channels, settings.keypoints, 1)
            self.to_keypoints.get_parameter("bias").requires_grad_(False)
            return SpatialSoftmax(*maps.shape[2:]), 2 * settings.keypoints
        return AttentionPool(channels) if settings.pool == "attention" else MeanPool(), channels

    def forward(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Images (B, To, H, W, C) -> (B, To, F); in training varied by `numbers`, see view.py."""
        seen = look(images, self.view)
        if numbers is not None:
            seen = look_varied(images, self.view, numbers)
        return self.encode(seen.flatten(0, 1)).view(*images.shape[:2], -1)

    def encode(self, frames: Tensor) -> Tensor:
        """What is seen of frames (N, h, w, C), in 0..255 -> features (N, F)."""
        # One number for all channels stays one: per channel it takes ten times as long.
        pixels = (frames.float() / self.scale).sub_(self.offset).permute(0, 3, 1, 2)
        pooled = self.pool(self.to_keypoints(self.backbone(pixels)))
        features: Tensor = self.activation(self.project(pooled))
        return features


def _each(values: tuple[float, ...], channels: int, camera: str) -> Tensor:
    if len(values) not in (1, channels):
        what = f"{len(values)} numbers, {camera} has {channels} channels"
        raise UserError(what, "policy.image_encoder.mean, std", "give one, or each channel's")
    return torch.tensor(values)


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
        exceptions: key of a camera -> settings of its own.
        task_features: size of a task's embedding.

    Raises:
        UserError: cameras that share an encoder differ, or an exception is of no camera.
    """

    def __init__(
        self,
        contract: Contract,
        settings: ImageEncoderSettings,
        exceptions: Mapping[str, ImageEncoderSettings] | None = None,
        task_features: int = 0,
    ) -> None:
        super().__init__()
        own = exceptions or {}
        cameras = {key: s for key, s in contract.observations.items() if s.is_image}
        for key in own:
            if key not in cameras:
                cure = did_you_mean(key, cameras)
                raise UserError(f"no camera '{key}'", "policy.image_encoders", cure)
        self.module_names = {key: module_name(key) for key in contract.observations}
        self.cameras, shared = nn.ModuleDict(), list[tuple[Stream, ImageEncoder]]()
        for key, stream in cameras.items():
            if not settings.shared or key in own:
                encoder = ImageEncoder(stream, own.get(key, settings))
            else:
                shared = shared or [(stream, ImageEncoder(stream, settings))]
                encoder = _shared(stream, *shared[0])
            self.cameras[module_name(key)] = encoder
        self.task = None
        others = {k: s for k, s in contract.observations.items() if not s.is_image}
        if (tasks := others.pop(TASK, None)) is not None:
            self.task = nn.Linear(tasks.size, task_features, bias=False)  # of one number a task
        self.frame_features = sum(stream.size for stream in others.values())
        self.frame_features += sum(eye.features for eye in self.image_encoders.values())
        self.frame_features += 0 if self.task is None else task_features

    @property
    def image_encoders(self) -> dict[str, ImageEncoder]:
        """Key of each camera -> its encoder, in the contract's order."""
        named = {key: self.cameras[n] for key, n in self.module_names.items() if n in self.cameras}
        return {key: camera for key, camera in named.items() if isinstance(camera, ImageEncoder)}

    @property
    def view_numbers(self) -> int:
        """How many numbers each camera's picture needs to vary, at most."""
        return max((eye.view.augment.numbers for eye in self.image_encoders.values()), default=2)

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
        parts = []
        for key, name in self.module_names.items():
            if name in self.cameras:
                parts.append(self.cameras[name](observation[key], next(numbers, None)))
            elif self.task is not None and key == TASK:
                parts.append(self.task(observation[key]))
            else:
                parts.append(normalizer[key].normalize(observation[key]))
        return torch.cat(parts, dim=-1)


def _shared(stream: Stream, first: Stream, encoder: ImageEncoder) -> ImageEncoder:
    if stream.shape != first.shape:
        sizes = " and ".join(f"{s.name} {' x '.join(map(str, s.shape))}" for s in (first, stream))
        cure = "use false, or image_encoders for the one that differs"
        raise UserError(f"{sizes} cannot share", "policy.image_encoder.shared", cure)
    return encoder


@dataclass(frozen=True)
class TemporalEncoderSettings:
    """How the features of a window's frames become one vector, instead of being put in a row.

    Attributes:
        name: ``gru`` reads them from old to new, ``mlp`` is a perceptron of all of them.
        hidden_size: size of the vector.
        num_layers: of the recurrent unit, or hidden ones of the perceptron.
    """

    name: Literal["gru", "mlp"] = "gru"
    hidden_size: int = field(default=256, metadata={"min": 1, "max": 65536})
    num_layers: int = field(default=1, metadata={"min": 1, "max": 100})


class TemporalEncoder(nn.Module):
    """Features of each frame -> one vector of the window.

    A gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078), read from old to
    new: its size does not grow with the window, as that of the flattened frames does. Or a
    perceptron of all frames in a row.

    Args:
        frame_features: Do, size of a frame.
        frames: To.
        settings: see TemporalEncoderSettings.
    """

    def __init__(
        self, frame_features: int, frames: int, settings: TemporalEncoderSettings
    ) -> None:
        super().__init__()
        self.features, layers = settings.hidden_size, settings.num_layers
        self.unit: nn.Module
        if settings.name == "gru":
            self.unit = nn.GRU(frame_features, self.features, layers, batch_first=True)
            return
        sizes = [frame_features * frames, *[self.features] * layers]
        hidden = [
            part
            for given, made in itertools.pairwise(sizes)
            for part in (nn.Linear(given, made), nn.Mish())
        ]
        self.unit = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], self.features))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, To, Do) -> (B, hidden_size)."""
        found = self.unit(frames)
        vector: Tensor = found[0][:, -1] if isinstance(found, tuple) else found
        return vector
