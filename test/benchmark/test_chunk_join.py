"""The figures of `benchmark/chunk_join.py` are what they say."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.tail import Chunk

CONTRACT = Contract.load("mini_lift_state")
PERIOD = CONTRACT.period_ns
FILE = Path(__file__).parents[2] / "benchmark" / "chunk_join.py"


@pytest.fixture(scope="module")
def benchmark():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("chunk_join", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_jump_and_jerk_are_as_reckoned_by_hand(benchmark):
    """A cubic path has one jerk; chunks are compared at the time when the new one takes over."""
    watch = benchmark.Smoothness(CONTRACT)
    old, new = np.zeros((15, 7)), np.zeros((15, 7))
    old[:, 0] = np.arange(15) * 1e-3
    new[:, 0] = old[:, 0] + 0.01
    chunks = [Chunk(0, old, PERIOD)] * 6 + [Chunk(4 * PERIOD, new, PERIOD)] * 4
    for k, chunk in enumerate(chunks):
        robot = SimpleNamespace(simulator=SimpleNamespace(steps=k + 1))
        set_point = {"translation": np.array([k**3 * 1e-4, 0.0, 0.0])}
        policy = SimpleNamespace(chunk=chunk, now_ns=(k + 1) * PERIOD)
        watch(robot, policy, SimpleNamespace(set_point=set_point))
    assert watch.jumps_m == pytest.approx([abs((2 * 1e-3 + 0.01) - 6 * 1e-3)])
    assert np.sqrt(watch.jerks) == pytest.approx(np.full(7, 6e-4 / 0.05**3))


def test_a_run_that_was_cut_off_goes_on(benchmark, tmp_path, monkeypatch, capsys):
    """Cells that the file holds are not measured again; the table and the plot have them all."""
    measured = []

    def measure(cell):
        measured.append(cell.delay)
        figures = {"successes": 1, "success": 0.5, "mean_steps": 30.0, "jump_mm": 2.0}
        return {**dataclasses.asdict(cell), **figures, "jerk": 40.0, "ms": 8.0}

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr("multiprocessing.get_context", lambda _: SimpleNamespace(Pool=InLine))
    file, plot = tmp_path / "cells.jsonl", tmp_path / "plot.png"
    words = ["chunk_join.py", "--checkpoint", "run", "--episodes", "2", "--joins", "replace"]
    for delays in ("8", "0,8"):
        more = ["--json", str(file), "--plot", str(plot), "--delays", delays]
        monkeypatch.setattr("sys.argv", [*words, *more])
        assert benchmark.main() == 0
    assert measured == [8, 0]
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0] == "| 0 | 1/2, 30 steps, 2.0 mm, 40 m/s³ |" and lines[1].startswith("| 8 |")
    assert plot.stat().st_size > 10_000


class InLine:
    """Stands in for a pool of processes."""

    def __init__(self, jobs):
        self.jobs = jobs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def imap_unordered(self, work, items):
        """One after the other, here."""
        return map(work, items)
