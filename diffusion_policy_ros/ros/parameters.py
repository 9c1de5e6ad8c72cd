"""Declare parameters with a description and a range, in one line each."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node

from diffusion_policy_ros.errors import UserError


def declare(
    node: Node,
    name: str,
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    live: bool = False,
) -> Any:
    """Declare a parameter and return its value.

    Args:
        node: the node.
        name: of the parameter.
        default: its default, whose type it keeps.
        description: what it does, with its unit.
        low: least value of a number.
        high: greatest value of a number.
        live: whether it may be changed while the node runs.

    Raises:
        UserError: it was set to another type, or out of its range.
    """
    descriptor = ParameterDescriptor(description=description, read_only=not live)
    if low is not None and high is not None:
        if isinstance(default, int):
            integers = IntegerRange(from_value=int(low), to_value=int(high), step=1)
            descriptor.integer_range = [integers]
        else:
            floats = FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
            descriptor.floating_point_range = [floats]
    try:
        return node.declare_parameter(name, default, descriptor).value
    except ParameterException as error:
        raise UserError(str(error), f"parameter {name}", f"give {description}") from None
