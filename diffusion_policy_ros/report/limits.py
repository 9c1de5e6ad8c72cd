"""A contract's limits, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import Action

UNITS = {"position": "m", "rotation": "rad"}
"""Role of a field → its unit; joints are in rad or m, as the robot has them."""
PER = {"velocity": "/s", "acceleration": "/s²"}


def limit_lines(action: Action) -> Iterator[str]:
    """Yield a line for each limit that acts: its field, its name, its value and its unit."""
    for part in action.fields:
        for name, value in action.limits_of(part).given.items():
            unit = UNITS[part.role] + PER.get(name, "") if part.role in UNITS else ""
            yield f"{part.name}.{name}: {format_value(value)} {unit}".rstrip()
    limits = action.limits
    yield f"chunk_timeout_s: {limits.chunk_timeout_s:g} s"
    yield f"observation_timeout_s: {limits.observation_timeout_s:g} s"
    yield f"on_stale: {limits.on_stale}"


def format_value(value: str | float | Sequence[float]) -> str:
    """Return a word, a number, or several in brackets, without trailing zeros."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return f"{value:g}"
    return "[" + ", ".join(f"{number:g}" for number in value) + "]"
