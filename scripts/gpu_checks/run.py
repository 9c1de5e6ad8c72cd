"""What all parts share: where rows go, what an aim is, and work that may take only so long."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Run:
    """One run of the checks.

    Attributes:
        out: where rows, logs and profiles go.
        device: cuda or cpu.
        tiny: networks and times that only show that everything runs.
    """

    out: Path
    device: str
    tiny: bool

    def row(self, part: str, **values: Any) -> None:
        """Keep a result at once: what comes next may be killed."""
        line = json.dumps({"part": part, **values}, default=str)
        with (self.out / ROWS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def aim(self, part: str, what: str, value: float, bound: float, most: bool = False) -> bool:
        """Keep whether a figure is at least, or with `most` at most, what was aimed at."""
        met = bool(value <= bound if most else value >= bound)
        self.row(part, aim=what, value=float(value), bound=bound, least=not most, met=met)
        return met

    def rows(self) -> list[dict[str, Any]]:
        """All that is there; a line that was cut off by a kill is left out."""
        found = []
        for line in (self.out / ROWS).read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def profile(self, name: str, work: Callable[[], object]) -> None:
        """A table of where the time of `work` goes: of kernels, and of what launches them."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            work()
            self.wait()
        table = profiler.key_averages().table(sort_by=f"self_{self.device}_time_total")
        (self.out / f"profile_{name}.txt").write_text(table, encoding="utf-8")

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def memory_mib(self) -> float | None:
        """The most that torch has taken of the GPU."""
        if self.device != "cuda":
            return None
        return torch.cuda.max_memory_reserved() / 2**20


def bounded(run: Run, name: str, work: Callable[[], object], seconds: float) -> bool:
    """Do it in a process of its own, killed with all that it started when the time is over.

    The process is forked: nothing is imported again, and whoever forks must not have used the GPU.

    Args:
        run: where it says what went wrong, and where its log goes.
        name: of the work; the first word is its part.
        work: what to do.
        seconds: how long it may take.

    Returns:
        Whether it came to its end.
    """
    part, begun = name.split()[0], time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_work, args=(run, name, work))
    process.start()
    process.join(max(seconds, 0.1))
    if late := process.is_alive():
        _kill(process.pid)
        process.join()
    took = round(time.monotonic() - begun, 1)
    if late:
        run.row(part, what=name, failed=f"killed after {seconds:.0f} s", seconds=took)
    elif process.exitcode not in (0, 1):
        run.row(part, what=name, failed=f"its process ended with {process.exitcode}", seconds=took)
    return not late and process.exitcode == 0


def _kill(process: int | None) -> None:
    """A process and what it has started, which is told to end with it."""
    children = Path(f"/proc/{process}/task/{process}/children")
    started = children.read_text().split() if children.exists() else []
    for child in map(int, started):
        _kill(child)
    try:
        os.kill(int(process or 0), signal.SIGKILL)
    except ProcessLookupError:
        pass


def _work(run: Run, name: str, work: Callable[[], object]) -> None:
    log = (run.out / f"{name.split()[0]}.log").open("a", buffering=1, encoding="utf-8")
    for number in (1, 2):
        os.dup2(log.fileno(), number)
    sys.stdout = sys.stderr = log
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        run.row(name.split()[0], what=name, failed=line)
        sys.exit(1)
