"""The two halves of a contract: what its arrays mean, and how this robot says it.

The *meaning* (names, sizes, quantities, frames of reference, action fields and their kinds, rate)
is hashed and travels with bag, dataset and checkpoint. The *cell* (topics, types, fields,
encodings, latencies, limits) may differ between two robots and change after training. A key
belongs to the cell where its field is marked as `CELL`, and to the meaning otherwise; what is
left at its default is no part of the meaning, so that keys may be added.
"""

from __future__ import annotations

import dataclasses
from typing import Any

CELL = {"cell": True}
"""Metadata of a key that belongs to the cell."""


def cell(default: Any, low: float | None = None, high: float = float("inf")) -> Any:
    """A key of the cell that may be left out; its values may range from ``low`` to ``high``."""
    ranged = {} if low is None else {"min": low, "max": high}
    return dataclasses.field(default=default, metadata={**CELL, **ranged})


def is_cell(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass' field is of the cell."""
    return bool(field.metadata.get("cell"))


def meaning(value: Any) -> Any:
    """As `dataclasses.asdict`, without the cell's keys and those at their default."""
    if dataclasses.is_dataclass(value):
        found = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {
            f.name: meaning(v)
            for f, v in found.items()
            if not (is_cell(f) or f.metadata.get("derived") or v == f.default)
        }
    if isinstance(value, dict):
        return {key: meaning(child) for key, child in value.items()}
    return [meaning(child) for child in value] if isinstance(value, tuple) else value


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys and places in lists of such, joined by dots → value."""
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, child in value.items():
        found.update(flat(child, f"{prefix}.{key}" if prefix else str(key)))
    return found


def differing(ours: Any, theirs: Any) -> list[str]:
    """The keys, joined by dots, in which two nested values differ."""
    a, b = flat(ours), flat(theirs)
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]


def same_meaning(ours: str, recorded: str) -> bool:
    """Whether a hash that was written earlier is the same, or of before the halves: too old to
    tell, for it was of topics and limits as well.
    """
    return not recorded.startswith("m") or recorded == ours
