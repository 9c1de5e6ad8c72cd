#!/usr/bin/env python3
"""All that there is to see on a GPU, in six minutes: tests, ceilings, engines, a robot's minute.

    scripts/gpu_check.py --out results                          # on the machine with the card
    scripts/gpu_check.py --out /tmp/try --device cpu --tiny     # whether all of it runs, here
    scripts/gpu_check.py --pack folder --python 3.12            # what travels there

Nothing of ROS, rosbags or MuJoCo is needed: torch, NumPy, safetensors, pytest, hypothesis and tqdm
of the machine with the card, and what `--pack` puts into the folder beside the package and its
tests: PyYAML, SciPy and Pillow for that Python. Copy the folder and run its scripts/gpu_check.py.

OUT/rows.jsonl has a line for each result as it comes, OUT/table.md all of them at the end with
what was aimed at, OUT/*.log what the parts said, and OUT/profile_*.txt where the time went of what
missed its aim. Each part has a process and a time of its own; one that fails, hangs or dies leaves
a row that says so. Rows of --device cpu have a stand-in for graphs: they are no measurements.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "packages"  # of a packed folder
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmark"), str(ROOT)]
sys.path.append(str(ROOT / PACKAGES))

import pytest  # noqa: E402
import torch  # noqa: E402
from gpu_checks import pack  # noqa: E402
from gpu_checks.ceilings import ceilings  # noqa: E402
from gpu_checks.engines import engines  # noqa: E402
from gpu_checks.full_card import full_card  # noqa: E402
from gpu_checks.mission import mission  # noqa: E402
from gpu_checks.run import ROWS, Run, bounded  # noqa: E402
from gpu_checks.training import training  # noqa: E402

MINUTES = 6.0
Part = Callable[[Run, float], object]
# name -> what it does in some seconds, and its share of the six minutes in seconds
PARTS: dict[str, tuple[Part, float]] = {
    "ceilings": (lambda run, seconds: ceilings(run), 10),
    "engines": (engines, 85),
    "mission": (lambda run, seconds: mission(run), 145),
    "training": (training, 60),
    "full": (lambda run, seconds: full_card(run), 22),
    "tests": (lambda run, seconds: tests(run), 30),
}


class Outcomes:
    """A plugin of pytest's that counts."""

    found: dict[str, int]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Passed, failed, skipped and the like, of the tests that ran."""
        self.found = {name: len(of) for name, of in terminalreporter.stats.items() if name}


def tests(run: Run) -> None:
    """The suite's tests that need a GPU, in this process; without one they are skipped."""
    marked = [
        str(path)
        for path in sorted((ROOT / "test").rglob("test_*.py"))
        if re.search(r"mark\.gpu", path.read_text(encoding="utf-8"))
    ]
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the processes that they start
    outcomes = Outcomes()
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", *marked], [outcomes])
    kinds = ("passed", "failed", "skipped", "error")
    found = {name: outcomes.found[name] for name in kinds if name in outcomes.found}
    run.row("tests", files=len(marked), **found)
    good = code == pytest.ExitCode.OK and (run.device == "cpu" or found.get("passed", 0) > 0)
    run.aim("tests", "the GPU's tests pass", float(good), 1.0)


def machine(run: Run) -> None:
    """What all of this was measured on."""
    cuda = run.device == "cuda"
    run.row(
        "machine",
        device=torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        measurements=cuda and not run.tiny,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)),
    )


def table(rows: list[dict[str, Any]]) -> str:
    """What was aimed at first, then each part's rows."""
    lines = ["| part | aim | bound | value | |", "|---|---|---|---|---|"]
    for row in rows:
        if "aim" in row:
            bound = f"{'≥' if row['least'] else '≤'} {row['bound']:g}"
            verdict = "met" if row["met"] else "MISSED"
            lines.append(
                f"| {row['part']} | {row['aim']} | {bound} | {row['value']:.3g} | {verdict} |"
            )
    for row in rows:
        if "aim" not in row:
            said = (f"{key} {_short(value)}" for key, value in row.items() if key != "part")
            lines.append(f"\n{row['part']}: {', '.join(said)}")
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check(run: Run, parts: list[str], minutes: float) -> int:
    """Run the parts one after another; 1 where one failed or missed its aim."""
    run.out.mkdir(parents=True, exist_ok=True)
    for old in (*run.out.glob("*.log"), *run.out.glob("profile_*.txt")):
        old.unlink()
    (run.out / ROWS).write_text("")
    bounded(run, "machine", lambda: machine(run), 30)
    for name in parts:
        work, share = PARTS[name]
        seconds = share * minutes / MINUTES
        print(f"{name}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
        bounded(run, name, lambda work=work, seconds=seconds: work(run, seconds - 1), seconds)
    rows = run.rows()
    text = table(rows)
    (run.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return int(any("failed" in row or row.get("met") is False for row in rows))


def main() -> int:
    """Read the command line; pack, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where results go; those of before are replaced")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, fractions of seconds")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="in all (%(default)s)")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="put what travels there")
    parser.add_argument("--python", default="3.12", help="of the machine with the card (3.12)")
    args = parser.parse_args()
    if args.pack:
        pack.copy(ROOT, args.pack)
        pack.unpack_wheels(args.pack / PACKAGES, args.python)
        return 0
    if args.out is None:
        parser.error("give --out, or --pack")
    parts = args.only.split(",") if args.only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {unknown.pop()}; use some of {','.join(PARTS)}")
    if args.device == "cpu":  # nothing is measured: do not wait for other threads
        torch.set_num_threads(1)
        importlib.import_module("torch._dynamo")  # once, not in each process
    return check(Run(args.out.absolute(), args.device, args.tiny), parts, args.minutes)


if __name__ == "__main__":
    sys.exit(main())
