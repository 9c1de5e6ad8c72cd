"""Message classes by name, and messages of the bytes that DDS delivers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from rclpy.serialization import deserialize_message

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe import cdr
from diffusion_policy_ros.observe.serialized import SerializedMessage, StampedMessage


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


@cache
def reader(name: str) -> Callable[[memoryview], SerializedMessage]:
    """What makes a message of its bytes, which are decoded by what decodes those of a bag.

    Where a pose comes 500 times a second, only those that frames use are decoded at all.

    Raises:
        UserError: no such type is installed.
    """
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

    return functools.partial(StampedMessage if "header" in names else SerializedMessage, decode)
