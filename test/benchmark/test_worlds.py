"""`benchmark/worlds.py` from demonstrations to the table, on next to nothing."""

import json
import sys
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import cells
import pytest
import torch
import worlds


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Runs it on a few demonstrations, in this process; what it printed."""
    sim, plan = worlds.TASKS["mini_bypass"]
    small = replace(plan, demonstrations=4, changes=("training.updates=2",))
    monkeypatch.setitem(worlds.TASKS, "mini_bypass", worlds.Task(sim, small))
    context = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr(cells, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def run(*words):
        common = ["mini_bypass", "--out", str(tmp_path / "out"), "--episodes", "2"]
        monkeypatch.setattr(sys, "argv", ["worlds.py", *common, *words])
        worlds.main()
        return capsys.readouterr()

    return run


def test_a_row_for_the_expert_and_each_setting(told, tmp_path):
    """What is there is not computed twice; regression is of the sample alone."""
    said = told("--steps", "0,2", "--json")
    rows = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
    found = {(row["target"], row["steps"]): row for row in rows}
    assert set(found) == {("expert", 0), ("sample", 0), ("sample", 2)}
    assert found["expert", 0]["successes"] == 2
    assert all(row["task"] == "mini_bypass" and row["episodes"] == 2 for row in rows)
    assert sum(found["sample", 2]["drawn"].values()) == 40
    more = told("--steps", "2", "--targets", "sample,epsilon", "--plot", str(tmp_path / "a.png"))
    assert "mini_bypass epsilon K=2" in more.err and "mini_bypass sample" not in more.err
    lines = more.out.splitlines()
    assert any(
        line.startswith("| mini_bypass | expert | – | 1 | 2 of 2 | 34% – 100%") for line in lines
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
