#!/usr/bin/env python3
"""Put faults into player, policy loop and recorder one by one, and see that a test fails for each.

    scripts/mutants.py              # all, some minutes
    scripts/mutants.py lead gate    # those with such a word in their name

Each entry of `test/mutants/*.yaml` replaces one place of one file; a place that is not found, or
is found twice, is a mistake of the entry, told before anything runs. As many faults at once as
there are cores, each in a tree of its own. A fault that no test notices has survived: write the
test.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "test/runtime/test_player.py test/runtime/test_axes.py test/runtime/test_spaces.py",
    "test/test_contract_axes.py",
    "test/runtime/test_player_property.py",
)
"""What is run until something fails: the quick ones first."""
COPIED = ("diffusion_policy_ros", "config", "package.xml", "pyproject.toml", "test")
LONGEST_S = 900


class Mutant(NamedTuple):
    """One fault: in this file of the package this text is replaced by that.

    What is run is `TESTS`, unless it names others.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str = ""


def read_mutants(words: list[str]) -> list[Mutant]:
    """All that have one of the words in their name."""
    found = []
    for path in sorted((ROOT / "test" / "mutants").glob("*.yaml")):
        found += [Mutant(**entry) for entry in yaml.safe_load(path.read_text())]
    return [m for m in found if not words or any(word in m.name for word in words)]


def misplaced(mutants: Iterable[Mutant]) -> list[str]:
    """What is to be said of entries whose place is not there once."""
    counted = [
        (m, (ROOT / "diffusion_policy_ros" / m.file).read_text().count(m.old)) for m in mutants
    ]
    return [f"{m.name}: found {count} times in {m.file}" for m, count in counted if count != 1]


def copy_tree(where: Path) -> None:
    """The package and its tests, as they are in the working tree."""
    for name in COPIED:
        source, target = ROOT / name, where / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)


def killed_by(where: Path, runs: Iterable[str]) -> str:
    """The test that fails in a tree; empty where none does."""
    env = {**os.environ, "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    for tests in runs:
        command = [*pytest, *tests.split()]
        run = subprocess.run(
            command, cwd=where, env=env, capture_output=True, text=True, timeout=LONGEST_S
        )
        if run.returncode:
            lines = run.stdout.splitlines()
            return next((ln for ln in lines if ln.startswith(("FAILED", "ERROR"))), "no tests ran")
    return ""


def try_out(mutant: Mutant, where: Path) -> str:
    """The test that notices a fault; empty where none does."""
    path = where / "diffusion_policy_ros" / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        return killed_by(where, [mutant.tests] if mutant.tests else TESTS)
    finally:
        path.write_text(text)


def main() -> int:
    """Try all; the exit status says whether one survived."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", help="of the names of the faults to try")
    mutants = read_mutants(parser.parse_args().words)
    if mistakes := misplaced(mutants):
        print("\n".join(mistakes))
        return 1
    jobs, trees = os.cpu_count() or 1, SimpleQueue[Path]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPool(jobs) as pool:
        for number in range(jobs):
            trees.put(Path(folder, str(number)))
            copy_tree(Path(folder, str(number)))
        runs = dict.fromkeys([*TESTS, *(m.tests for m in mutants if m.tests)])
        if before := killed_by(Path(folder, "0"), runs):
            print(f"without any fault: {before}")
            return 1

        def tried(mutant: Mutant) -> str:
            where = trees.get()
            try:
                return try_out(mutant, where)
            finally:
                trees.put(where)

        survived = []
        for mutant, test in zip(mutants, pool.imap(tried, mutants), strict=True):
            print(f"{'killed  ' if test else 'SURVIVED'} {mutant.name}  {test[:90]}", flush=True)
            survived += [] if test else [mutant.name]
    print(f"{len(mutants) - len(survived)} of {len(mutants)} faults are noticed")
    return len(survived) > 0


if __name__ == "__main__":
    sys.exit(main())
