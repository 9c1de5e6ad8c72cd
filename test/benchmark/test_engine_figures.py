"""`benchmark/engine.py` runs, and its figures are what they say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[openvino]'")

pytestmark = pytest.mark.compiles
FILE = Path(__file__).parents[2] / "benchmark" / "engine.py"


@pytest.fixture
def benchmark(monkeypatch):
    """The script, as a module, with a network that takes no time."""
    spec = importlib.util.spec_from_file_location("engine_figures", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny = "{name: unet1d, down_dims: [64, 64], kernel_size: 3}"
    monkeypatch.setattr(module, "NETWORKS", {"tiny": tiny})
    monkeypatch.setattr(module, "READ_MB", 1)
    return module


def test_rows(benchmark, monkeypatch, capsys):
    """A row for each engine and precision: near in f32, less near in int8, both timed."""
    words = ["engine.py", "--json", "--networks", "tiny", "--chunks", "4"]
    monkeypatch.setattr(sys, "argv", words)
    assert benchmark.main() == 0
    rows = {row["dtype"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"f32", "int8"} <= set(rows)
    assert rows["f32"]["rel_error"] < 1e-4 < rows["int8"]["rel_error"] < 0.1
    for row in rows.values():
        assert row["network"] == "tiny" and row["engine"] == "openvino"
        assert row["speedup"] == pytest.approx(row["ms_eager"] / row["ms"], rel=0.05)
    assert rows["f32"]["floor_ms"] == pytest.approx(
        4 * rows["int8"]["floor_ms"], rel=0.05, abs=0.02
    )


def test_a_slip_is_one_line(benchmark, monkeypatch, capsys):
    """With exit code 2."""
    monkeypatch.setattr(sys, "argv", ["engine.py", "--networks", "unet_1"])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert "no network unet_1" in capsys.readouterr().err
