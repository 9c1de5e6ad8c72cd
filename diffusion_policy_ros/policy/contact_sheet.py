"""A picture for people of what a network sees of a camera, and how that varies in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffusion_policy_ros.policy.eyes import ObservationEncoder
from diffusion_policy_ros.policy.view import View, look_varied

SAMPLES, COLUMNS = 8, 4
GAP, MARK = 4, (255, 60, 60)


def write_contact_sheets(
    encoder: ObservationEncoder, observation: Mapping[str, NDArray[Any]], folder: Path
) -> Iterator[Path]:
    """Write `view_CAMERA.png` for each camera; yields where.

    Args:
        encoder: what looks at them.
        observation: key -> (B, To, H, W, C); the first window's newest frame is drawn.
        folder: where to; it is there.
    """
    for key, camera in encoder.image_encoders.items():
        path = folder / f"view_{key}.png"
        contact_sheet(camera.view, observation[key][0, -1]).save(path)
        yield path


def contact_sheet(view: View, picture: NDArray[np.uint8], seed: int = 0) -> Image.Image:
    """The picture with the centre's crop drawn in; beside it samples of what training sees.

    Args:
        view: what is seen.
        picture: (H, W, C).
        seed: of the samples.
    """
    whole = _image(picture).resize(view.whole[::-1], Image.Resampling.BILINEAR)
    (top, left), (height, width) = view.corner, view.size
    box = (left, top, left + width - 1, top + height - 1)
    ImageDraw.Draw(whole).rectangle(box, outline=MARK)
    numbers = torch.rand(
        (SAMPLES, view.augment.numbers), generator=torch.Generator().manual_seed(seed)
    )
    same = torch.from_numpy(picture)[None, None].expand(SAMPLES, -1, -1, -1, -1)
    samples = look_varied(same, view, numbers)[:, 0].round().to(torch.uint8).numpy()
    across, down = width + GAP, height + GAP
    size = (
        whole.width + COLUMNS * across,
        max(whole.height, -(-SAMPLES // COLUMNS) * down - GAP),
    )
    sheet = Image.new("RGB", size, "white")
    sheet.paste(whole, (0, 0))
    for number, sample in enumerate(samples):
        row, column = divmod(number, COLUMNS)
        sheet.paste(_image(sample), (whole.width + GAP + column * across, row * down))
    return sheet


def _image(picture: NDArray[np.uint8]) -> Image.Image:
    """Of the first three channels; a single one is grey."""
    channels = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1].repeat(3, -1)
    return Image.fromarray(np.ascontiguousarray(channels))
