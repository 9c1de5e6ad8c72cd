"""One message ↔ one array.

Messages are duck-typed: whatever has the attributes of the ROS message will do, so that a recorded
message, a live one and a simulated one take the same path. Nothing is guessed: an encoding, a size
or a joint that the contract does not name is refused with the stream's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.errors import UserError, names_said
from diffusion_policy_ros.observe.images import IMAGES, fitted
from diffusion_policy_ros.observe.paths import numbers

Array = NDArray[Any]


LARGEST = float(np.finfo(np.float32).max)


class DecodeError(UserError):
    """A message that is not what the contract says; ``where`` is the stream's name and topic."""


def stamp_ns(msg: Any) -> int | None:
    """The header's stamp in ns, or None where the type has no header."""
    header = getattr(msg, "header", None)
    return None if header is None else header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def frame_of(msg: Any) -> str:
    """The header's tf frame; empty where it says none, or the type has no header."""
    header = getattr(msg, "header", None)
    return "" if header is None else str(header.frame_id).removeprefix("/")


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
        value = decoder(stream, msg) if decoder else _vector(numbers(stream.field, msg))
        return fitted(stream, value) if stream.is_image else checked(stream, value)
    except UserError as error:
        raise DecodeError(error.what, f"{stream.name} ({stream.topic})", error.cure) from None


def _check_frame(stream: Stream, msg: Any) -> None:
    """What is told in another tf frame is another thing; one that says none is believed."""
    told = frame_of(msg)
    if told not in ("", stream.frame_id):
        what = f"it is told in '{told[:64]}', the contract says '{stream.frame_id}'"
        raise UserError(what, "", "mend the action's frame, or the stream's frame_id")


def _joint_state(stream: Stream, msg: Any) -> Array:
    if not stream.names:
        return _vector(numbers(stream.field, msg))
    return _picked(stream, msg.name, numbers(stream.field, msg))


def _joint_trajectory(stream: Stream, msg: Any) -> Array:
    """The first point of a trajectory: a recorded command."""
    if not msg.points:
        raise UserError("the trajectory is empty")
    return _picked(stream, msg.joint_names, numbers(stream.field, msg.points[0]))


def _picked(stream: Stream, names: Sequence[str], values: Sequence[float]) -> Array:
    """The contract's joints, by name and in the contract's order."""
    if not stream.names:
        return _vector(values)
    places = {name: i for i, name in enumerate(names)}
    missing = _missing(stream, places, values)
    if missing:
        what = f"no {stream.field} of joint '{missing[0]}'"
        raise UserError(what, "", f"the message has {names_said(places)}")
    return _vector([values[places[name]] for name in stream.names])


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
    **IMAGES,
    "sensor_msgs/msg/JointState": _joint_state,
    "trajectory_msgs/msg/JointTrajectory": _joint_trajectory,
}
"""Message type → decoder, of types that are more than a path to numbers, see `paths.numbers`."""


def _vector(values: Any) -> Array:
    return np.asarray(values, dtype=np.float64)


def checked(stream: Stream, value: Array) -> Array:
    """A float32 vector of the right size, finite, in SI units.

    Args:
        stream: what the contract says of it.
        value: (n,) as it was told.

    Raises:
        UserError: it is not what the contract says.
    """
    if value.shape != stream.shape:
        what = f"{value.size} values, the contract says {stream.size}"
        raise UserError(what, "", "mend shape or names")
    numbers = value.tolist()  # a few of them: plain floats are checked faster than arrays
    length = math.hypot(*numbers)
    if not length <= LARGEST:
        raise UserError(f"not finite: {numbers}", "", "check the publisher")
    if stream.quantity == "orientation" and not is_unit(numbers):
        raise UserError(f"{numbers} is no unit quaternion", "", "check the publisher")
    vector = value.astype(np.float32)
    return vector * np.array(stream.scale, np.float32) if stream.scale else vector


def is_unit(quaternion: Sequence[float]) -> bool:
    """Whether four numbers are a rotation, but for rounding and what drivers make of it."""
    return 0.9 < math.hypot(*quaternion) < 1.1
