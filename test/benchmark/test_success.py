"""What `benchmark/success.py` tells of its cells."""

import json
from dataclasses import dataclass

from cells import held, run
from success import table


@dataclass(frozen=True)
class Cell:
    steps: int
    episodes: int = 100


def square(cell: Cell) -> dict[str, int]:
    """A measurement that is quickly done."""
    return {"steps": cell.steps, "episodes": cell.episodes, "square": cell.steps**2}


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    """What the file holds already is not measured again, and stays as it is."""
    path = tmp_path / "cells.jsonl"
    path.write_text(json.dumps({"steps": 2, "episodes": 100, "square": "as it was"}) + "\n")
    run([Cell(2), Cell(3)], square, str, path, jobs=1)
    assert [row["square"] for row in held(path)] == ["as it was", 9]


def test_the_table_has_a_line_a_way_and_a_column_a_number_of_steps():
    """What was not measured is empty; samplers stand in their own order, steps in that of size."""
    row = {"policy": "lift", "engine": "eager", "dtype": "f32", "episodes": 100, "ms": 1.25}
    cells = [("ddim", 10, 97), ("ddpm", 2, 95), ("ddim", 2, 99)]
    rows = [
        {**row, "sampler": sampler, "steps": steps, "successes": successes, "mean_steps": 30.4}
        for sampler, steps, successes in cells
    ]
    assert table(rows).splitlines() == [
        "| policy | engine | sampler | K=2 | K=10 |",
        "|---|---|---|---|---|",
        "| lift | eager f32 | ddim | 99/100, 30, 1.2 ms | 97/100, 30, 1.2 ms |",
        "| lift | eager f32 | ddpm | 95/100, 30, 1.2 ms |  |",
    ]
