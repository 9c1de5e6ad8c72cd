"""Faults frame by frame: a hold at the very frame that shows them, the reason, and recovery.

The robot's time is simulated and waits for the node, so that frames are counted exactly on however
busy a machine. Faults of whole processes are in test_fault_processes.py.
"""

import math

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from live import live  # noqa: E402
from nodes import PERIOD_NS  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.parameter_client import AsyncParameterClient  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from stepped import SteppedPolicy, SteppedRobot  # noqa: E402

from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402
from diffusion_policy_ros.ros.chunks import time_msg  # noqa: E402

pytestmark = pytest.mark.ros
ANCHOR, HAND, POSE = "/agentview/image_raw", "/eye_in_hand/image_raw", "/eef_pose"


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("faults")) as domain:
        yield domain


@pytest.fixture(scope="module")
def robot(domain):
    """One for all; every test leaves it well."""
    return SteppedRobot(domain)


@pytest.fixture(scope="module")
def started(domain, robot, checkpoint):
    """One process for all."""
    policy = SteppedPolicy(domain, robot, checkpoint)
    policy.until_running()
    return policy


@pytest.fixture
def policy(started, robot):
    """It runs before each test, and after it."""
    started.until_running()
    yield started
    robot.change = well
    for fault in started.faults.iterdir():
        fault.unlink()
    started.until_running()


def on(topic):
    """Make a fault of messages one of this topic's messages."""

    def of(fault):
        def change(heard, message):
            return fault(message) if heard == topic else message

        change.__name__ = fault.__name__
        return change

    return of


@on(POSE)
def nan_in_a_pose(message):
    """The estimator diverged."""
    message.pose.position.y = math.nan
    return message


@on(HAND)
def another_encoding(message):
    """Somebody reconfigured the camera."""
    message.encoding = "bgr8"
    return message


@on(ANCHOR)
def another_size(message):
    """The driver was started with its defaults."""
    message.width, message.height, message.step = 42, 42, 126
    message.data = message.data[: 42 * 126]
    return message


@on(ANCHOR)
def a_stamp_of_zero(message):
    """The driver leaves the header empty."""
    message.header.stamp = time_msg(0)
    return message


@on(POSE)
def a_stamp_far_in_the_future(message):
    """Its computer's clock is an hour ahead."""
    message.header.stamp.sec += 3600
    return message


@on(HAND)
def a_stamp_that_runs_backwards(message):
    """Its computer's clock was set."""
    message.header.stamp.sec -= 100
    return message


@on(POSE)
def half_a_message(message):
    """Its publisher was built with another definition of the type."""
    return serialize_message(message)[:40]


@on(HAND)
def hardly_a_message(message):
    """So short that there is no stamp."""
    return serialize_message(message)[:8]


MESSAGES = [
    (nan_in_a_pose, "robot0_eef_pos (/eef_pose): not finite"),
    (
        another_encoding,
        "robot0_eye_in_hand_image (/eye_in_hand/image_raw): the image is 'bgr8'",
    ),
    (another_size, "agentview_image (/agentview/image_raw): the image is 42x42"),
    (a_stamp_of_zero, "agentview_image (/agentview/image_raw): its stamp is zero"),
    (a_stamp_far_in_the_future, "robot0_eef_pos (/eef_pose): its stamp is 3600."),
    (
        a_stamp_that_runs_backwards,  # and then it is too old
        "stamps of /eye_in_hand/image_raw ran 99.950 s backwards|newest message is 100.0",
    ),
    (half_a_message, "robot0_eef_pos (/eef_pose): 40 bytes are no geometry_msgs/msg/PoseStamped"),
    (
        hardly_a_message,
        "robot0_eye_in_hand_image (/eye_in_hand/image_raw): a message of 8 bytes has no header",
    ),
]


def well(topic, message):
    """Nothing is wrong."""
    return message


@pytest.mark.parametrize(
    "fault, words", MESSAGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_message_that_cannot_be_holds_at_its_frame(robot, policy, fault, words):
    """The reason in the diagnostics; no chunk of that frame, and then chunks again."""
    robot.change = fault
    robot.step()
    policy.must_hold_for(robot.now_ns, words)
    robot.change = well
    policy.must_recover(robot.now_ns)


@pytest.mark.parametrize("fault", [fault for fault, _ in MESSAGES], ids=lambda f: f.__name__)
def test_a_fault_that_stays_is_one_hold_and_no_chunk(robot, policy, fault):
    """However long: the robot is told once, and nothing moves it."""
    robot.change = fault
    robot.step()
    assert not policy.next_output().points
    for _ in range(10):
        robot.step()
    robot.change = well
    policy.must_recover(robot.now_ns)


@pytest.mark.parametrize(
    "topic, frames, words",
    [
        (ANCHOR, 1, "agentview_image (/agentview/image_raw): no message for "),
        (POSE, 2, "robot0_eef_pos (/eef_pose): newest message is 0.150 s old"),
        (HAND, 3, "robot0_eye_in_hand_image (/eye_in_hand/image_raw): newest message is 0.200 s"),
    ],
)
def test_a_topic_that_stops_holds_as_soon_as_it_is_missed(robot, policy, topic, frames, words):
    """The anchor's next frame but one; of others, when what there is is too old for the contract.

    0.1 s for the pose, 0.15 s for the camera.
    """
    robot.change = on(topic)(lambda message: None)
    for _ in range(frames):
        robot.step() if topic == ANCHOR else policy.must_follow()
    robot.step()
    policy.must_hold_for(robot.now_ns, words)
    robot.change = well
    policy.must_follow()


@pytest.mark.parametrize(
    "fault, words",
    [
        ("nan", "policy: the network's output is not finite"),
        ("raise", "policy: inference raised RuntimeError('no memory left')"),
    ],
)
def test_an_inference_that_fails_holds_at_its_frame(robot, policy, fault, words):
    """The thread lives on: the next window is sampled."""
    policy.until_reported()
    rejected = policy.count("rejected_chunks")
    (policy.faults / fault).touch()
    robot.step()
    policy.must_hold_for(robot.now_ns, words)
    policy.observe()
    robot.domain.until(lambda: policy.count("rejected_chunks") == rejected + 2, why="both failed")
    (policy.faults / fault).unlink()
    policy.must_follow()


def test_every_reason_to_hold_is_in_the_log(robot, policy):
    """Also one that takes another's place for a single frame."""
    for fault, words in ((nan_in_a_pose, "not finite"), (another_encoding, "image is 'bgr8'")):
        robot.change = fault
        policy.step_until_says(words)  # on a busy machine a frame may close without a late pose
    robot.change = well
    policy.seen = len(policy.outputs)
    policy.must_recover(robot.now_ns)
    # On a busy machine it may hold once more, for want of a message, before it recovers.
    said = [line for line in policy.process.output.splitlines() if "holding: " in line]
    said = [line for line in said if "not finite" in line or "the image is 'bgr8'" in line]
    assert "not finite" in said[-2] and "the image is 'bgr8'" in said[-1]


def test_an_inference_slower_than_the_frames_skips_windows_and_runs(robot, policy):
    """Of those that wait the newest is sampled; the chunk before lasts until then: no hold."""
    replaced = policy.count("replaced_windows")
    (policy.faults / "stall").touch()
    stamps = []
    for _ in range(3):
        policy.observe()
        stamps.append(robot.now_ns)
    (policy.faults / "stall").unlink()
    answers = [policy.next_output() for _ in range(2)]
    assert [stamp_ns(chunk) for chunk in answers] == [stamps[0], stamps[2]]
    assert all(chunk.points for chunk in answers)
    policy.until_reported()
    assert policy.count("replaced_windows") == replaced + 1
    assert policy.reports[-1].message == "running"


def test_an_inference_that_stalls_holds_a_frame_after_its_last_action(robot, policy):
    """After two seconds the chunk comes, of no use by then; the next one is of the present."""
    policy.until_reported()
    late = policy.count("late_chunks")
    (policy.faults / "stall").touch()
    for _ in range(8):
        policy.observe()
    assert len(policy.outputs) == policy.seen, "the chunk in hand lasts so long"
    robot.step()
    policy.must_hold_for(robot.now_ns, "policy: no chunk for 0.450 s, and one lasts 0.400 s")
    for _ in range(31):
        policy.observe()
    policy.must_say("policy: no chunk for 2.000 s")
    (policy.faults / "stall").unlink()
    chunk = policy.next_output()
    assert chunk.points and stamp_ns(chunk) == robot.now_ns
    policy.until_reported()
    assert policy.count("late_chunks") == late + 1


def test_a_clock_that_jumps_back_holds_and_all_starts_anew(robot, policy):
    """A simulator was reset: no chunk of the time before it comes after it."""
    told = len(policy.outputs)
    robot.jump(-100)
    # Less the last ticks: of those only the newest is kept for who is busy.
    policy.must_hold_for(robot.now_ns, "/clock jumped 100.000 s back|/clock jumped 99.")
    begun_ns = robot.now_ns
    policy.until_running()
    new = [stamp_ns(chunk) for chunk in policy.outputs[told:] if chunk.points]
    assert all(begun_ns < stamp <= robot.now_ns for stamp in new)


def test_two_clocks_hold_until_one_is_left(domain, robot, policy):
    """Both are named; nothing moves while they contradict each other."""
    other, ahead_ns = domain.node.create_publisher(Clock, "/clock", 10), 500 * PERIOD_NS
    domain.until(other.get_subscription_count, why="the node hears it, too")
    words = "2 nodes publish it: test, test; end all but one"

    def contradict():
        other.publish(Clock(clock=time_msg(robot.now_ns + ahead_ns)))
        policy.until_reported()
        robot.tell_time()
        policy.until_reported()
        return words in policy.reports[-1].message

    domain.until(contradict, why=words)
    told = len(policy.outputs)
    assert not policy.outputs[-1].points
    for _ in range(3):
        robot.step()
        assert contradict()
    assert len(policy.outputs) == told
    domain.node.destroy_publisher(other)
    policy.until_running()


@pytest.mark.parametrize("times", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_parameters_changed_again_and_again_while_it_runs(domain, robot, policy, times):
    """Each is answered, every frame has its chunk, nobody holds, and the last word counts."""
    client = AsyncParameterClient(domain.node, "policy_node")
    domain.until(client.services_are_ready, why="it has parameters")
    steps, samplers = (3, 2, 1), ("ddpm", "ddim")
    changes = [
        ("num_inference_steps", steps[i % 3]) if i % 2 else ("sampler", samplers[i // 2 % 2])
        for i in range(times)
    ]
    changes[100] = ("sampler", "dimm")
    holds, results = len(policy.holds), []
    for begin in range(0, times, 8):  # DDS keeps 10 requests that have not been read yet
        asked = [
            client.set_parameters([Parameter(name, value=value)])
            for name, value in changes[begin : begin + 8]
        ]
        policy.must_follow()
        domain.until(lambda: all(each.done() for each in asked), why="answers")  # noqa: B023
        results += [each.result().results[0] for each in asked]
    assert [i for i, result in enumerate(results) if not result.successful] == [100]
    assert "did you mean 'ddim'?" in results[100].reason
    policy.until_reported()
    for name, value in changes[-2:]:
        assert policy.values[name] == str(value)
    assert len(policy.holds) == holds
