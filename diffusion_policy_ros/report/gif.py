"""A rollout as a GIF, with the predicted chunk drawn in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffusion_policy_ros.atomic import replacing

NEAR, FAR = np.array([255, 214, 64]), np.array([0, 150, 255])
"""Colours of the next point and of the last one, RGB."""
COLOURS = 192
END_MS = 1000
"""How long the last picture stands at least."""


class RolloutGif:
    """Collects pictures and writes them as one GIF.

    Args:
        path: of the file.
        period_ms: how long each picture is shown.
    """

    def __init__(self, path: str | Path, period_ms: int = 100) -> None:
        self.path = Path(path)
        self._period_ms = period_ms
        self._pictures: list[Image.Image] = []

    def __len__(self) -> int:
        return len(self._pictures)

    def add(
        self, frame_rgb: NDArray[np.uint8], points_px: NDArray[np.float64], text: str = ""
    ) -> None:
        """Add a picture.

        Args:
            frame_rgb: (H, W, 3).
            points_px: (n, 2) column and row of the chunk's points, from the present one on; what
                is not finite is left out.
            text: one line, written below left.
        """
        picture = Image.fromarray(np.ascontiguousarray(frame_rgb))
        draw = ImageDraw.Draw(picture)
        _draw_path(draw, points_px[np.isfinite(points_px).all(axis=-1)])
        if text:
            box = draw.textbbox((4, picture.height - 15), text)
            draw.rectangle((box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2), fill=(20, 24, 30))
            draw.text((4, picture.height - 15), text, fill=(235, 240, 245))
        self._pictures.append(picture)

    def save(self) -> Path | None:
        """Write what there is, whole or not at all; None without a picture."""
        if not self._pictures:
            return None
        # One palette for all, taken from pictures of every part: no flicker, and half the size.
        palette = _palette(self._pictures)
        frames = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in self._pictures]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        times = [self._period_ms] * (len(frames) - 1) + [max(self._period_ms, END_MS)]
        more = {"append_images": frames[1:], "duration": times, "loop": 0}
        with replacing(self.path) as draft:
            frames[0].save(draft, "GIF", save_all=True, **more)
        return self.path


def _draw_path(draw: ImageDraw.ImageDraw, points: NDArray[np.float64]) -> None:
    """A line through the points with a dot on each, from `NEAR` to `FAR`."""
    shares = np.linspace(0.0, 1.0, max(len(points), 2))
    colours = [tuple(int(v) for v in (1 - s) * NEAR + s * FAR) for s in shares]
    spots = [(float(x), float(y)) for x, y in points]
    for a, b, colour in zip(spots, spots[1:], colours, strict=False):
        draw.line((*a, *b), fill=colour, width=2)
    for (x, y), colour in zip(spots, colours, strict=False):
        draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=colour, outline=(20, 24, 30))


def _palette(pictures: list[Image.Image]) -> Image.Image:
    chosen = pictures[:: max(1, len(pictures) // 8)][:8]
    strip = Image.new("RGB", (sum(p.width for p in chosen), max(p.height for p in chosen)))
    left = 0
    for picture in chosen:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip.quantize(COLOURS)
