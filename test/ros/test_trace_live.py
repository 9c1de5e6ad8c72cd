"""Where the time of a live node's chunks went."""

import json
import signal

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from nodes import Policy  # noqa: E402

from diffusion_policy_ros.bench.stages import read_trace  # noqa: E402
from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402

pytestmark = pytest.mark.ros


def test_a_node_that_is_told_to_end_leaves_a_trace_of_every_chunk(
    domain, robot, checkpoint, tmp_path
):
    """One line each, its times in order, up to the last one before the end; a plot shows them."""
    file = tmp_path / "trace.csv"
    policy = Policy(domain, checkpoint, engine="eager", trace=file)
    domain.until(lambda: len(policy.chunks) >= 10, why="chunks come")
    policy.process.signal(signal.SIGTERM)
    domain.until(lambda: policy.holds and not policy.outputs[-1].points, why="it holds and ends")
    assert policy.process.wait() == 0
    rows = read_trace(file)
    stamps = [row.stamp_ns for row in rows]
    assert len(set(stamps)) == len(stamps) and stamps == sorted(stamps)
    assert {stamp_ns(chunk) for chunk in policy.chunks} <= set(stamps)
    for row in rows:
        times = row[: row._fields.index("due_ns")]
        assert list(times) == sorted(times), row
        assert row.due_ns >= row.stamp_ns
    figures = tmp_path / "figures.json"
    words = [str(file), "--json", str(figures), "--plot", str(tmp_path / "trace.png")]
    assert main(["latency", *words]) == 0
    assert json.loads(figures.read_text())["chunks"] == len(rows)
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
