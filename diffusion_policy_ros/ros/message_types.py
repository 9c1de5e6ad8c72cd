"""Message classes by name."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from diffusion_policy_ros.errors import UserError


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
