"""The player and whose chunks it plays: contract by topic, namespaces, two policies, clocks."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from live import live  # noqa: E402
from playing import Player  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from toy_robot import ToyRobot  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.ros.chunks import time_msg  # noqa: E402
from diffusion_policy_ros.ros.qos import LATCHED  # noqa: E402

pytestmark = pytest.mark.ros
STATE = Contract.load("mini_lift_state")
RELATIVE = Contract.from_text(STATE.text.replace("topic: /", "topic: "))
"""The same, its topics in the node's namespace."""
AT = {
    "robot0_eef_pos": [0, 0, 0.2],
    "robot0_eef_quat": [0, 0, 0, 1],
    "robot0_gripper_qpos": [0, 0],
}
ONWARD = np.tile([0.002, 0, 0, 0, 0, 0, 1.0], (4, 1))


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("policy")) as domain:
        yield domain


@pytest.fixture
def robots(domain):
    """Makes robots that are gone after the test."""
    made = []

    def make(*args, **options):
        made.append(ToyRobot(domain, *args, **options))
        return made[-1]

    yield make
    for robot in made:
        robot.end()


def say(domain, policy, contract):
    """The latched contract of a policy node."""
    publisher = domain.node.create_publisher(String, f"{policy}/contract", LATCHED)
    publisher.publish(String(data=contract.text))
    return publisher


def test_a_player_without_a_file_takes_the_policys_contract(domain, robots):
    """In a namespace, where both and the robot's topics meet by relative names; of two policies
    it plays its own; chunks that mean something else are refused with both sides.
    """
    player = Player(domain, "/left/action_player", armed=True)
    player.until_says("unconfigured: no contract on")
    robot = robots(RELATIVE, AT, player.name, "/left/policy_node")
    other = robots(STATE, AT, "/right/action_player", "/policy_node")
    other.actions = -ONWARD
    robot.actions = ONWARD
    said = say(domain, "/left/policy_node", RELATIVE)
    player.until_says("playing")
    domain.until(lambda: robot.told["~/pose"], why="set-points come")
    assert min(message.pose.position.x for message in robot.told["~/pose"]) >= 0
    other.acts.cancel()
    other.measures.cancel()
    turned = RELATIVE.text.replace("delta_axis_angle", "axis_angle")
    said.publish(String(data=turned))
    player.until_says("holding")
    domain.until(
        lambda: "delta_axis_angle" in player.process.output, why="both kinds are in the log"
    )
    assert "kind: delta_position, delta_axis_angle, binary and " in player.process.output
    player.until_counts("rejected: not from this player's policy")
    said.publish(String(data=RELATIVE.text))
    player.until_says("playing")
    player.process.end()


def test_two_that_publish_chunks_are_refused_by_name(domain, robots):
    """Until only one does."""
    player = Player(domain, "/two", contract="mini_lift_state", policy="/two_policy", armed=True)
    robot = robots(STATE, AT, "/two", "/two_policy")
    robot.actions = ONWARD
    player.until_says("playing")
    second = domain.another("second")
    kind = type(robot.chunk_message(ONWARD))
    publisher = second.create_publisher(kind, "/two_policy/action_chunk", 10)
    player.until_says("holding")
    said = "2 nodes publish /two_policy/action_chunk: /second, /test; end all but one"
    domain.until(lambda: said in player.process.output, why="both are named")
    domain.until(lambda: said in player.values()["problem"], why="diagnostics say so, too")
    second.destroy_publisher(publisher)
    player.until_says("playing")
    twin = robots(STATE, AT, "/two", "/two_policy")
    twin.actions = ONWARD
    several = "several nodes of one name publish /two_policy/action_chunk"
    domain.until(lambda: several in player.process.output, why="twins are noticed, too")
    twin.end()
    player.until_says("playing")
    player.process.end()


def test_a_player_that_cannot_be_configured_leaves_no_publisher(domain, robots, tmp_path):
    """It stays unconfigured and says why; configured and cleaned up, neither."""
    path = tmp_path / "late.yaml"
    player = Player(domain, "/late", contract=path, autostart=False)
    robot = robots(STATE, AT, "/late", "/late_policy")
    player.until_says("unconfigured")

    def change(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return domain.ask(ChangeState, "/late/change_state", request).success

    assert not change(Transition.TRANSITION_CONFIGURE)
    player.until_says("no such")
    unmeasured = STATE.text.replace(
        "kind: delta_axis_angle, frame: base, state: robot0_eef_quat",
        "kind: delta_axis_angle, frame: base",
    )
    assert unmeasured != STATE.text
    path.write_text(unmeasured)
    assert not change(Transition.TRANSITION_CONFIGURE)
    player.until_says("nothing measures rotation")
    count = domain.node.count_publishers
    assert count("/late/pose") == 0
    path.write_text(STATE.text)
    assert change(Transition.TRANSITION_CONFIGURE)
    player.until_says("inactive")
    assert not player.call("resume").success
    assert change(Transition.TRANSITION_ACTIVATE)
    player.until_says("stopped")
    assert player.call("resume").success
    assert change(Transition.TRANSITION_DEACTIVATE)
    assert change(Transition.TRANSITION_ACTIVATE)
    player.until_says("stopped")
    assert change(Transition.TRANSITION_DEACTIVATE)
    assert change(Transition.TRANSITION_CLEANUP)
    domain.until(lambda: count("/late/pose") == 0, why="nothing is left")
    assert robot.told["~/pose"] == []
    player.process.end()


def test_limits_are_of_simulated_time(domain, robots):
    """With a slow simulator, and a clock of 10 Hz, the set-point goes as fast as it may by that
    clock: no faster, and not much slower.
    """
    clock = domain.node.create_publisher(Clock, "/clock", 10)
    now_ns = [10_000_000_000]
    robot = robots(STATE, AT, "/slow", "/slow_policy", now_ns=lambda: now_ns[0])
    robot.acts.cancel()
    robot.measures.cancel()

    def tick():
        now_ns[0] += 100_000_000
        clock.publish(Clock(clock=time_msg(now_ns[0])))
        robot.measure()
        robot.send(np.tile([0.05, 0, 0, 0, 0, 0, 1.0], (8, 1)))
        robot.follow()

    timer = domain.node.create_timer(0.25, tick)
    Player(
        domain,
        "/slow",
        contract="mini_lift_state",
        policy="/slow_policy",
        armed=True,
        use_sim_time=True,
        velocity=0.1,
    )
    heard = robot.told["~/pose"]
    domain.until(lambda: len(heard) > 15, why="set-points come by the clock's time")
    timer.cancel()
    stamps = np.array([m.header.stamp.sec + m.header.stamp.nanosec / 1e9 for m in heard])
    xs = np.array([m.pose.position.x for m in heard])
    assert np.diff(stamps).min() > 0.05
    speeds = np.diff(xs) / np.diff(stamps)
    assert speeds.max() <= 0.1 + 1e-6
    assert np.median(speeds) > 0.08
