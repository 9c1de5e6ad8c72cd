"""Declare parameters with a description and a range, in one line each; tell of them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

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


def help_text(about: str, declare_all: Callable[[Any], object]) -> str:
    """What `--help` of a node says: what it is; each parameter, its default, range and meaning.

    Args:
        about: what it is; the text of its module.
        declare_all: declares its parameters on what it is given instead of the node.
    """
    listed = _Listed()
    declare_all(listed)
    return f"{about.strip()}\n\nParameters, each as --ros-args -p NAME:=VALUE:\n{listed.text}"


class _Listed:
    """Stands in for a node where parameters are told of rather than declared."""

    def __init__(self) -> None:
        self.text = ""

    def declare_parameter(
        self, name: str, default: Any, descriptor: ParameterDescriptor
    ) -> SimpleNamespace:
        unset = isinstance(default, Parameter.Type)
        usual = "" if unset or default == "" else f" (default: {str(default).lower()})"
        says = " ".join(filter(None, (descriptor.description, descriptor.additional_constraints)))
        for span in (*descriptor.integer_range, *descriptor.floating_point_range):
            says += f" [{span.from_value} to {span.to_value}]"
        about = textwrap.fill(says + usual, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
        self.text += f"\n  {name}\n{about}"
        return SimpleNamespace(value=None if unset else default)

    def get_parameter_or(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(value=None)
