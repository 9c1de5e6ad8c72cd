"""The policy node in a process of its own, over DDS: one process for all tests of this file."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from live import LATCHED, live  # noqa: E402
from nav_msgs.msg import Path  # noqa: E402
from nodes import CONTRACT, PERIOD_NS, Policy  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402
from stepped import PacedRobot  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402
from diffusion_policy_ros.ros.chunks import chunk_of  # noqa: E402

pytestmark = pytest.mark.ros
ANCHOR = "/agentview/image_raw"


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("policy_node")) as domain:
        yield domain


@pytest.fixture(scope="module")
def robot(domain):
    """One for all; every test leaves it well."""
    return PacedRobot(domain)


@pytest.fixture(scope="module")
def policy(domain, checkpoint):
    """One for all; every test leaves it running."""
    return Policy(domain, checkpoint, use_sim_time=True)


def test_chunks_are_stamped_with_the_frames_that_they_follow(domain, robot, policy):
    """Every second frame has one, with the contract's names, in its frame, evenly spaced."""
    policy.until_running()
    before = len(policy.chunks)

    def between():
        """Frames from each chunk to the next: a busy machine passes over some."""
        return np.diff([robot.stamps.index(stamp_ns(chunk)) for chunk in policy.chunks[before:]])

    domain.until(lambda: len(between()) >= 5 and 2 in between(), why="six chunks")
    for message in policy.chunks[before:]:
        chunk = chunk_of(message, CONTRACT)
        assert message.header.frame_id == "base"
        assert chunk.actions.shape == (8, 7) and chunk.period_ns == PERIOD_NS


def test_its_contract_is_told_to_who_comes_late(domain, robot, policy):
    """Latched, as text that is the contract again: a player needs no file."""
    policy.until_running()
    heard = domain.listen(String, "/policy_node/contract", LATCHED)
    domain.until(lambda: heard, why="the contract comes")
    assert Contract.from_text(heard[0].data).hash == CONTRACT.hash


@pytest.mark.parametrize(
    "topic, stream", [("/eef_pose", "robot0_eef_pos"), (ANCHOR, "agentview_image")]
)
def test_a_topic_that_stops_is_reported_with_its_age(domain, robot, policy, topic, stream):
    """One hold, and an error that is said again and again; test_faults.py has when and why."""
    policy.until_running()
    robot.change = lambda heard, message: None if heard == topic else message
    assert policy.until_says(f"holding: {stream} ({topic}): ").level == DiagnosticStatus.ERROR
    holds = len(policy.holds)
    domain.until(lambda: float(policy.values[f"{stream}.age_s"]) > 1.0, why="it tells the age")
    assert len(policy.holds) == holds
    robot.change = lambda heard, message: message
    policy.until_running()
    assert f"{stream} ({topic})" in policy.values["last_hold"]


def test_stamps_that_jump_backwards_hold_and_start_anew(domain, robot, policy):
    """A bag was looped, or a simulator reset: a hold, then chunks in the new time."""

    def earlier(topic, message):
        message.header.stamp.sec -= 100
        return message

    policy.until_running()
    robot.change = earlier
    policy.until_holds()
    in_old_time = robot.stamps[0]
    domain.until(lambda: stamp_ns(policy.chunks[-1]) < in_old_time, why="chunks in the new time")
    policy.until_says("running")
    robot.change = lambda topic, message: message
    domain.until(lambda: stamp_ns(policy.chunks[-1]) > in_old_time, why="chunks in the old time")


def test_observations_of_ten_seconds_ago_are_a_warning_by_name(domain, robot, policy):
    """They make frames and chunks as ever, but every action is past when it comes."""

    def late(topic, message):
        message.header.stamp.sec -= 10
        return message

    policy.until_running()
    robot.change = late
    status = policy.until_says("running, on what is past: ")
    assert status.level == DiagnosticStatus.WARN
    age_s = status.message.partition(f"agentview_image ({ANCHOR}) is ")[2].partition(" s old")[0]
    assert float(age_s) == pytest.approx(10.0, abs=0.5)
    assert "a chunk lasts 0.400 s" in status.message
    robot.change = lambda topic, message: message
    policy.until_holds()
    policy.until_running()
    domain.until(lambda: policy.reports[-1].message == "running", why="all is well")
    assert policy.reports[-1].level == DiagnosticStatus.OK


def test_parameters_change_the_next_chunk_or_are_refused_with_the_reason(domain, robot, policy):
    """Steps, sampler, joining and replanning are live; what cannot be is refused in words."""
    policy.until_running()
    for name, value in {"num_inference_steps": 3, "sampler": "ddpm", "replan_steps": 1}.items():
        assert domain.set("policy_node", name, value).successful
        domain.until(lambda name=name, value=value: policy.values[name] == str(value), why=name)
    places = len(policy.chunks)

    def one_for_every_frame():
        new = [robot.stamps.index(stamp_ns(chunk)) for chunk in policy.chunks[places:]]
        return any(b - a == c - b == 1 for a, b, c in zip(new, new[1:], new[2:], strict=False))

    domain.until(one_for_every_frame, why="three in a row")  # a busy machine passes over some
    assert domain.set("policy_node", "chunk_join", "rtc").successful
    domain.until(lambda: policy.values["chunk_join"] == "rtc", why="chunks are joined so")
    policy.until_running()
    for name, value, reason in (
        ("num_inference_steps", 0, "Min: 1, Max: 100"),
        ("num_inference_steps", 1000, "Min: 1, Max: 100"),
        ("num_inference_steps", "ten", "'ten' is of type string; give one of type integer from 1"),
        ("sampler", "dimm", "did you mean 'ddim'?"),
        ("chunk_join", "rtc_chaep", "did you mean 'rtc_cheap'?"),
        ("guidance_scale", 2.0, "trained without guidance"),
        ("replan_steps", 9, "Max: 8"),
        ("task", "pick", "no tasks were trained"),
        ("checkpoint", "/elsewhere", "clean up the node first"),
    ):
        result = domain.set("policy_node", name, value)
        assert not result.successful and reason in result.reason
    assert policy.values["num_inference_steps"] == "3"
    own = {"num_inference_steps": 2, "sampler": "ddim", "replan_steps": 2, "chunk_join": "replace"}
    for name, value in own.items():
        assert domain.set("policy_node", name, value).successful


def test_hold_and_reset_are_services(domain, robot, policy):
    """Told to hold, it does, as a warning, until told otherwise; reset begins a new window."""
    policy.until_running()

    def hold(on):
        assert domain.ask(SetBool, "/policy_node/hold", SetBool.Request(data=on)).success

    hold(True)
    assert policy.until_says("told to hold").level == DiagnosticStatus.WARN
    chunks = len(policy.chunks)
    domain.until(lambda: len(robot.stamps) % 10 == 0, why="frames come")
    assert len(policy.chunks) == chunks and not policy.outputs[-1].points
    hold(False)
    policy.until_running()
    holds = len(policy.holds)
    assert domain.call("/policy_node/reset").success
    domain.until(lambda: len(policy.holds) > holds, why="it holds")
    policy.until_running()


def test_the_planned_path_begins_at_the_measured_pose(domain, robot, policy):
    """One pose an action and one before the first, in the base frame."""
    paths = domain.listen(Path, "/policy_node/planned_path")
    domain.until(lambda: paths, why="paths come")
    path = paths[-1]
    assert path.header.frame_id == "base" and len(path.poses) == 9
    assert stamp_ns(path) in robot.stamps
    assert stamp_ns(path.poses[1]) - stamp_ns(path.poses[0]) == PERIOD_NS
