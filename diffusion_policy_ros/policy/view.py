"""What of a camera's picture the network looks at: resized, cropped, in training varied.

Two functions touch pixels: `look` when running and validating, `look_varied` in training. Both
keep the layout (..., H, W, C) that pictures are stored and observed as, and their values 0..255.
What is random is a function of numbers that the caller draws, one row a window, so that all frames
of a window are varied alike and a run can be resumed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.strict_yaml import Problem

CROP_NUMBERS, ALL_NUMBERS = 2, 16
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
MIDDLE = 127.5
ERASED = (0.02, 0.2)  # share of the picture; Zhong et al. 2020 (https://arxiv.org/abs/1708.04896)


def _up_to(high: float) -> Any:
    """A strength: 0 is none."""
    return field(default=0.0, metadata={"min": 0.0, "max": high})


@dataclass(frozen=True)
class AugmentSettings:
    """How pictures vary in training, drawn anew for each window; none of it when running.

    Attributes:
        random_crop: the crop lies anywhere instead of in the centre.
        brightness: 0.3 multiplies by 0.7 to 1.3.
        contrast: the same for the distance from the picture's mean.
        saturation: the same for the distance from grey.
        hue: largest turn of the colours, in turns: 0.5 is any.
        rotate_deg: largest rotation about the centre.
        translate: largest shift, as a share of the side.
        scale: 0.1 magnifies by 0.9 to 1.1.
        blur: largest standard deviation of a Gaussian, in pixels.
        erase: share of windows in which a rectangle is grey (Zhong et al. 2020).
    """

    random_crop: bool = True
    brightness: float = _up_to(1.0)
    contrast: float = _up_to(1.0)
    saturation: float = _up_to(1.0)
    hue: float = _up_to(0.5)
    rotate_deg: float = _up_to(180.0)
    translate: float = _up_to(0.5)
    scale: float = _up_to(0.9)
    blur: float = _up_to(10.0)
    erase: float = _up_to(1.0)

    @property
    def colours(self) -> bool:
        """Whether colours vary."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def without_colours(self) -> AugmentSettings:
        """For depth, whose values are distances."""
        return replace(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)

    @property
    def moves(self) -> bool:
        """Whether the picture moves beside its crop."""
        return any((self.rotate_deg, self.translate, self.scale))

    @property
    def numbers(self) -> int:
        """How many numbers from 0 to below 1 a window needs."""
        more = self.colours or self.moves or self.blur or self.erase
        return ALL_NUMBERS if more else CROP_NUMBERS


@dataclass(frozen=True)
class ViewSettings:
    """Which part of a picture is seen.

    Attributes:
        resize: (height, width) that the whole picture is brought to first, antialiased; [] leaves
            it as it is.
        crop: share of height and width that is seen: at random places in training, the centre when
            running. 1 is the whole picture; a list is [height, width] in pixels.
        crop_shape: what older recipes wrote instead of crop: pixels, or [] for the whole picture.
            Its centre is rounded down, that of crop as torchvision does.
        augment: what else varies in training.
    """

    resize: tuple[int, ...] = ()
    crop: float | tuple[int, ...] = field(default=0.9, metadata={"min": 0.05, "max": 1.0})
    crop_shape: tuple[int, ...] | None = None
    augment: AugmentSettings = AugmentSettings()

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        sizes = {"resize": self.resize, "crop_shape": self.crop_shape or ()}
        if isinstance(self.crop, tuple):
            sizes["crop"] = self.crop or (0,)
        for key, size in sizes.items():
            if size and (len(size) != 2 or min(size) < 1):
                yield Problem(key, f"{list(size)} is no size", "write [height, width]")


class View(NamedTuple):
    """What is seen of a picture of a known size.

    Attributes:
        whole: (height, width) of the picture, after resizing.
        size: (height, width) of what is seen.
        corner: (top, left) of the centre's crop.
        resized: whether the picture came in another size.
        augment: how it varies in training.
    """

    whole: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]
    resized: bool
    augment: AugmentSettings

    @property
    def share(self) -> float:
        """Of the picture's area, how much is seen when running."""
        return math.prod(self.size) / math.prod(self.whole)

    @property
    def text(self) -> str:
        """For people: how much of the picture is seen when running."""
        (height, width), (whole_height, whole_width) = self.size, self.whole
        return f"{height} x {width} of {whole_height} x {whole_width}, {self.share:.0%} of it"

    @property
    def spare(self) -> tuple[int, int]:
        """Pixels by which the crop can move."""
        return self.whole[0] - self.size[0], self.whole[1] - self.size[1]


def view_of(name: str, picture: tuple[int, int], settings: ViewSettings) -> View:
    """The view of a camera.

    Args:
        name: the camera's.
        picture: (height, width) as it is observed.
        settings: see ViewSettings.

    Raises:
        UserError: the crop is larger than the picture.
    """
    height, width = settings.resize or picture
    key, crop = "crop", settings.crop
    if settings.crop_shape is not None:
        key, crop = "crop_shape", settings.crop_shape or (height, width)
    if not isinstance(crop, tuple):
        crop = max(1, int(height * crop)), max(1, int(width * crop))
    if crop[0] > height or crop[1] > width:
        what = f"{crop[0]} x {crop[1]} does not fit into {name}, {height} x {width}"
        cure = "use a size up to the image's, or a share of it such as crop: 0.9"
        raise UserError(what, f"policy.image_encoder.{key}", cure)
    spare = height - crop[0], width - crop[1]
    centre = (spare[0] // 2, spare[1] // 2)
    if key == "crop":  # as torchvision: halves to the even neighbour
        centre = round(spare[0] / 2), round(spare[1] / 2)
    resized = (height, width) != picture
    return View((height, width), (crop[0], crop[1]), centre, resized, settings.augment)


def look(images: Tensor, view: View) -> Tensor:
    """Pictures (B, To, H, W, C) -> what is seen of them when running, (B, To, h, w, C).

    uint8 as they came, or float32 where they were resized.
    """
    (top, left), (height, width) = view.corner, view.size
    return _resized(images, view)[:, :, top : top + height, left : left + width]


def look_varied(images: Tensor, view: View, numbers: Tensor) -> Tensor:
    """Pictures (B, To, H, W, C) -> what is seen of them in training, (B, To, h, w, C).

    Args:
        images: the windows.
        view: what is seen, and how it varies.
        numbers: (B, augment.numbers) from 0 to below 1, whatever device they are on.
    """
    augment = view.augment
    seen = look(images, view)
    if augment.random_crop and any(view.spare):
        seen = _random_crop(_resized(images, view), view, numbers[:, :CROP_NUMBERS])
    if augment.numbers == CROP_NUMBERS:
        return seen
    signs = 2 * numbers.to(images.device, torch.float32, non_blocking=True) - 1
    pixels = seen.float()
    if augment.colours:
        pixels = _colours(pixels, augment, signs[:, 2:6])
    if augment.moves:
        pixels = _moved(pixels, augment, signs[:, 6:10])
    if augment.blur:
        pixels = _blurred(pixels, augment.blur, (signs[:, 10] + 1) / 2)
    return _erased(pixels, augment.erase, (signs[:, 11:16] + 1) / 2) if augment.erase else pixels


def _resized(images: Tensor, view: View) -> Tensor:
    if not view.resized:
        return images
    planes = images.flatten(0, 1).permute(0, 3, 1, 2).float()
    planes = functional.interpolate(planes, view.whole, mode="bilinear", antialias=True)
    return planes.permute(0, 2, 3, 1).view(*images.shape[:2], *view.whole, -1)


def _random_crop(images: Tensor, view: View, places: Tensor) -> Tensor:
    """Each window cut at its own place (B, 2): between top and bottom, left and right."""
    height, width = view.size
    corners = (places.cpu() * (torch.tensor(view.spare) + 1)).long().tolist()
    return torch.stack(
        [
            window[:, top : top + height, left : left + width]
            for window, (top, left) in zip(images, corners, strict=True)
        ]
    )


def _colours(pixels: Tensor, augment: AugmentSettings, signs: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue by `signs` (B, 4) from -1 to 1.

    Channels beyond three, such as depth, have no colour and stay; one channel has no hue.
    """
    colour, rest = pixels[..., :3], pixels[..., 3:]
    rows = signs[..., None, None, None, None]
    colour = colour * (1 + augment.brightness * rows[:, 0])
    mean = colour.mean(dim=(2, 3, 4), keepdim=True)
    colour = torch.lerp(mean, colour, 1 + augment.contrast * rows[:, 1])
    if colour.shape[-1] == 3:
        grey = (colour * colour.new_tensor(GREY)).sum(-1, keepdim=True)
        colour = torch.lerp(grey, colour, 1 + augment.saturation * rows[:, 2])
        turn = _turn_of_colours(2 * math.pi * augment.hue * signs[:, 3])
        colour = torch.einsum("bthwc,bdc->bthwd", colour, turn)
    return torch.cat([colour.clamp(0, 255), rest], dim=-1)


def _turn_of_colours(angles: Tensor) -> Tensor:
    """Rotations (B, 3, 3) of red, green, blue about the greys, by Rodrigues' formula."""
    axis = angles.new_full((3,), 3**-0.5)
    zero, one = angles.new_zeros(()), axis[0]
    cross = torch.stack([zero, -one, one, one, zero, -one, -one, one, zero]).view(3, 3)
    sine, cosine = angles.sin()[:, None, None], angles.cos()[:, None, None]
    identity = torch.eye(3, device=angles.device)
    return cosine * identity + sine * cross + (1 - cosine) * torch.outer(axis, axis)


def _moved(pixels: Tensor, augment: AugmentSettings, signs: Tensor) -> Tensor:
    """Rotated, shifted and scaled about the centre by `signs` (B, 4); edges are mirrored."""
    batch, frames, height, width, _ = pixels.shape
    angle, size = math.radians(augment.rotate_deg) * signs[:, 0], 1 + augment.scale * signs[:, 1]
    sine, cosine, shift = angle.sin() / size, angle.cos() / size, 2 * augment.translate * signs
    rows = [
        torch.stack([cosine, -sine * height / width, shift[:, 2]], dim=1),
        torch.stack([sine * width / height, cosine, shift[:, 3]], dim=1),
    ]
    grid = functional.affine_grid(
        torch.stack(rows, dim=1), [batch, 1, height, width], align_corners=False
    )
    planes = pixels.permute(0, 1, 4, 2, 3).flatten(1, 2)  # frames and channels move alike
    planes = functional.grid_sample(planes, grid, padding_mode="reflection", align_corners=False)
    return planes.view(batch, frames, -1, height, width).permute(0, 1, 3, 4, 2)


def _blurred(pixels: Tensor, strongest: float, numbers: Tensor) -> Tensor:
    """Blurred by a Gaussian of numbers (B,) times the strongest deviation."""
    batch, frames, height, width, channels = pixels.shape
    reach = min(math.ceil(3 * strongest), height - 1, width - 1)
    offsets = torch.arange(-reach, reach + 1, device=pixels.device)
    deviation = (strongest * numbers).clamp(min=1e-3)[:, None]
    kernel = (-(offsets**2) / (2 * deviation**2)).softmax(dim=1)  # of the exponents: sums to 1
    kernel = kernel.repeat_interleave(frames * channels, dim=0)[:, None, None]
    planes = pixels.permute(0, 1, 4, 2, 3).reshape(1, -1, height, width)
    planes = functional.pad(planes, (reach, reach, reach, reach), mode="reflect")
    planes = functional.conv2d(planes, kernel, groups=len(kernel))
    planes = functional.conv2d(planes, kernel.transpose(2, 3), groups=len(kernel))
    return planes.view(batch, frames, channels, height, width).permute(0, 1, 3, 4, 2)


def _erased(pixels: Tensor, share: float, numbers: Tensor) -> Tensor:
    """In a share of the windows a rectangle is grey; numbers (B, 5) say in which, and where."""
    height, width = pixels.shape[2:4]
    whether, area, aspect, down, across = numbers.unbind(1)
    area = ERASED[0] + (ERASED[1] - ERASED[0]) * area
    ratio = 3.0 ** (2 * aspect - 1)  # from 1:3 to 3:1
    sides = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    inside = whether < share
    for axis, (count, side, place) in enumerate(
        ((height, sides[0], down), (width, sides[1], across))
    ):
        middles = (torch.arange(count, device=pixels.device) + 0.5) / count
        start = (place * (1 - side))[:, None]
        within = (middles >= start) & (middles < start + side[:, None])
        within = within[:, :, None] if axis == 0 else within[:, None, :]
        inside = inside.view(-1, 1, 1) & within if axis == 0 else inside & within
    return torch.where(inside[:, None, :, :, None], MIDDLE, pixels)
