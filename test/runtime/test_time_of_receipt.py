"""Drivers whose stamps are of no use, in the policy loop."""

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
