"""Drivers whose stamps are of no use, in the policy loop."""

import pytest
from pose_robot import CONTRACT, MS, PERIOD, Robot, pose

from diffusion_policy_ros.contract import Contract

LATE = CONTRACT.text.replace("max_age_s: 0.1}", "max_age_s: 0.1, time: receipt}")
GOAL = CONTRACT.text.replace("max_age_s: 0.1}", "max_age_s: 0.1, static: true}")


def test_zero_stamps_are_none_of_its_business_where_receipt_counts():
    """What held for ever makes frames, and goes on ageing."""
    robot = Robot(Contract.from_text(LATE))
    for _ in range(3):
        robot.now += PERIOD
        robot.loop.push("/b", pose(0), robot.now)
        robot.loop.push("/a", pose(robot.now), robot.now)
        robot.infer()
    assert robot.loop.state == "running"
    for _ in range(3):
        robot.tick(topics=("/a",))
        robot.loop.poll(robot.now + 10 * MS)
    assert "b (/b): newest message is 0.150 s old" in robot.loop.state


def test_what_is_latched_is_kept_over_a_reset():
    """It was said once, before the reset, with whatever stamp."""
    robot = Robot(Contract.from_text(GOAL))
    robot.loop.push("/b", pose(5), robot.now)
    robot.tick(topics=("/a",))
    robot.loop.reset(robot.now)
    assert "reset" in robot.loop.state
    for _ in range(3):
        robot.tick(topics=("/a",))
    assert robot.loop.state == "running"


@pytest.mark.parametrize("stamp", [5, 0, 10**12])
def test_what_was_latched_before_the_start_holds_from_then_on(stamp):
    """A latched message comes as soon as the node is configured, and is not said again."""
    robot = Robot(Contract.from_text(GOAL))
    robot.loop.stop()
    for x in (1.0, 2.0):
        robot.loop.push("/b", pose(stamp, x), robot.now)
    robot.loop.start(robot.now)
    robot.tick(topics=("/a",))
    assert robot.loop.state == "running"
    assert robot.loop.history.frames[-1].arrays["b"][0] == 2.0
    robot.loop.stop()
    robot.loop.push("/b", pose(stamp, 3.0), robot.now)
    robot.loop.start(robot.now)
    robot.tick(topics=("/a",))
    assert robot.loop.history.frames[-1].arrays["b"][0] == 3.0
