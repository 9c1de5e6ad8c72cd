"""Camera messages into pictures: uint8 (H, W, C), colour, grey, or depth between near and far.

Depth is told in steps from ``near`` (1) to ``far`` (255); 0 is a pixel without a measurement, or
out of the range. So it is stored, shown and fed to a network as any other picture is.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.contract.messages import DEPTH_ENCODINGS
from diffusion_policy_ros.errors import UserError

Array = NDArray[Any]

PLAIN: dict[str, tuple[int, slice]] = {
    "rgb8": (3, slice(None)),
    "bgr8": (3, slice(None, None, -1)),
    "8UC3": (3, slice(None, None, -1)),
    "rgba8": (4, slice(0, 3)),
    "bgra8": (4, slice(2, None, -1)),
    "mono8": (1, slice(None)),
    "8UC1": (1, slice(None)),
}
"""Encoding → bytes a pixel, and where red, green, blue stand in them; 8UC3 as OpenCV has it."""
BAYER = {
    "bayer_rggb8": "rggb",
    "bayer_bggr8": "bggr",
    "bayer_gbrg8": "gbrg",
    "bayer_grbg8": "grbg",
}
YUV422 = {"yuv422": (1, 0, 2), "uyvy": (1, 0, 2), "yuv422_yuy2": (0, 1, 3), "yuyv": (0, 1, 3)}
"""Encoding → where the first brightness, blue and red stand in the four bytes of two pixels."""
ENCODINGS = (*PLAIN, *BAYER, *YUV422, "nv12", "mono16", *DEPTH_ENCODINGS)
PNG = b"\x89PNG"
DEPTH_HEAD = struct.Struct("<iff")
"""What ``compressedDepth`` puts before its PNG: format, and two numbers of its quantisation."""
_TURNS = {"0": 0, "90": 3, "180": 2, "270": 1}


def picture(stream: Stream, msg: Any) -> Array:
    """``sensor_msgs/Image`` as (H, W, C), its rows' padding cut off; depth in metres, NaN if none.

    Raises:
        UserError: another encoding than the contract's, or not as many bytes as announced.
    """
    if msg.encoding != stream.encoding:
        what = f"the image is {msg.encoding[:32]!r}, the contract says '{stream.encoding}'"
        raise UserError(what, "", _cure(msg.encoding))
    if stream.encoding in PLAIN:
        channels, order = PLAIN[stream.encoding]
        return _rows(msg, channels, np.uint8)[..., order]
    if stream.encoding in BAYER:
        return _from_bayer(_rows(msg, 1, np.uint8)[..., 0], BAYER[stream.encoding])
    if stream.encoding in YUV422:
        return _from_yuv422(_rows(msg, 2, np.uint8), YUV422[stream.encoding])
    if stream.encoding == "nv12":
        return _from_nv12(msg)
    kind = "f4" if stream.encoding == "32FC1" else "u2"
    values = _rows(msg, 1, f">{kind}" if msg.is_bigendian else f"<{kind}")
    if stream.is_depth:
        return _metres(stream, values)
    return (values >> 8).astype(np.uint8)


def _cure(encoding: str) -> str:
    """What to write into the contract, which then is accepted."""
    if encoding in DEPTH_ENCODINGS:
        return f"set encoding: {encoding}, near: and far: in the contract if that is meant"
    if encoding in ENCODINGS:
        return f"set encoding: {encoding} in the contract if that is meant"
    return f"set the camera to one of {', '.join(ENCODINGS)}"


def compressed(stream: Stream, msg: Any) -> Array:
    """``sensor_msgs/CompressedImage``: jpeg or png as RGB; depth as png or ``compressedDepth``."""
    data = bytes(msg.data)
    with _whole():
        return _compressed_depth(stream, data) if stream.is_depth else _rgb_of(data)


def restored(stream: Stream, data: bytes) -> Array:
    """(H, W, C) of the jpeg or png bytes that a dataset keeps, by the decoder of live messages.

    Raises:
        UserError: they are no whole picture.
    """
    with _whole():
        return _in_channels(_rgb_of(data), stream.shape[2])


def _rgb_of(data: bytes) -> Array:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as found:
        if found.mode.startswith("I"):
            what = "it is a picture of 16 bits, as depth is"
            raise UserError(what, "", "set encoding: 16UC1, scale:, near: and far: for depth")
        return np.asarray(found if found.mode == "RGB" else found.convert("RGB"))


@contextmanager
def _whole() -> Iterator[None]:
    """Pillow's errors, as a user's."""
    try:
        yield
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        struct.error,
    ) as error:
        raise UserError(
            f"not a whole jpeg or png ({type(error).__name__})", "", "check the camera's driver"
        ) from None


def _compressed_depth(stream: Stream, data: bytes) -> Array:
    """A PNG of 16 bits, alone or behind compressedDepth's head."""
    head = b"" if data.startswith(PNG) else data[: DEPTH_HEAD.size]
    png = data[len(head) :]
    if not png.startswith(PNG):
        raise UserError("its depth is no png", "", "set the publisher's compressedDepth to png")
    with Image.open(io.BytesIO(png), formats=("PNG",)) as found:
        if not found.mode.startswith("I"):
            raise UserError("its depth has 8 bits", "", "publish it as png of 16 bits")
        values = np.asarray(found)[..., None]
    if stream.encoding != "32FC1":
        return _metres(stream, values)
    if not head:
        raise UserError("its png has no compressedDepth head", "", "set encoding: 16UC1")
    _, a, b = DEPTH_HEAD.unpack(head)
    with np.errstate(divide="ignore"):
        return _metres(stream, np.where(values > 0, a / (values.astype(np.float32) - b), np.nan))


def _rows(msg: Any, channels: int, dtype: Any) -> Array:
    """The pixels without a copy, (H, W, channels)."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    data = np.frombuffer(msg.data, dtype=np.uint8)
    needed = (msg.height - 1) * msg.step + msg.width * channels * size
    if msg.height < 1 or msg.width < 1 or msg.step < msg.width * channels * size:
        needed = len(data) + 1
    if len(data) < needed:
        raise UserError(
            f"{len(data)} bytes are no {msg.width}x{msg.height} image in rows of {msg.step}"
        )
    strides = (msg.step, channels * size, size)
    image: Array = np.ndarray((msg.height, msg.width, channels), dtype, data, 0, strides)
    image.flags.writeable = False
    return image


def _metres(stream: Stream, values: Array) -> Array:
    """float32 (H, W, 1), NaN where nothing was measured: 0, infinite or none."""
    metres = values.astype(np.float32) * np.float32(stream.scale[0] if stream.scale else 1.0)
    metres[~(metres > 0) | ~np.isfinite(metres)] = np.nan
    return np.asarray(metres)


def _even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise UserError(f"a {width}x{height} picture has no whole groups of colours")


def _from_bayer(mosaic: Array, pattern: str) -> Array:
    """Each group of 2x2 in its one colour: as sharp as a policy's size needs it."""
    _even(*mosaic.shape)
    parts = [mosaic[0::2, 0::2], mosaic[0::2, 1::2], mosaic[1::2, 0::2], mosaic[1::2, 1::2]]
    greens = [part.astype(np.uint16) for part, c in zip(parts, pattern, strict=True) if c == "g"]
    green = ((greens[0] + greens[1]) // 2).astype(np.uint8)
    found = np.stack([parts[pattern.index("r")], green, parts[pattern.index("b")]], axis=-1)
    return np.repeat(np.repeat(found, 2, axis=0), 2, axis=1)


def _from_yuv422(pairs: Array, places: tuple[int, int, int]) -> Array:
    """(H, W, 2): every two pixels share their colour."""
    height, width, _ = pairs.shape
    _even(2, width)
    fours = np.ascontiguousarray(pairs).reshape(height, width // 2, 4)
    first, blue, red = places
    bright = fours[..., [first, first + 2]].reshape(height, width)
    return _rgb(bright, *(np.repeat(fours[..., i], 2, axis=1) for i in (blue, red)))


def _from_nv12(msg: Any) -> Array:
    """Brightness, and below it colour of half the size in both directions."""
    _even(msg.height, msg.width)
    whole = _Plane(msg, msg.height * 3 // 2)
    planes = _rows(whole, 1, np.uint8)[..., 0]
    colours = planes[msg.height :].reshape(msg.height // 2, msg.width // 2, 2)
    grown = np.repeat(np.repeat(colours, 2, axis=0), 2, axis=1)
    return _rgb(planes[: msg.height], grown[..., 0], grown[..., 1])


class _Plane:
    """The bytes of a message as a picture of another height."""

    def __init__(self, msg: Any, height: int) -> None:
        self.height, self.width, self.step, self.data = height, msg.width, msg.step, msg.data


def _rgb(bright: Array, blue: Array, red: Array) -> Array:
    """ITU-R BT.601, with black at 16 and white at 235."""
    y = 1.164 * (bright.astype(np.float32) - 16)
    u, v = (part.astype(np.float32) - 128 for part in (blue, red))
    found = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=-1)
    return np.asarray(np.clip(np.rint(found), 0, 255), dtype=np.uint8)


def fitted(stream: Stream, image: Array) -> Array:
    """Upright, cropped, in the contract's channels and size.

    Raises:
        UserError: it is of another size than the contract says.
    """
    height, width, channels = stream.shape
    _check_size(stream, image)
    image = _upright(stream, image)
    if stream.crop:
        top, left, h, w = stream.crop
        if top + h > image.shape[0] or left + w > image.shape[1]:
            what = f"a {image.shape[1]}x{image.shape[0]} image has no such crop"
            raise UserError(what, "", "mend crop")
        image = image[top : top + h, left : left + w]
    if image.shape[:2] != (height, width):
        if stream.resize == "none":
            what = f"{image.shape[1]}x{image.shape[0]} after cropping"
            raise UserError(what, "", "set resize: area")
        scale = _scaled_depth if stream.is_depth else _scaled
        image = scale(image, (width, height), _FILTERS[stream.resize])
    return _steps(stream, image) if stream.is_depth else _in_channels(image, channels)


def _check_size(stream: Stream, image: Array) -> None:
    wanted = stream.source_size
    if not wanted and stream.resize == "none" and not stream.crop:
        wanted = stream.shape[:2] if stream.rotate in ("0", "180") else stream.shape[1::-1]
    if wanted and image.shape[:2] != wanted:
        got, said = (f"{size[1]}x{size[0]}" for size in (image.shape, wanted))
        what = f"the image is {got}, the contract says {said}"
        raise UserError(what, "", "mend the camera's settings or source_size and resize")


def _upright(stream: Stream, image: Array) -> Array:
    """Turned and mirrored as a camera is mounted; the same view where it is not."""
    if stream.rotate != "0":
        image = np.rot90(image, _TURNS[stream.rotate])
    if stream.flip:
        image = image[:, ::-1] if stream.flip == "horizontal" else image[::-1]
    return image


_FILTERS = {"area": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR}


def _scaled(image: Array, size: tuple[int, int], how: Image.Resampling) -> Array:
    source = Image.fromarray(np.ascontiguousarray(image if image.shape[2] > 1 else image[..., 0]))
    return np.asarray(source.resize(size, how)).reshape(size[1], size[0], image.shape[2])


def _scaled_depth(image: Array, size: tuple[int, int], how: Image.Resampling) -> Array:
    """The mean of what was measured; nothing where less than half of it was."""
    known = np.isfinite(image[..., 0])
    parts = (np.where(known, image[..., 0], 0.0), known)
    sums = [np.asarray(Image.fromarray(p.astype(np.float32)).resize(size, how)) for p in parts]
    mean = np.divide(sums[0], sums[1], out=np.full_like(sums[0], np.nan), where=sums[1] >= 0.5)
    return np.asarray(mean[..., None])


def _steps(stream: Stream, metres: Array) -> Array:
    """uint8: 1 at near, 255 at far, 0 where nothing was measured between them."""
    steps = np.rint(254 * (metres - stream.near) / (stream.far - stream.near))
    within = (steps >= 0) & (steps <= 254)
    return np.where(within, 1 + np.where(within, steps, 0), 0).astype(np.uint8)


def metres_of(stream: Stream, steps: Array) -> Array:
    """What steps of a depth picture mean, m; NaN where nothing was measured."""
    metres = stream.near + (steps.astype(np.float32) - 1) / 254 * (stream.far - stream.near)
    return np.where(steps > 0, metres, np.nan)


def _in_channels(image: Array, channels: int) -> Array:
    """Contiguous (H, W, channels): RGB, or grey by ITU-R BT.601."""
    if image.shape[2] == channels:
        return np.ascontiguousarray(image)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None]


IMAGES: dict[str, Callable[[Stream, Any], Array]] = {
    "sensor_msgs/msg/Image": picture,
    "sensor_msgs/msg/CompressedImage": compressed,
}
"""Message type → picture."""
