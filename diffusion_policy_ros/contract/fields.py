"""The grammar of a field's path into a message: ``a.b``, ``a[2]``, ``a[12:15]``, ``a[name=b]``."""

from __future__ import annotations

import re
from typing import NamedTuple

_STEP = re.compile(
    r"(?P<name>[A-Za-z]\w*)"
    r"(?:\[(?:(?P<first>\d{1,9})(?P<range>:(?P<last>\d{1,9}))?|(?P<key>\w+)=(?P<wanted>[^\[\]]+))\])?",
    re.ASCII,
)


class Step(NamedTuple):
    """One part of a path.

    Attributes:
        name: of a message's field.
        first: the element taken of it, or the first one of a slice.
        last: the one behind a slice's last; None where it is no slice.
        key: the array beside it, or the elements' own field, whose value picks the element.
        wanted: that value.
    """

    name: str
    first: int | None = None
    last: int | None = None
    key: str = ""
    wanted: str = ""

    @property
    def picks(self) -> bool:
        """Whether it takes something of an array."""
        return self.first is not None or bool(self.key)


def parsed(path: str) -> tuple[Step, ...]:
    """The steps of a path; none where it is not written as one."""
    steps, place = [], 0
    while place < len(path):
        found = _STEP.match(path, place)
        if found is None:
            return ()
        first, last = found["first"], found["last"]
        key, wanted = found["key"] or "", found["wanted"] or ""
        steps.append(
            Step(
                found["name"],
                int(first) if first else None,
                int(last) if last else None,
                key,
                wanted,
            )
        )
        place = found.end()
        if place < len(path):
            if path[place] != ".":
                return ()
            place += 1
            if place == len(path):
                return ()
    return tuple(steps)


def without_picks(path: str) -> str:
    """The path's names alone, as ``a.b`` of ``a[2].b``."""
    return ".".join(step.name for step in parsed(path))


def misled(path: str, sizes: dict[str, int]) -> tuple[str, str] | None:
    """Where a path picks of what is no array, or goes on behind numbers.

    Args:
        path: into a message, through or along what the table has.
        sizes: paths → numbers, of the message's type; an array's is 0, or it is a covariance.

    Returns:
        What is wrong, and the cure; None where nothing is.
    """
    steps, names = parsed(path), ""
    for i, step in enumerate(steps):
        names = f"{names}.{step.name}" if names else step.name
        size = sizes.get(names)
        is_array = size == 0 or names.endswith("covariance")
        if step.picks and not is_array:
            return f"{names} is no array", f"write {names}" + (".x" if size in (3, 4) else "")
        if i + 1 < len(steps) and (is_array or size == 1):
            return f"{names} has no fields", f"write {names}" + ("[0]" if is_array else "")
    return None


def known_size(path: str, sizes: dict[str, int]) -> int:
    """How many numbers a path ends at, as far as it says so itself, or a table does; else 0.

    Args:
        path: into a message.
        sizes: paths → numbers, of the message's type.
    """
    if path in sizes:
        return sizes[path]
    steps = parsed(path)
    if not steps:
        return 0
    last = steps[-1]
    if last.last is not None:
        return max(0, last.last - (last.first or 0))
    if last.first is not None or last.key:
        return 1
    parent, _, name = path.rpartition(".")
    if name in ("x", "y", "z", "w") and sizes.get(parent):
        return 1
    inner = [size for known, size in sizes.items() if known.startswith(f"{path}.")]
    return sum(inner) if inner and all(inner) else 0
