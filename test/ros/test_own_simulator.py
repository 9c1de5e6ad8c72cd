"""A simulator of the user's own as a node, over DDS."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")
sys.path.append(str(Path(__file__).parents[1] / "sim"))

from sensor_msgs.msg import JointState  # noqa: E402
from toy import install  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402
from diffusion_policy_ros.ros.chunks import chunk_msg  # noqa: E402
from diffusion_policy_ros.runtime.tail import Chunk  # noqa: E402

pytestmark = pytest.mark.ros


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The how-to's simulator, installed for processes; its contract."""
    folder = tmp_path / "toy"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    return install(folder)


def test_its_expert_leads_it_at_its_own_rate(domain, toy, tmp_path):
    """Topics, rate and episodes are the simulator's."""
    results = tmp_path / "results.jsonl"
    robot = domain.start(
        "sim_robot", sim="toy/reach", contract=toy, cameras=False, expert=True, auto_reset=True,
        publish_clock=True, speed=2.0, results=results,
    )  # fmt: skip
    heard = domain.listen(JointState, "/joint_states")
    domain.until(lambda: len(heard) > 5, why="joints come")

    def told():
        return results.read_text().splitlines() if results.exists() else []

    domain.until(lambda: len(told()) >= 2, why="two episodes end")
    assert {stamp_ns(message) % 100_000_000 for message in heard} == {0}
    assert all(json.loads(line)["success"] for line in told()[:2])
    robot.signal(signal.SIGTERM)
    assert robot.wait() == 0


def test_it_is_told_joints_by_an_action_player(domain, toy):
    """Nothing but the player moves it: chunk to player, joint trajectory to the simulator."""
    contract = Contract.load(toy)
    domain.start(
        "sim_robot", sim="toy/reach", contract=toy, cameras=False, follow="/action_player"
    )
    domain.start("action_player", contract=toy, armed=True)
    heard = domain.listen(JointState, "/joint_states")
    chunks = domain.node.create_publisher(JointTrajectory, "/policy_node/action_chunk", 10)
    domain.until(lambda: heard and chunks.get_subscription_count(), why="both are there")
    begun = heard[-1].position[0]

    def moved():
        here = [*heard[-1].position]
        stamp, seen = stamp_ns(heard[-1]), len(heard)
        path = [[here[0] + 0.05 * i, here[1]] for i in range(8)]
        chunks.publish(chunk_msg(Chunk(stamp, np.array(path), 10**8), contract))
        domain.until(lambda: len(heard) >= seen + 2, why="it goes on")
        return heard[-1].position[0] > begun + 0.1

    domain.until(moved, why="the joint is where chunks lead")


def test_a_gif_of_what_has_no_pictures(domain, toy, tmp_path):
    """One line."""
    robot = domain.start(
        "sim_robot", sim="toy/reach", contract=toy, cameras=False, gif=tmp_path / "a.gif"
    )
    assert robot.wait() == 2
    assert "parameter gif: toy/reach has no pictures; leave it empty" in robot.output
