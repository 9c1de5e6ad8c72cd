"""Message classes by name, and messages of the bytes that DDS delivers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from rclpy.serialization import deserialize_message

from diffusion_policy_ros.data.definitions import NAME_IT, NO_SCHEMA, is_known, is_stamped, maker
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe import cdr
from diffusion_policy_ros.observe.serialized import SerializedMessage, StampedMessage
from diffusion_policy_ros.ros.stand_in import stand_in


@cache
def message_class(name: str) -> Any:
    """The class of a message type, as in ``sensor_msgs/msg/Image``.

    Raises:
        UserError: no such type is installed.
    """
    package, _, rest = name.partition("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), rest.rpartition("/")[2])
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            "this message type is not installed", name, f"install or source {package}"
        ) from None


def is_installed(name: str) -> bool:
    """Whether ROS has the class of a message type here."""
    try:
        return message_class(name) is not None
    except UserError:
        return False


def serialized_class(name: str) -> Any:
    """The class of a message type for subscriptions and publishers of serialized messages.

    Raises:
        UserError: no such type is installed, and its definition is not known either.
    """
    try:
        return message_class(name)
    except UserError as error:
        if is_known(name):
            return stand_in(name)
        raise UserError(error.what, name, f"{error.cure}, or {NAME_IT}") from None


def has_header(name: str) -> bool:
    """Whether a type's messages begin with a ``std_msgs/Header``."""
    if is_installed(name):
        return _begins_with_header(message_class(name))
    return is_stamped(name)


@cache
def reader(name: str) -> Callable[[memoryview], SerializedMessage]:
    """What makes a message of its bytes, which are decoded by what decodes those of a bag.

    Where a pose comes 500 times a second, only those that frames use are decoded at all.

    Raises:
        UserError: no such type is installed, and its definition is not known either.
    """
    if not is_installed(name):
        serialized_class(name)
        return maker(name, NO_SCHEMA)
    kind, quick = message_class(name), cdr.DECODERS.get(name)
    names = kind.get_fields_and_field_types()

    def decode(raw: memoryview) -> dict[str, Any]:
        try:
            if quick is not None and raw[:2] == cdr.PLAIN_LITTLE:
                return quick(raw)
            message = deserialize_message(bytes(raw), kind)
        except (RuntimeError, *cdr.ERRORS):
            cure = "build publisher and subscriber with the same definition"
            raise UserError(f"{len(raw)} bytes are no {name}", "", cure) from None
        return {field: getattr(message, field) for field in names}

    stamped = _begins_with_header(kind)
    return functools.partial(StampedMessage if stamped else SerializedMessage, decode)


def _begins_with_header(kind: Any) -> bool:
    """As of a bag (`definitions.is_stamped`): a stamp is read from the first bytes."""
    first = next(iter(kind.get_fields_and_field_types().items()), ())
    return first == ("header", "std_msgs/Header")
