"""Write doc/reference/contract.md from the docstrings of the contract's dataclasses.

python scripts/contract_reference.py           # writes it
python scripts/contract_reference.py --check   # exits with 1 where the file is another
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from diffusion_policy_ros.contract import (
    Action,
    ActionField,
    Contract,
    FieldLimits,
    Limits,
    Send,
    Stream,
)
from diffusion_policy_ros.contract.meaning import is_cell
from diffusion_policy_ros.contract.stream import Tf
from diffusion_policy_ros.shipped import config_path

PAGE = Path(__file__).resolve().parents[1] / "doc" / "reference" / "contract.md"
SECTIONS: dict[str, type] = {
    "The contract": Contract,
    "A stream: each of `observations`, and of `action.record`": Stream,
    "`tf` of a stream": Tf,
    "`action`": Action,
    "A field: each of `action.fields`": ActionField,
    "`limits` of a field": FieldLimits,
    "`send` of a field": Send,
    "`action.limits`": Limits,
}
HEAD = """# The contract, key by key

Written by `scripts/contract_reference.py` from the code's own docstrings; do not edit. How to come
to a first one: [your first contract](../how-to/your-first-contract.md); one with every key in its
place: [`example_arm.yaml`](../../config/contracts/example_arm.yaml). `diffusion-policy contract
check FILE` says what a contract means, or all that is wrong in it.

**Meaning** travels with bags, datasets and checkpoints and is hashed; **cell** may differ between
robots and change after training.
"""
BOTH_HALVES = (Contract, Stream, Action, ActionField)
"""Classes that have keys of the meaning; all of the others' keys are the cell's."""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true, false"}
WORDS |= {ActionField: "field", FieldLimits: "limits"}
WHERE = {Send: r"send: \{[^}]*\}", ActionField: r"  fields:.*\n  record:"}
"""Where a class' keys stand in the example, whose other parts have keys of the same names."""
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", re.M | re.S)
_ONE = r"(?:rad|m|s|N|Nm|Hz|degrees)(?:/s(?:\^2)?)?"
_UNIT = re.compile(rf"(?:, |\()({_ONE}(?: or {_ONE})?)[.;)]")
_EXAMPLE = r"(\{[^}]*\}|\[[^\]]*\]|[^\s,#}};()\[{`]+)"


def page() -> str:
    """The whole page."""
    return HEAD + "".join(f"\n## {title}\n\n{table(cls)}" for title, cls in SECTIONS.items())


def table(cls: type) -> str:
    """A row for each key that a file may give."""
    rows = ["| key | half | type | unit | default | example | |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*rows, *_rows(cls)]) + "\n"


def _rows(cls: type) -> Iterator[str]:
    told, hints = attributes(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.init and not field.metadata.get("derived"):
            text = told[field.name]
            half = "cell" if is_cell(field) or cls not in BOTH_HALVES else "meaning"
            cells = (
                f"`{field.name}`",
                half,
                typed(hints[field.name]),
                unit(field.name, text),
                default(field),
                example(field.name, cls),
                text,
            )
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def attributes(cls: type) -> dict[str, str]:
    """What the docstring says of each key."""
    _, _, text = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    found = _ATTRIBUTE.findall(text + "\n")
    return {name: " ".join(said.split()).replace("``", "`") for name, said in found}


def typed(kind: Any) -> str:
    """A type in a person's words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner if choice != "")
    if origin in (typing.Union, types.UnionType):
        return " or ".join(typed(part) for part in inner if part is not type(None))
    if origin is tuple:
        word = typed(inner[0])
        return f"list of {word}" if "," in word else f"list of {word}s"
    if origin is dict:
        return f"name: {typed(inner[1])}"
    return WORDS.get(kind, kind.__name__.lower())


def unit(name: str, text: str) -> str:
    """By the name's ending, or what the docstring says."""
    ending = {"_s": "s", "_hz": "Hz"}.get(name[name.rfind("_") :], "") if "_" in name else ""
    found = _UNIT.search(text)
    return ending or (found[1] if found else "")


def default(field: dataclasses.Field[Any]) -> str:
    """As a file would give it."""
    value = field.default
    if value is dataclasses.MISSING:
        return "**needed**"
    if value in ("", (), None) or dataclasses.is_dataclass(value):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def example(name: str, cls: type) -> str:
    """The first value of a class' key in the example that every key is explained in."""
    text = config_path("contracts", "example_arm").read_text(encoding="utf-8")
    text = "\n".join(re.findall(WHERE.get(cls, ".*"), text, re.S))
    found = re.findall(rf"(?<![\w.]){name}: ?{_EXAMPLE}", text)
    values = [one for one in found if "..." not in one and one not in ("N", "[height, width, 1]")]
    return f"`{values[0]}`" if values else ""


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    text, there = page(), PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif text != there:
        print(f"{PAGE} is not what the docstrings say; run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
