"""Faults of whole processes: what dies, stops, comes back otherwise, floods, or is doubled."""

import signal

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from pathlib import Path  # noqa: E402

from live import live  # noqa: E402
from nodes import PERIOD_NS, TINY, Policy, Robot  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402
from stepped import FAULTY, SteppedPolicy, SteppedRobot  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402
from diffusion_policy_ros.policy.checkpoint import save_checkpoint  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402

pytestmark = pytest.mark.ros
ANCHOR = "/agentview/image_raw"
SILENT = f"agentview_image ({ANCHOR}): no message for "


class Camera:
    """The anchor's camera, a process of its own."""

    def __init__(self, domain):
        self.domain = domain
        self.plug_in()

    def plug_in(self, width=84, height=84, encoding="rgb8"):
        """Start its process."""
        script = Path(__file__).with_name("camera.py")
        self.process = self.domain.start(script, width, height, encoding)

    def kill(self):
        """End it without a word."""
        self.process.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for the tests of cameras."""
    with live(tmp_path_factory.mktemp("fault_processes")) as domain:
        yield domain


@pytest.fixture(scope="module")
def camera(domain):
    """One for all; every test leaves it well."""
    return Camera(domain)


@pytest.fixture(scope="module")
def robot(domain):
    """All but the camera; its time waits for the node, see stepped.py."""
    return SteppedRobot(domain, without=[ANCHOR])


@pytest.fixture(scope="module")
def policy(domain, robot, camera, checkpoint):
    """One for all; every test leaves it running."""
    return SteppedPolicy(domain, robot, checkpoint)


def must_miss_the_camera(robot, policy):
    """A hold as soon as its image is a frame late, and the reason."""
    last_ns = robot.now_ns
    for _ in range(2):
        robot.step()
    policy.must_hold_for(last_ns + 2 * PERIOD_NS, SILENT)
    return last_ns


def test_a_camera_that_is_stopped_holds_within_a_frame_and_goes_on(robot, camera, policy):
    """SIGSTOP: a hold a frame after the image that is missed; SIGCONT: chunks again."""
    policy.until_running()
    camera.process.signal(signal.SIGSTOP)
    last_ns = must_miss_the_camera(robot, policy)
    camera.process.signal(signal.SIGCONT)
    policy.must_recover(last_ns)


def test_a_camera_that_dies_and_comes_back_otherwise_is_named(robot, camera, policy):
    """Killed; back with another encoding, another size, and at last as it was."""
    policy.until_running()
    camera.kill()
    last_ns = must_miss_the_camera(robot, policy)
    assert "holding: " in policy.process.output, "the log says so, too, at most once a second"
    for settings, words in (
        ((84, 84, "bgr8"), "the image is 'bgr8', the contract says 'rgb8'"),
        ((96, 72, "rgb8"), "the image is 96x72, the contract says 84x84"),
    ):
        camera.plug_in(*settings)
        policy.step_until_says(f"agentview_image ({ANCHOR}): {words}")
        camera.kill()
        policy.step_until_says(SILENT)
    camera.plug_in()
    policy.must_recover(last_ns)


def test_it_answers_whoever_floods_it(domain, policy):
    """Somebody publishes as fast as can be: services and diagnostics have their turn."""
    policy.until_running()
    flood = domain.start(Path(__file__).with_name("flood.py"))
    rate = "robot0_gripper_qpos.rate_hz"
    much = 10e9 / PERIOD_NS  # ten times what a robot publishes; what a machine can do varies
    domain.until(lambda: float(policy.values[rate]) > much, why="the flood")
    for on in (True, False):
        domain.ask(SetBool, "/policy_node/hold", SetBool.Request(data=on))
    flood.signal(signal.SIGKILL)
    flood.wait()
    policy.until_running()


@pytest.fixture
def arms(tmp_path):
    """Two arms with a policy each, of one contract with names that follow the namespace."""
    text = Contract.load("mini_lift").text.replace("topic: /", "topic: ")
    trained = DiffusionPolicy(Recipe.from_text(TINY), Contract.from_text(text))
    checkpoint = save_checkpoint(tmp_path / "policy", trained)
    with live(tmp_path) as domain:
        names = ("/left", "/right")
        robots = [Robot(domain, namespace=name) for name in names]
        yield robots, [Policy(domain, checkpoint, name, replan_steps=1) for name in names]


def test_two_arms_in_two_namespaces_know_nothing_of_each_other(arms):
    """Chunks follow one's own frames, and a fault, a hold and a parameter are one's own."""
    (left, right), (first, second) = arms
    domain = left.domain
    for policy in (first, second):
        policy.until_running()

    def nan(topic, message):
        if topic == "/eef_pose":
            message.pose.position.x = float("nan")
        return message

    left.change = nan
    first.until_says("robot0_eef_pos (eef_pose): not finite")
    seen = len(second.chunks)
    domain.until(lambda: len(second.chunks) > seen + 3, why="the other goes on")
    assert not first.outputs[-1].points
    second.until_says("running")
    left.change = lambda topic, message: message
    first.until_running()
    assert domain.set("/left/policy_node", "num_inference_steps", 1).successful
    for policy, steps in ((first, "1"), (second, "2")):
        domain.until(lambda: policy.values["num_inference_steps"] == steps, why="its own")  # noqa: B023
    assert not any("not finite" in status.message for status in second.reports)
    for robot, policy in ((left, first), (right, second)):
        assert {stamp_ns(chunk) for chunk in policy.chunks} <= set(robot.stamps)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_hold_before_it_ends_although_the_inference_stalls(tmp_path, checkpoint, number):
    """The hold comes first; then it waits for the inference, but not for ever."""
    faults = tmp_path / "faults"
    faults.mkdir()
    with live(tmp_path) as domain:
        Robot(domain)
        policy = Stalling(domain, checkpoint, faults)
        policy.until_running()
        (faults / "stall").touch()
        policy.until_says("policy: no chunk for ")
        policy.process.signal(number)
        policy.until_holds()
        assert policy.process.wait() == 0
    assert not policy.outputs[-1].points and "Traceback" not in policy.process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_while_it_is_brought_up(tmp_path, checkpoint, number):
    """What takes long then, as compiling a large network, need not be waited for."""
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "stall").touch()
    with live(tmp_path) as domain:
        policy = Stalling(domain, checkpoint, faults)
        domain.until(lambda: "checkpoint" in policy.process.output, why="it warms up")
        policy.process.signal(number)
        policy.process.signal(number)  # ros2 launch sends a second one
        assert policy.process.wait() == 0
    assert not policy.outputs and "Traceback" not in policy.process.output


class Stalling(Policy):
    """With the faults of `faulty_policy.py`."""

    def __init__(self, domain, checkpoint, faults):
        self._faults = faults
        super().__init__(domain, checkpoint, replan_steps=1)

    def start(self, domain, parameters):
        return domain.start(FAULTY, self._faults, threads=1, **parameters)
