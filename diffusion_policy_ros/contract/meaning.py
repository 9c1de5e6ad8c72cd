"""What of a contract is hashed: what its arrays mean, not how the file is written."""

from __future__ import annotations

import dataclasses
from typing import Any


def later(default: Any, low: float | None = None, high: float = float("inf")) -> Any:
    """A key that contracts did not have from the start: it changes the hash only where it is used,
    so that what was recorded and trained before stays valid.
    """
    ranged = {} if low is None else {"min": low, "max": high}
    return dataclasses.field(default=default, metadata={"later": True, **ranged})


def meaning(value: Any) -> Any:
    """As `dataclasses.asdict`, without the later keys that are not used."""
    if dataclasses.is_dataclass(value):
        found = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {
            f.name: meaning(v)
            for f, v in found.items()
            if not (f.metadata.get("later") and v == f.default)
        }
    if isinstance(value, dict):
        return {key: meaning(child) for key, child in value.items()}
    return [meaning(child) for child in value] if isinstance(value, tuple) else value


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots → value."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, child in value.items():
        found.update(flat(child, f"{prefix}.{key}" if prefix else str(key)))
    return found
