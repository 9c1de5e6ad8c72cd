"""One message ↔ one array.

Messages are duck-typed: whatever has the attributes of the ROS message will do, so that a recorded
message, a live one and a simulated one take the same path. Nothing is guessed: an encoding, a size
or a joint that the contract does not name is refused with the stream's name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.errors import UserError, names_said
from diffusion_policy_ros.observe.paths import numbers

Array = NDArray[Any]


class DecodeError(UserError):
    """A message that is not what the contract says; ``where`` is the stream's name and topic."""


def stamp_ns(msg: Any) -> int | None:
    """The header's stamp in ns, or None where the type has no header."""
    header = getattr(msg, "header", None)
    return None if header is None else header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def decode(stream: Stream, msg: Any) -> Array:
    """The array that a message of a stream becomes.

    Args:
        stream: what the contract says of it.
        msg: the message, of the stream's type.

    Returns:
        uint8 (H, W, C) for images, float32 (n,) otherwise.

    Raises:
        DecodeError: the message is not what the contract says, or not finite.
    """
    try:
        if stream.frame_id:
            _check_frame(stream, msg)
        decoder = DECODERS.get(stream.type)
        value = decoder(stream, msg) if decoder else _float32(numbers(stream.field, msg))
    except UserError as error:
        raise DecodeError(error.what, f"{stream.name} ({stream.topic})", error.cure) from None
    return _resized(stream, value) if stream.is_image else _checked(stream, value)


def _check_frame(stream: Stream, msg: Any) -> None:
    """What is told in another tf frame is another thing; one that says none is believed."""
    told = msg.header.frame_id.removeprefix("/")
    if told not in ("", stream.frame_id):
        what = f"it is told in '{told[:64]}', the contract says '{stream.frame_id}'"
        raise UserError(what, "", "mend the action's frame, or the stream's frame_id")


def _image(stream: Stream, msg: Any) -> Array:
    """``sensor_msgs/Image`` as RGB or grey without a copy, its rows' padding cut off."""
    if msg.encoding != stream.encoding:
        cure = f"set encoding: {msg.encoding} in the contract if that is meant"
        raise UserError(
            f"the image is {msg.encoding[:32]!r}, the contract says '{stream.encoding}'", "", cure
        )
    channels, order = ENCODINGS[stream.encoding]
    shape, strides = (msg.height, msg.width, channels), (msg.step, channels, 1)
    data = np.frombuffer(msg.data, dtype=np.uint8)
    needed = (msg.height - 1) * msg.step + msg.width * channels
    if msg.height < 1 or msg.width < 1 or msg.step < msg.width * channels or len(data) < needed:
        raise UserError(
            f"{len(data)} bytes are no {msg.width}x{msg.height} image in rows of {msg.step}"
        )
    image: Array = np.ndarray(shape, np.uint8, data, 0, strides)
    image.flags.writeable = False
    return image[..., order]


def _compressed_image(stream: Stream, msg: Any) -> Array:
    """``sensor_msgs/CompressedImage`` (jpeg or png) as RGB."""
    try:
        with Image.open(io.BytesIO(bytes(msg.data)), formats=("JPEG", "PNG")) as picture:
            return np.asarray(picture.convert("RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(
            f"not a whole jpeg or png ({type(error).__name__})", "", "check the camera's driver"
        ) from None


def _joint_state(stream: Stream, msg: Any) -> Array:
    if not stream.names:
        return _float32(numbers(stream.field, msg))
    return _picked(stream, msg.name, getattr(msg, stream.field))


def _joint_trajectory(stream: Stream, msg: Any) -> Array:
    """The first point of a trajectory: a recorded command."""
    if not msg.points:
        raise UserError("the trajectory is empty")
    return _picked(stream, msg.joint_names, getattr(msg.points[0], stream.field))


def _picked(stream: Stream, names: Sequence[str], values: Sequence[float]) -> Array:
    """The contract's joints, by name and in the contract's order."""
    if not stream.names:
        return _float32(values)
    places = {name: i for i, name in enumerate(names)}
    missing = _missing(stream, places, values)
    if missing:
        what = f"no {stream.field} of joint '{missing[0]}'"
        raise UserError(what, "", f"the message has {names_said(places)}")
    return _float32([values[places[name]] for name in stream.names])


def _missing(stream: Stream, places: Mapping[str, int], values: Sequence[float]) -> list[str]:
    return [name for name in stream.names if places.get(name, len(values)) >= len(values)]


def holds(stream: Stream, msg: Any) -> bool:
    """Whether a message has all the joints that a stream names; one of another driver has not.

    What cannot be read holds them as well, so that decoding says why.
    """
    if not stream.names:
        return True
    try:
        places = {name: i for i, name in enumerate(msg.name)}
        return not _missing(stream, places, getattr(msg, stream.field))
    except (UserError, AttributeError):
        return True


DECODERS: dict[str, Callable[[Stream, Any], Array]] = {
    "sensor_msgs/msg/Image": _image,
    "sensor_msgs/msg/CompressedImage": _compressed_image,
    "sensor_msgs/msg/JointState": _joint_state,
    "trajectory_msgs/msg/JointTrajectory": _joint_trajectory,
}
"""Message type → decoder, of types that are more than a path to numbers, see `paths.numbers`."""

ENCODINGS: dict[str, tuple[int, slice]] = {
    "rgb8": (3, slice(None)),
    "bgr8": (3, slice(None, None, -1)),
    "rgba8": (4, slice(0, 3)),
    "bgra8": (4, slice(2, None, -1)),
    "mono8": (1, slice(None)),
}
"""Encoding → bytes a pixel, and where red, green, blue stand in them."""

_FILTERS = {"area": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR}


def _float32(values: Any) -> Array:
    with np.errstate(over="ignore"):  # infinite then, and refused
        return np.asarray(values, dtype=np.float32)


def _checked(stream: Stream, value: Array) -> Array:
    """A vector of the right size, finite, in SI units."""
    where = f"{stream.name} ({stream.topic})"
    if value.shape != stream.shape:
        raise DecodeError(
            f"{value.size} values, the contract says {stream.size}", where, "mend shape or names"
        )
    numbers = value.tolist()  # a few of them: plain floats are checked faster than arrays
    if not all(map(math.isfinite, numbers)):
        raise DecodeError(f"not finite: {numbers}", where, "check the publisher")
    if stream.quantity == "orientation" and not 0.9 < math.hypot(*numbers) < 1.1:
        raise DecodeError(f"{numbers} is no unit quaternion", where, "check the publisher")
    return value * np.array(stream.scale, np.float32) if stream.scale else value


def _resized(stream: Stream, image: Array) -> Array:
    """Cropped, in the contract's channels and size."""
    where = f"{stream.name} ({stream.topic})"
    height, width, channels = stream.shape
    wanted = stream.source_size or (
        (height, width) if stream.resize == "none" and not stream.crop else ()
    )
    if wanted and image.shape[:2] != wanted:
        got, said = (f"{size[1]}x{size[0]}" for size in (image.shape, wanted))
        raise DecodeError(
            f"the image is {got}, the contract says {said}",
            where,
            "mend the camera's settings or source_size and resize",
        )
    if stream.crop:
        top, left, h, w = stream.crop
        if top + h > image.shape[0] or left + w > image.shape[1]:
            raise DecodeError(
                f"a {image.shape[1]}x{image.shape[0]} image has no such crop", where, "mend crop"
            )
        image = image[top : top + h, left : left + w]
    if image.shape[:2] != (height, width):
        if stream.resize == "none":
            raise DecodeError(
                f"{image.shape[1]}x{image.shape[0]} after cropping", where, "set resize: area"
            )
        image = _scaled(image, (width, height), _FILTERS[stream.resize])
    return _in_channels(image, channels)


def _scaled(image: Array, size: tuple[int, int], how: Image.Resampling) -> Array:
    picture = Image.fromarray(np.ascontiguousarray(image if image.shape[2] > 1 else image[..., 0]))
    return np.asarray(picture.resize(size, how)).reshape(size[1], size[0], image.shape[2])


def _in_channels(image: Array, channels: int) -> Array:
    """Contiguous (H, W, channels): RGB, or grey by ITU-R BT.601."""
    if image.shape[2] == channels:
        return np.ascontiguousarray(image)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None]
