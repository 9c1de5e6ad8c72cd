"""The policy node in a process of its own, over DDS: one process for all tests of this file."""

import math

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from conftest import CONTRACT, PERIOD_NS, Policy, Robot  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from live import live  # noqa: E402
from nav_msgs.msg import Path  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402
from diffusion_policy_ros.ros.chunks import chunk_of  # noqa: E402

pytestmark = pytest.mark.ros
LATE_NS = 5 * PERIOD_NS
"""How late a hold may come on a busy machine; that it comes at once is test_supervisor's."""


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("policy_node")) as domain:
        yield domain


@pytest.fixture(scope="module")
def robot(domain):
    """One for all; every test leaves it well."""
    return Robot(domain)


@pytest.fixture(scope="module")
def policy(domain, checkpoint):
    """One for all; every test leaves it running."""
    return Policy(domain, checkpoint)


def test_chunks_are_stamped_with_the_frames_that_they_follow(domain, robot, policy):
    """Every second frame has one, with the contract's names, in its frame, evenly spaced."""
    policy.until_running()
    domain.until(lambda: len(policy.chunks) >= 6, why="six chunks")
    stamps = [stamp_ns(chunk) for chunk in policy.chunks]
    assert set(stamps) <= set(robot.stamps)
    places = [robot.stamps.index(stamp) for stamp in stamps]
    assert 2 in {b - a for a, b in zip(places, places[1:], strict=False)}
    for message in policy.chunks:
        chunk = chunk_of(message, CONTRACT)
        assert message.header.frame_id == "base"
        assert chunk.actions.shape == (8, 7) and chunk.period_ns == PERIOD_NS


def nan_in_a_pose(topic, message):
    """The estimator diverged."""
    if topic == "/eef_pose":
        message.pose.position.y = math.nan
    return message


def encoding_changes(topic, message):
    """Somebody reconfigured the camera."""
    if topic == "/eye_in_hand/image_raw":
        message.encoding = "bgr8"
    return message


def pose_stops(topic, message):
    """A cable came loose."""
    return None if topic == "/eef_pose" else message


def camera_stops(topic, message):
    """The anchor itself."""
    return None if topic == "/agentview/image_raw" else message


FAULTS = [
    (nan_in_a_pose, "robot0_eef_pos (/eef_pose): not finite", 1),
    (
        encoding_changes,
        "robot0_eye_in_hand_image (/eye_in_hand/image_raw): the image is 'bgr8'",
        1,
    ),
    (pose_stops, "robot0_eef_pos (/eef_pose): newest message is 0.1", 3),
    (camera_stops, "agentview_image (/agentview/image_raw): no message for 0.", 2),
]


@pytest.mark.parametrize(
    "fault, reason, periods", FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_fault_holds_names_the_stream_and_ends(domain, robot, policy, fault, reason, periods):
    """A hold when it can be known, once; stream and age in /diagnostics; then it goes on."""
    policy.until_running()
    holds = len(policy.holds)
    robot.change, first = fault, len(robot.stamps)
    held_ns = policy.until_holds()
    assert held_ns - robot.stamps[first] < periods * PERIOD_NS + LATE_NS
    status = policy.until_says("holding: ")
    assert status.level == DiagnosticStatus.ERROR
    domain.until(lambda: reason in policy.reports[-1].message, why=f"it reports {reason}")
    seen = len(policy.reports)
    domain.until(lambda: len(policy.reports) >= seen + 2, 3, "it reports at least once a second")
    stream = reason.split()[0]
    age_s = float(policy.values[f"{stream}.age_s"])
    assert age_s > 0.1 if fault in (pose_stops, camera_stops) else age_s < 1.0
    assert len(policy.holds) == holds + 1
    robot.change = lambda topic, message: message
    policy.until_running()
    assert reason.split(":")[0] in policy.values["last_hold"]


def test_stamps_that_jump_backwards_hold_and_start_anew(domain, robot, policy):
    """A bag was looped, or a simulator reset: a hold, then chunks in the new time."""

    def earlier(topic, message):
        message.header.stamp.sec -= 100
        return message

    policy.until_running()
    robot.change, first = earlier, len(robot.stamps)
    held_ns = policy.until_holds()
    assert held_ns - robot.stamps[first] < PERIOD_NS + LATE_NS
    in_old_time = robot.stamps[0]
    domain.until(lambda: stamp_ns(policy.chunks[-1]) < in_old_time, why="chunks in the new time")
    policy.until_says("running")
    assert "backwards" in policy.values["last_hold"]
    robot.change = lambda topic, message: message
    domain.until(lambda: stamp_ns(policy.chunks[-1]) > in_old_time, why="chunks in the old time")


def test_parameters_change_the_next_chunk_or_are_refused_with_the_reason(domain, robot, policy):
    """Steps, sampler, joining and replanning are live; what cannot be is refused in words."""
    policy.until_running()
    for name, value in {"num_inference_steps": 3, "sampler": "ddpm", "replan_steps": 1}.items():
        assert domain.set("policy_node", name, value).successful
        domain.until(lambda name=name, value=value: policy.values[name] == str(value), why=name)
    places = len(policy.chunks)
    domain.until(lambda: len(policy.chunks) > places + 4, why="chunks come")
    at = [robot.stamps.index(stamp_ns(chunk)) for chunk in policy.chunks[-3:]]
    assert at == list(range(at[0], at[0] + 3)), "one for every frame"
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
        ("checkpoint", "/elsewhere", "clean up the node first"),
    ):
        result = domain.set("policy_node", name, value)
        assert not result.successful and reason in result.reason
    assert policy.values["num_inference_steps"] == "3"


def test_hold_and_reset_are_services(domain, robot, policy):
    """Told to hold, it does, as a warning, until told otherwise; reset begins a new window."""
    policy.until_running()
    client = domain.node.create_client(SetBool, "/policy_node/hold")
    domain.until(client.service_is_ready, why="hold is there")

    def hold(on):
        future = client.call_async(SetBool.Request(data=on))
        domain.until(future.done, why="it answers")
        assert future.result().success

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
