"""Declare parameters with description and range, in one line each; tell of them; find misspelt."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from diffusion_policy_ros.errors import UserError

NEAR = 0.7
"""Likeness of two names from which on one is taken for the other, misspelt. Of our own nodes'
parameters, `seed` and `speed` alone are more alike."""
KINDS = {
    Parameter.Type.BOOL: "true or false",
    Parameter.Type.INTEGER: "a whole number",
    Parameter.Type.DOUBLE: "a number",
    Parameter.Type.STRING: "text",
    Parameter.Type.STRING_ARRAY: "a list as ['/a', '/b']",
}


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
    return declare_described(node, name, default, descriptor)


def declare_described(node: Node, name: str, default: Any, descriptor: ParameterDescriptor) -> Any:
    """Declare a parameter with a descriptor of its own and return its value.

    Args:
        node: the node.
        name: of the parameter.
        default: its default, whose type it keeps; or only a type.
        descriptor: its description and range.

    Raises:
        UserError: it was set to another type, or out of its range.
    """
    overrides: dict[str, Parameter] = getattr(node, "_parameter_overrides", {})
    given, kind = overrides.get(name), _kind(default)
    # A whole number is a number, too; YAML and rclpy tell 1 from 1.0.
    if given and (given.type_, kind) == (Parameter.Type.INTEGER, Parameter.Type.DOUBLE):
        overrides[name] = given = Parameter(name, kind, float(given.value))
    try:
        return node.declare_parameter(name, default, descriptor).value
    except ParameterException:
        value = default if given is None else given.value
        about = f"give {_wanted(kind, descriptor)} ({descriptor.description.rstrip('.')})"
        raise UserError(f"it is {value!r}", f"parameter {name}", about) from None


def _kind(default: Any) -> Parameter.Type:
    unset = isinstance(default, Parameter.Type)
    return default if unset else Parameter.Type.from_parameter_value(default)


def _wanted(kind: Parameter.Type, descriptor: ParameterDescriptor) -> str:
    """What may be given, in words."""
    span = [*descriptor.integer_range, *descriptor.floating_point_range]
    within = f" from {span[0].from_value:g} to {span[0].to_value:g}" if span else ""
    return KINDS.get(kind, kind.name.lower()) + within


def check_overrides(node: Node) -> None:
    """Refuse parameters that nobody reads because their names are misspelt.

    To be called when all are declared. A name that is like none of them is logged only: a file
    for all nodes (``/**``) holds others' parameters, too.

    Raises:
        UserError: a parameter that is not declared is called nearly as one that is.
    """
    for name in getattr(node, "_parameter_overrides", {}):
        if node.has_parameter(name) or name.startswith("qos_overrides."):
            continue
        near = difflib.get_close_matches(name, node._parameters, n=1, cutoff=NEAR)
        if near:
            raise UserError(
                f"no parameter '{name}'", node.get_name(), f"did you mean '{near[0]}'?"
            )
        node.get_logger().warning(f"no parameter '{name}': what is given for it does nothing")


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
