#!/usr/bin/env python3
"""Feed damaged files to everything that reads files, and see that each is refused in one line.

    scripts/fuzz.py --count 10000             # all kinds, some minutes
    scripts/fuzz.py --kind mcap --only 1234   # one input again, with its traceback

An input may give a result or a `UserError` of one line a mistake. A traceback, a hang, a process
that dies, memory beyond the limit, or a file that was written or changed is an offence.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzzing.kinds import KINDS, Kind

from diffusion_policy_ros.errors import UserError, UserErrors

SECONDS = 5.0
"""Of processor time for one input."""
DEAD_S = 120.0
"""Real time without a sign of life after which the process is taken for dead."""
EXTRA_BYTES = 2 << 30
"""Memory beyond what the process has when everything is imported."""
LINE = 1000
"""Characters that a line of an error may have."""


class Hang(BaseException):
    """An input takes too long."""


class Offence(NamedTuple):
    """What went wrong with one input."""

    kind: str
    number: int
    what: str


def run_one(kind: Kind, base: Any, seed: int, number: int, folder: Path) -> str:
    """Feed one input; what came of it: ``result``, ``refused``, or an offence's words.

    Args:
        kind: of the input.
        base: what its `make` made.
        seed: of the run.
        number: of the input.
        folder: an empty one, emptied again.
    """
    source = random.Random(f"{seed}/{kind.name}/{number}")
    try:
        given = kind.damage(base, source, number, folder)
        before = _listing(folder)
        _limit(SECONDS)
        try:
            kind.read(given)
            outcome = "result"
        except UserError as error:
            outcome = _judged(error)
        finally:
            _limit(0)
        return outcome if _listing(folder) == before else "wrote or changed a file"
    finally:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _judged(error: UserError) -> str:
    errors = error.errors if isinstance(error, UserErrors) else [error]
    for line in map(str, errors):
        if not line or len(line.splitlines()) != 1 or not line.isprintable():
            return f"not one line of text: {line[:200]!r}"
        if len(line) > LINE:
            return f"a line of {len(line)} characters: {line[:200]}"
    return "refused"


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    found = [(str(p), p.stat()) for p in sorted(folder.rglob("*"))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _limit(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _too_long(*_: object) -> None:
    raise Hang(f"takes more than {SECONDS:g} s")


def outcomes(kind: Kind, seed: int, numbers: range) -> Iterator[tuple[int, str]]:
    """Feed many inputs here; the number and outcome of each.

    Args:
        kind: of the inputs.
        seed: of the run.
        numbers: of the inputs.
    """
    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as root:
        base = kind.make(Path(root))
        folder = Path(root) / "input"
        folder.mkdir()
        for number in numbers:
            try:
                yield number, run_one(kind, base, seed, number, folder)
            except (Exception, Hang) as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                yield number, f"{type(error).__name__} at {where}: {error}"[:300]


# A process of its own for each kind: one that dies or eats memory takes nothing with it.


def _work(connection: Connection, kind: Kind, seed: int, numbers: range) -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for found in outcomes(kind, seed, numbers):
        connection.send(found)
    connection.send(None)


def feed(kind: Kind, seed: int, count: int) -> Iterator[tuple[int, str]]:
    """Feed inputs 0 … count - 1 in another process, and in a new one where that dies."""
    context, first = multiprocessing.get_context("fork"), 0
    while first < count:
        ours, theirs = context.Pipe(duplex=False)
        numbers = range(first, count)
        process = context.Process(target=_work, args=(theirs, kind, seed, numbers), daemon=True)
        process.start()
        theirs.close()
        try:
            while ours.poll(DEAD_S):
                found = ours.recv()
                if found is None:
                    process.join()
                    return
                first = found[0] + 1
                yield found
            yield first, f"no answer within {DEAD_S:g} s"
        except EOFError:
            process.join()
            yield first, f"the process died with {process.exitcode}"
        finally:
            process.kill()
        first += 1


def survey(kinds: list[Kind], seed: int, count: int, say: Callable[[str], None]) -> list[Offence]:
    """Feed inputs of all kinds and tell what came of them."""
    offences: list[Offence] = []
    share = -(-count // len(kinds))
    for kind in kinds:
        tally: Counter[str] = Counter()
        mine = []
        for number, outcome in feed(kind, seed, share):
            good = outcome in ("result", "refused")
            tally[outcome if good else "offence"] += 1
            mine += [] if good else [Offence(kind.name, number, outcome)]
        say(f"{kind.name:<12}" + ", ".join(f"{n} {what}" for what, n in sorted(tally.items())))
        for offence in mine[:5]:
            again = f"scripts/fuzz.py --kind {kind.name} --seed {seed} --only {offence.number}"
            say(f"    {offence.what}\n        again: {again}")
        offences += mine
    return offences


def repeat(kind: Kind, seed: int, number: int) -> None:
    """Feed one input again, here, and let its traceback be seen."""
    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as root:
        base = kind.make(Path(root))
        (Path(root) / "input").mkdir()
        given = kind.damage(base, random.Random(f"{seed}/{kind.name}/{number}"), number,
                            Path(root) / "input")  # fmt: skip
        _limit(SECONDS)
        try:
            print("result:", repr(kind.read(given))[:500])
        except UserError as error:
            print("refused:", error)


def main() -> int:
    """Fuzz; 1 when there was an offence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10000, help="inputs (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default 0)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one")
    parser.add_argument("--only", type=int, metavar="N", help="only input N, with its traceback")
    args = parser.parse_args()
    kinds = [KINDS[name] for name in args.kind or KINDS]
    if args.only is not None:
        repeat(kinds[0], args.seed, args.only)
        return 0
    offences = survey(kinds, args.seed, args.count, lambda line: print(line, flush=True))
    print(f"{len(offences)} offences")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
