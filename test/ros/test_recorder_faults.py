"""What a recorder survives, over DDS: damaged messages, and a disk that takes no more."""

import resource

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from rclpy.serialization import serialize_message  # noqa: E402

from diffusion_policy_ros.data.bags import open_bag  # noqa: E402

pytestmark = pytest.mark.ros
POSE = "/eef_pose"


@pytest.fixture
def recorder(domain, robot, tmp_path):
    """It records a robot that nobody commands."""
    out = tmp_path / "bags"
    process = domain.start("episode_recorder", contract="mini_lift", commands=False, out=out)
    domain.until(lambda: domain.call("/episode_recorder/start").success, why="recording starts")
    return process


def publish(domain, robot, frames):
    """So many frames more."""
    count = len(robot.stamps) + frames
    domain.until(lambda: len(robot.stamps) >= count, why=f"{frames} frames")


def test_a_damaged_message_is_recorded_as_it_is_and_costs_no_other(domain, robot, recorder):
    """Too short for a header: it is in the bag, counted, and so is all that came after it."""
    publish(domain, robot, 10)
    robot.change = lambda topic, message: (
        serialize_message(message)[:6] if topic == POSE else message
    )
    publish(domain, robot, 1)
    robot.change = lambda topic, message: message
    publish(domain, robot, 20)
    said = domain.call("/episode_recorder/stop")
    assert said.success and "1 UNREADABLE" in said.message
    bag = open_bag(domain.folder / "bags" / "episode_0000")
    counts = {topic: count for topic, (_, count) in bag.topics.items()}
    assert counts[POSE] >= 25 and counts[POSE] >= counts["/agentview/image_raw"] - 2


def test_a_disk_that_takes_no_more_ends_the_episode_as_failed(domain, robot, recorder):
    """It says so by itself, keeps what it has, and records the next one when there is room."""
    publish(domain, robot, 5)
    limits = resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (600_000, limits[1]))
    domain.until(lambda: "the episode failed: kept what came before" in recorder.output)
    assert "cannot write (File too large)" in recorder.output
    said = domain.call("/episode_recorder/stop")
    assert not said.success and "the episode failed" in said.message
    bag = open_bag(domain.folder / "bags" / "episode_0000")
    assert bag.topics[POSE][1] >= 5
    resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, limits)
    assert domain.call("/episode_recorder/start").success
    publish(domain, robot, 5)
    assert domain.call("/episode_recorder/stop").success
    assert "Traceback" not in recorder.output
