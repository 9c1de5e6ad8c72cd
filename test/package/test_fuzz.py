"""A sample of `scripts/fuzz.py`: damaged files give a result or one line for each mistake."""

import os
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
KINDS = ("contract", "recipe", "checkpoint", "mcap", "sqlite", "zstd", "message", "dataset")


@pytest.fixture(scope="module")
def fuzz():
    """The script as a module."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import fuzz

        yield fuzz
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("name", [*KINDS, "figures"])
def test_damaged_input_is_read_or_refused_in_one_line(fuzz, name):
    """No traceback, no hang, no memory that is eaten, nothing written; cuts and damage."""
    kind = fuzz.KINDS[name]
    for numbers in (range(0, 200, 17), range(1000, 1022)):
        found = dict(fuzz.outcomes(kind, 0, numbers))
        assert len(found) == len(numbers)
        assert {n: o for n, o in found.items() if o not in ("result", "refused")} == {}


def test_an_offence_is_named_with_how_to_repeat_it(fuzz):
    """A reader that fails, hangs, writes or dies is told of; the others go on."""

    def read(given):
        number, folder = given
        if number == 1:
            raise ZeroDivisionError("ours")
        if number == 2:
            (folder / "left behind").touch()
        if number == 3:
            raise fuzz.UserError("what", "where" * 500)
        if number == 4:
            os._exit(9)
        if number == 5:
            bytearray(1 << 40)

    kind = fuzz.Kind("made", lambda root: None, lambda b, s, n, folder: (n, folder), read)
    lines = []
    offences = fuzz.survey([kind], 0, 8, lines.append)
    assert [offence.number for offence in offences] == [1, 2, 3, 4, 5]
    words = ("ZeroDivisionError at test_fuzz.py", "wrote or", "characters", "died", "MemoryError")
    assert all(word in o.what for word, o in zip(words, offences, strict=True))
    assert lines[0].split() == ["made", "5", "offence,", "3", "result"]
    assert "scripts/fuzz.py --kind made --seed 0 --only 1" in lines[1]
