"""Where the time of each chunk went, as a table."""

import csv
import errno

import pytest

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime import trace as module
from diffusion_policy_ros.runtime.trace import ChunkTimes, Trace


def times(i):
    """Of the i-th chunk."""
    return ChunkTimes(*range(10 * i, 10 * i + 7), missed=0)


def test_every_chunk_is_a_line_in_order(tmp_path):
    """Also those that wait when it is closed."""
    trace = Trace(tmp_path / "trace.csv")
    for i in range(1000):
        trace.add(times(i))
    trace.close()
    with trace.path.open(newline="") as file:
        rows = [ChunkTimes(*map(int, row.values())) for row in csv.DictReader(file)]
    assert rows == [times(i) for i in range(1000)]
    assert str(trace) == f"1000 chunks in {trace.path}"


class FullDisk:
    """Takes nothing."""

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path, monkeypatch):
    """It says so, takes lines as before, never grows and never raises."""
    monkeypatch.setattr(module, "WAITING", 5)
    monkeypatch.setattr(module, "WRITE_S", 0.001)
    trace = Trace(tmp_path / "trace.csv")
    trace._file = FullDisk()
    trace.add(times(0))
    trace._thread.join(30)
    for i in range(10):
        trace.add(times(i))
    trace.close()
    assert trace.problem == "no more is written: No space left on device"
    assert trace.lost == 5 and trace.problem in str(trace)


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path):
    """By the parameter's name, when the node is configured."""
    with pytest.raises(UserError, match="parameter trace"):
        Trace(tmp_path)
