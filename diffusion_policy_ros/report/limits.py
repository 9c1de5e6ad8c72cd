"""A contract's limits, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import Limits

UNITS = {
    "translation": "m",
    "rotation": "rad",
    "lead": "m",
    "lead_rotation": "rad",
    "workspace_min": "m",
    "workspace_max": "m",
    "velocity": "m/s",
    "acceleration": "m/s²",
    "angular_velocity": "rad/s",
    "angular_acceleration": "rad/s²",
    "jump": "m",
    "jump_rotation": "rad",
    "chunk_timeout_s": "s",
    "observation_timeout_s": "s",
}
"""Of a limit; those of joints are in what the joints are in, rad or m."""


def limit_lines(limits: Limits) -> Iterator[str]:
    """Yield a line for each limit that is set: its name, its value and its unit."""
    for name, value in vars(limits).items():
        if value is not None and value != ():
            yield f"{name}: {format_value(value)} {UNITS.get(name, '')}".rstrip()


def format_value(value: str | float | Sequence[float]) -> str:
    """Return a word, a number, or several in brackets, without trailing zeros."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return f"{value:g}"
    return "[" + ", ".join(f"{number:g}" for number in value) + "]"
