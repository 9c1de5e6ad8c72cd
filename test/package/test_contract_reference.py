"""The reference of the contract is what the code's own docstrings say."""

import dataclasses
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import contract_reference  # noqa: E402


def test_the_page_is_written_anew_whenever_a_docstring_changes():
    """Run scripts/contract_reference.py."""
    assert contract_reference.PAGE.read_text(encoding="utf-8") == contract_reference.page()


@pytest.mark.parametrize("title", contract_reference.SECTIONS)
def test_every_key_has_its_line(title):
    """Those that a file may give, none that it may not, each with its words."""
    cls = contract_reference.SECTIONS[title]
    keys = {f.name for f in dataclasses.fields(cls) if not f.metadata.get("derived")}
    assert {*contract_reference.attributes(cls)} >= keys
    table = contract_reference.table(cls)
    assert all(f"| `{key}` |" in table for key in keys)
