"""Faults of the action player over DDS: each ends the motion, and is named till ~/resume."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from live import live  # noqa: E402
from playing import Player  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from toy_robot import ToyRobot  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.ros.chunks import time_msg  # noqa: E402

pytestmark = pytest.mark.ros
WATCHED = Contract.from_text("""
name: watched
rate_hz: 20
anchor: pos
observations:
  pos: {topic: /eef_pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields:
    - name: where
      kind: position
      frame: base
      state: pos
      limits: {velocity: 0.5, following_error: 0.1, min: [-0.5, -0.5, 0], max: [0.5, 0.5, 0.5]}
  record: next_state
  limits: {observation_timeout_s: 2.0}
""")
HOME = np.array([0.0625, 0.0, 0.25])
PERIOD_NS = 20_000_000


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("player_faults")) as domain:
        yield domain


def start(domain, robot, name, **parameters):
    """A player of a robot, from the folder's contract."""
    path = domain.folder / f"{name}.yaml"
    path.write_text(robot.contract.text)
    parameters = {"contract": path, "policy": f"{name}_policy", "armed": True, **parameters}
    return Player(domain, f"/{name}", **parameters)


@pytest.fixture(scope="module")
def robot(domain):
    """It stands where it is put."""
    at = {"pos": HOME, "where.orientation": [0, 0, 0, 1]}
    return ToyRobot(domain, WATCHED, at, "/player", "/player_policy")


@pytest.fixture(scope="module")
def player(domain, robot):
    """One for all, with so much patience that a busy machine is no fault."""
    return start(domain, robot, "player")


@pytest.fixture
def playing(robot, player):
    """At home, led onward, and playing; afterwards again."""
    robot.at["pos"], robot.actions = HOME.copy(), np.tile(HOME + [0.02, 0, 0], (8, 1))
    player.until_says("playing")
    robot.forget(player)
    yield
    robot.at["pos"] = HOME.copy()
    robot.measures.reset()


def is_latched(robot, player, words):
    """It is told, as an error, stays when its cause has gone, and moves nothing meanwhile."""
    report = player.until_says("fault: ")
    assert report.level == DiagnosticStatus.ERROR
    assert words in report.message, report.message
    robot.at["pos"] = HOME.copy()
    robot.measures.reset()
    player.until_says("fault: ")
    player.until_says("fault: ")
    robot.forget(player)
    player.until_says("fault: ")
    robot.domain.until(lambda: len(robot.poses) > 5, why="it stays where it is")
    assert len({message.pose.position.x for message in robot.poses}) == 1
    assert player.states[-1].data.startswith("fault")
    assert player.call("resume").success
    player.until_says("playing")


def test_an_arm_that_does_not_follow(domain, robot, player, playing):
    """It is led away slowly, as an arm that is blocked or pushed; not in one wrong sample."""
    for away in (0.05, 0.1, 0.15):
        robot.at["pos"] = HOME + [0, away, 0]
        seen = len(robot.poses)
        domain.until(lambda seen=seen: len(robot.poses) > seen + 20, why="it is seen")
    is_latched(robot, player, "from its set-point")


def test_a_measurement_that_jumps(robot, player, playing):
    """Farther than any arm moves, however busy the machine is; the set-point stays."""
    robot.at["pos"] = HOME + [0, 0, 2.0]
    is_latched(robot, player, "jumped by")
    told = [message.pose.position.z for message in robot.poses]
    assert np.ptp(told) == 0


def test_a_start_outside_its_range(robot, player, playing):
    """Nothing is told, whatever chunks say; put back by hand, it plays."""
    player.call("hand_over")
    player.until_says("operator")
    robot.at["pos"] = HOME + [0, 0.6, 0]
    robot.actions = np.tile(HOME, (8, 1))
    player.until_says("operator")
    player.until_says("operator")
    robot.forget(player)
    player.call("resume")
    report = player.until_says("fault: ")
    assert "outside its range" in report.message
    assert robot.poses == []
    robot.at["pos"] = HOME.copy()
    player.until_says("fault: ")
    assert player.call("resume").success
    player.until_says("playing")


def test_measurements_that_end_where_that_is_to_stop_it(robot, player, playing):
    """on_stale: stop. With hold, which is the default, it would go on by itself."""
    assert player.set("on_stale", "stop").successful
    robot.measures.cancel()
    is_latched(robot, player, "s old")
    assert player.set("on_stale", "hold").successful


def test_a_clock_that_steps(domain):
    """Simulated time that steps back, and one that leaps: no set-point leaps with it."""
    now = [1_000 * 10**9]
    clock = domain.node.create_publisher(Clock, "/clock", 10)
    at = {"pos": HOME, "where.orientation": [0, 0, 0, 1]}
    contract = Contract.from_text(WATCHED.text.replace("/eef_pose", "/stepped/eef_pose"))
    robot = ToyRobot(domain, contract, at, "/stepped", "/stepped_policy", now_ns=lambda: now[0])
    robot.actions = np.tile(HOME + [0.4, 0, 0], (8, 1))

    def tick():
        now[0] += PERIOD_NS
        robot.measure()
        clock.publish(Clock(clock=time_msg(now[0])))

    # Slower than the wall's time: a player that falls behind on a busy machine misses no second.
    ticking = domain.node.create_timer(4 * PERIOD_NS / 1e9, tick)
    player = start(domain, robot, "stepped", use_sim_time=True, rate_hz=50.0)
    for seconds in (-5.0, 5.0):
        player.until_says("playing")
        robot.told["~/pose"].clear()
        now[0] += round(seconds * 1e9)
        report = player.until_says("fault: ")
        assert "clock" in report.message, report.message
        path = [message.pose.position.x for message in robot.told["~/pose"]]
        assert np.abs(np.diff(path)).max(initial=0) <= 0.5 * 5 * PERIOD_NS / 1e9
        assert player.call("resume").success
    player.until_says("playing")
    ticking.cancel()
    robot.end()
    player.process.end()
