"""doc/reference/seed-map.md is true: every entry runs, and has the stated default."""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
from seed_map_runs import PROPERTIES, property_of

from diffusion_policy_ros.policy.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "doc" / "reference" / "seed-map.md"
ROWS = [
    (row[1].strip().strip("`"), row[2].strip())
    for line in PAGE.read_text().splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| there"))
    for row in [re.split(r"(?<!\\)\|", line)[1:-1]]
]


def find(entry):
    """What an entry names: an object, an argument's default, a recipe's value, an example's."""
    if " --" in entry:
        return of_example(entry.partition(" ")[0], "main")
    if ": " in entry:
        place, name = entry.split(": ")
        return of_example(place, name) if place.endswith(".py") else of_recipe(place, name)
    dotted, _, argument = entry.rstrip(")").partition("(")
    found = of_package(dotted)
    return inspect.signature(found).parameters[argument].default if argument else found


def of_package(dotted):
    """An object by its dotted name, whatever part of it is a module."""
    words = dotted.split(".")
    for count in range(len(words), 0, -1):
        name = ".".join(words[:count])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                pytest.skip(f"needs {error.name}")
            continue
        for word in words[count:]:
            names = getattr(found, "__dataclass_fields__", {})
            found = getattr(found, word, None) if word in names else getattr(found, word)
        return found
    raise AssertionError(dotted)


def of_recipe(name, key):
    """A key's value in a shipped recipe."""
    found = Recipe.load(name)
    for word in key.split("."):
        found = getattr(found, word)
    return found


def of_example(place, name):
    """A name in an example's file."""
    spec = importlib.util.spec_from_file_location("example", ROOT / place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_the_page_has_rows():
    """The tables are read, not passed over."""
    assert len(ROWS) > 90
    assert sum(bool(default) for _, default in ROWS) > 30


@pytest.mark.parametrize(
    ("entry", "default"), ROWS, ids=[f"{i}-{e}" for i, (e, _) in enumerate(ROWS)]
)
def test_the_entry_exists_and_has_its_default(entry, default):
    """Whatever the page names."""
    found = find(entry)
    if default:
        assert found == ast.literal_eval(default)


@pytest.mark.parametrize(
    "entry", dict.fromkeys(entry for entry, _ in ROWS), ids=lambda entry: entry.rpartition(".")[2]
)
def test_the_entry_runs(entry):
    """With a tiny budget, and a property of what comes of it."""
    if "point_navigation" in entry:
        pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plot]'")
    property_of(entry)()


def test_nothing_is_run_that_the_page_does_not_name():
    """A row that was removed takes its property along."""
    assert set(PROPERTIES) <= {entry for entry, _ in ROWS}
