"""A field's path into any message: ``wrench.force``, ``o_t_ee[12:15]``, ``position[name=finger]``.

What a path ends at becomes numbers: a number, true or false, an array, or a message of such, whose
fields follow each other as they are defined.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diffusion_policy_ros.contract.fields import Step, parsed
from diffusion_policy_ros.errors import UserError, did_you_mean

_NUMBER = (int, float, np.generic)


def numbers(path: str, msg: Any) -> Sequence[float]:
    """What a path ends at.

    Args:
        path: as in the contract's ``field``.
        msg: a recorded or live message, or one of its parts.

    Raises:
        UserError: the message has no such field, or too few values; or text is there.
    """
    for step in _steps(path):
        msg = _taken(step, msg)
    return _flat(msg, path)


_steps = functools.lru_cache(maxsize=1024)(parsed)


def _taken(step: Step, msg: Any) -> Any:
    try:
        value = getattr(msg, step.name)
    except AttributeError:
        known = list(field_names(msg))
        cure = did_you_mean(step.name, known) if known else "there are no fields, but numbers"
        raise UserError(f"there is no '{step.name}'", "", cure) from None
    if not step.picks:
        return value
    if not _is_array(value):
        has = ", ".join(field_names(value))
        cure = f"it has the fields {has}" if has else f"write {step.name} alone"
        raise UserError(f"{step.name} is no array to pick of", "", cure)
    if step.key:
        return value[_place_named(step, msg, value)]
    first, last = step.first or 0, step.last
    if last is not None:
        if last > len(value):
            raise UserError(f"{step.name} has {len(value)} values, not {last}")
        return value[first:last]
    if first >= len(value):
        raise UserError(f"{step.name} has {len(value)} values, not {first + 1}")
    return value[first]


def _place_named(step: Step, msg: Any, value: Any) -> int:
    """Where the array beside it, or a field of its own elements, has the wanted name."""
    beside: Any = getattr(msg, step.key, None)
    own = (getattr(one, step.key, None) for one in value)
    names = list(beside if _is_array(beside) else own)
    for i, name in enumerate(names[: len(value)]):
        if str(name) == step.wanted:
            return i
    said = ", ".join(map(str, names))[:200]
    raise UserError(f"no {step.name} whose {step.key} is '{step.wanted}'", "", f"it has {said}")


def _is_array(value: Any) -> bool:
    """Whether it has elements; the messages of some definitions are tuples of their fields."""
    return hasattr(value, "__len__") and not isinstance(value, tuple)


def field_names(msg: Any) -> Iterator[str]:
    """A message's fields, in the order of their definition."""
    if hasattr(msg, "get_fields_and_field_types"):
        return iter(msg.get_fields_and_field_types())
    kinds = ("_fields", "__dataclass_fields__", "__dict__")
    names: Any = next((getattr(msg, kind) for kind in kinds if hasattr(msg, kind)), ())
    return (name for name in names if not name.startswith("_"))


def _flat(value: Any, path: str) -> Sequence[float]:
    """All numbers of a value, one after the other."""
    if isinstance(value, _NUMBER):
        return (float(value),)
    if isinstance(value, bytes) and len(value) == 1:  # rclpy's byte
        return (float(value[0]),)
    if isinstance(value, str | bytes):
        raise UserError(f"{path} is text", "", "name a number")
    if _is_array(value):
        if not len(value) or isinstance(value[0], _NUMBER):
            return value  # type: ignore[no-any-return]
        return [number for one in value for number in _flat(one, path)]
    names = [name for name in field_names(value) if name != "header"]
    if set(names) in ({*"xyz"}, {*"xyzw"}):  # in this order, whatever the definition's
        names.sort(key="xyzw".index)
    found: list[float] = []
    for name in names:
        found.extend(_flat(getattr(value, name), f"{path}.{name}"))
    return found
