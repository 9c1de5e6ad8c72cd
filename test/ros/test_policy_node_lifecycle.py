"""How the policy node comes up and ends: each test has a process of its own."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from nodes import CONTRACT, Policy  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402
from stepped import PacedRobot  # noqa: E402

from diffusion_policy_ros.policy.checkpoint import load_policy, save_checkpoint  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.stopping import STOP_SIGNALS  # noqa: E402

pytestmark = pytest.mark.ros


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_it_says_hold_before_it_ends(domain, robot, policy, number):
    """Whoever ends it: the last message is a hold, and the exit code is 0."""
    policy.until_running()
    robot.silence()
    policy.until_holds()
    robot.resume()
    policy.until_running()
    policy.process.signal(number)
    policy.until_holds()
    policy.until_says("inactive")
    assert policy.values["last_hold"] == "deactivated"
    assert policy.process.wait() == 0
    assert not policy.outputs[-1].points
    assert "Traceback" not in policy.process.output


def test_a_hold_that_lasts_is_in_the_log(domain, checkpoint):
    """However soon it comes after what was logged before."""
    robot = PacedRobot(domain)
    policy = Policy(domain, checkpoint, use_sim_time=True)
    for _ in range(2):
        robot.change = lambda topic, message: message
        policy.until_running()
        robot.change = lambda topic, message: None if topic == "/agentview/image_raw" else message
        policy.until_holds()

    def last():
        lines = policy.process.output.splitlines()
        return next(line for line in reversed(lines) if "running" in line or "holding" in line)

    domain.until(lambda: "agentview_image (/agentview/image_raw): no message for" in last())


class Lifecycle:
    """What `ros2 lifecycle` does."""

    def __init__(self, domain):
        self.domain = domain

    def _ask(self, kind, service, request):
        return self.domain.ask(kind, f"/policy_node/{service}", request)

    def change(self, transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return self._ask(ChangeState, "change_state", request).success

    @property
    def state(self):
        return self._ask(GetState, "get_state", GetState.Request()).current_state.label


def test_a_hold_outlives_every_transition_and_may_come_before_all(domain, robot, checkpoint):
    """Who says hold finds the robot held, whatever somebody else does with the node meanwhile."""
    policy, lifecycle = Policy(domain, checkpoint, autostart=False), Lifecycle(domain)
    up = (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    down = (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)

    def hold(on):
        return lifecycle._ask(SetBool, "hold", SetBool.Request(data=on)).success

    assert hold(True)
    for transition in (*up, *down, *up, down[0]):
        assert lifecycle.change(transition)
    status = policy.until_says("inactive; told to hold")
    assert status.level == DiagnosticStatus.WARN
    assert lifecycle.change(up[1])
    policy.until_says("holding: told to hold")
    frames = len(robot.stamps) + 10
    domain.until(lambda: len(robot.stamps) >= frames, why="frames come")
    assert not policy.chunks
    assert lifecycle.change(down[0]) and hold(False) and lifecycle.change(up[1])
    policy.until_running()


def truncated(folder):
    """A copy that was interrupted."""
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def bit_flipped(folder):
    """A disk that forgets."""
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


def missing(folder):
    """Another place."""
    shutil.rmtree(folder)


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A checkpoint that may be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "copied")


@pytest.mark.parametrize("damage", [missing, truncated, bit_flipped])
def test_a_bad_checkpoint_is_one_line_and_exit_code_2(domain, copied, damage):
    """What, where and the cure, when it was to bring itself up."""
    damage(copied)
    policy = Policy(domain, copied)
    assert policy.process.wait() == 2
    assert len(policy.process.output.strip().splitlines()) == 1
    assert "cannot configure: " in policy.process.output and str(copied) in policy.process.output


def test_a_contract_of_another_robot_is_refused(domain, checkpoint):
    """The line names what differs."""
    policy = Policy(domain, checkpoint, contract="mini_lift_state")
    assert policy.process.wait() == 2
    assert "trained for contract 'mini_lift', not for 'mini_lift_state'" in policy.process.output
    assert "they differ in" in policy.process.output


def test_a_parameter_of_another_type_is_one_line_and_exit_code_2(domain, checkpoint):
    """As is one out of its range."""
    policy = Policy(domain, checkpoint, num_inference_steps="ten")
    assert policy.process.wait() == 2
    assert "Traceback" not in policy.process.output
    assert "num_inference_steps" in policy.process.output


def test_it_stays_unconfigured_and_can_be_configured_after_mending(domain, robot, copied):
    """Configure fails with the reason in the diagnostics, and succeeds with what was mended."""
    policy, lifecycle = Policy(domain, "/nowhere", autostart=False), Lifecycle(domain)
    assert lifecycle.state == "unconfigured"
    assert not lifecycle.change(Transition.TRANSITION_CONFIGURE)
    assert lifecycle.state == "unconfigured"
    policy.until_says("/nowhere: no such directory")
    assert domain.set("policy_node", "checkpoint", str(copied)).successful
    assert domain.set("policy_node", "num_inference_steps", 5).successful
    assert lifecycle.change(Transition.TRANSITION_CONFIGURE)
    policy.until_says("inactive")
    assert policy.values["num_inference_steps"] == "5"
    assert lifecycle.change(Transition.TRANSITION_ACTIVATE)
    assert not lifecycle.change(Transition.TRANSITION_ACTIVATE), "it is already"
    policy.until_running()
    holds = len(policy.holds)
    assert lifecycle.change(Transition.TRANSITION_DEACTIVATE)
    domain.until(lambda: len(policy.holds) > holds, why="it says hold")
    assert not policy.outputs[-1].points and lifecycle.state == "inactive"
    assert lifecycle.change(Transition.TRANSITION_CLEANUP)
    policy.until_says("unconfigured")
    assert lifecycle.change(Transition.TRANSITION_CONFIGURE)
    policy.until_says("inactive")
    assert policy.values["num_inference_steps"] == "2", "the checkpoint's own again"


def test_the_next_checkpoint_is_not_sampled_as_one_that_failed(domain, checkpoint, tmp_path):
    """What is a checkpoint's own is taken over when nothing can fail any more."""
    recipe = load_policy(checkpoint).recipe
    recipe = replace(recipe, policy=replace(recipe.policy, num_inference_steps=3))
    other = save_checkpoint(tmp_path / "other", DiffusionPolicy(recipe, CONTRACT))
    trace = "/nowhere/trace.csv"
    policy, lifecycle = Policy(domain, other, autostart=False, trace=trace), Lifecycle(domain)
    assert not lifecycle.change(Transition.TRANSITION_CONFIGURE)
    policy.until_says(trace)
    assert domain.set("policy_node", "trace", "").successful
    assert domain.set("policy_node", "checkpoint", str(checkpoint)).successful
    assert lifecycle.change(Transition.TRANSITION_CONFIGURE)
    policy.until_says("inactive")
    assert policy.values["num_inference_steps"] == "2"


def test_an_engine_that_cannot_be_leaves_the_node_alive(domain, copied):
    """Unknown engines, devices and precisions stand in the diagnostics; mended, it configures.

    What the engine goes on without is a warning of the node's, once.
    """
    policy, lifecycle = Policy(domain, copied, autostart=False), Lifecycle(domain)
    refused = [
        ("engine", "cuda_grahp", "did you mean 'cuda_graph'?"),
        ("device", "cuda:99", "no device 'cuda:99' here"),
        ("dtype", "f8", "unknown precision 'f8'"),
    ]
    mended = {"engine": "cuda_graph", "device": "cpu", "dtype": "bf16"}
    for name, value, why in refused:
        assert domain.set("policy_node", name, value).successful
        assert not lifecycle.change(Transition.TRANSITION_CONFIGURE)
        policy.until_says(why)
        assert domain.set("policy_node", name, mended[name]).successful
    assert lifecycle.change(Transition.TRANSITION_CONFIGURE)
    policy.until_says("inactive")
    [line] = [line for line in policy.process.output.splitlines() if "needs a GPU" in line]
    assert "[WARN]" in line and "policy_node" in line
    assert policy.values["engine"] == "eager"
    assert "Traceback" not in policy.process.output


def used(pid):
    """Threads, open files and resident MiB of a process."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["Threads"]), files, int(status["VmRSS"].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize("cycles", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_brought_up_and_down_again_and_again_it_does_not_grow(domain, robot, checkpoint, cycles):
    """Each time chunks come and a hold ends them; threads, files and memory are as before."""
    policy, lifecycle = Policy(domain, checkpoint, autostart=False), Lifecycle(domain)

    def cycle():
        assert lifecycle.change(Transition.TRANSITION_CONFIGURE)
        assert lifecycle.change(Transition.TRANSITION_ACTIVATE)
        policy.until_running()
        assert lifecycle.change(Transition.TRANSITION_DEACTIVATE)
        domain.until(lambda: not policy.outputs[-1].points, why="it says hold")
        assert lifecycle.change(Transition.TRANSITION_CLEANUP)
        return used(policy.process.pid)

    before = [cycle() for _ in range(3)][-1]
    after = [cycle() for _ in range(cycles)][-1]
    print(f"threads, files, MiB: {before} before, {after} after {cycles} times")
    assert after[:2] == before[:2]
    assert after[2] < before[2] + 10
    assert lifecycle.state == "unconfigured" and "Traceback" not in policy.process.output


def test_a_topic_without_publisher_or_of_another_type_is_reported(domain, policy):
    """By name, while it waits."""
    from geometry_msgs.msg import Pose

    domain.node.create_publisher(Pose, "/eef_pose", 10)
    policy.until_says("agentview_image (/agentview/image_raw): no message yet")
    wrong = "/eef_pose: test publishes it as geometry_msgs/msg/Pose, not as geometry_msgs/msg/Pose"
    domain.until(lambda: wrong in policy.values.get("robot0_eef_pos.problem", ""), why=wrong)
    nobody = "/agentview/image_raw: nobody publishes it"
    assert policy.values["agentview_image.problem"] == nobody
    assert nobody in policy.process.output


def test_two_publishers_of_a_topic_are_reported(domain, robot, policy):
    """A simulator that was left running beside the robot: they contradict each other."""
    from geometry_msgs.msg import PoseStamped

    policy.until_running()
    left = domain.node.create_publisher(PoseStamped, "/eef_pose", 10)
    both = "/eef_pose: 2 nodes publish it: test, test; end all but one"
    domain.until(lambda: policy.values.get("robot0_eef_pos.problem") == both, why=both)
    assert both in policy.process.output
    domain.node.destroy_publisher(left)
    domain.until(lambda: "robot0_eef_pos.problem" not in policy.values, why="it is alone again")


def test_a_clock_that_stands_still_is_reported(domain, checkpoint):
    """Diagnostics come by a steady clock, and say how far /clock moved."""
    robot = PacedRobot(domain)
    policy = Policy(domain, checkpoint, use_sim_time=True)
    policy.until_running()
    robot.silence()
    policy.until_says("no message for ")
    domain.until(lambda: "/clock moved 0." in policy.reports[-1].message, why="the clock's reason")
    robot.resume()
    policy.until_running()
