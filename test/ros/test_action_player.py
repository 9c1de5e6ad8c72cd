"""The action player in a process of its own, over DDS: what it does with its robot's motion."""

import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from live import live  # noqa: E402
from nodes import JOINTS  # noqa: E402
from playing import Player  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from std_msgs.msg import Bool, Float64  # noqa: E402
from toy_robot import ToyRobot, seconds  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402

pytestmark = pytest.mark.ros
CONTRACT = Contract.load("mini_lift_state")
HOME = np.array([0.0625, 0.0, 0.25])  # a float32 knows these
AT = {"robot0_eef_pos": HOME, "robot0_eef_quat": [0, 0, 0, 1], "robot0_gripper_qpos": [0, 0]}
ONWARD = np.tile([0.01, 0, 0, 0, 0, 0, 1.0], (4, 1))


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("action_player")) as domain:
        yield domain


@pytest.fixture(scope="module")
def arm(domain):
    """One that stands where it is put, whatever it is told."""
    return ToyRobot(domain, CONTRACT, AT)


@pytest.fixture(scope="module")
def player(domain, arm):
    """One for all; a test that wants it new starts it again."""
    player = Player(domain, contract="mini_lift_state", velocity=0.5)
    player.until_says("stopped")
    return player


def xs(arm):
    """The x of every set-point."""
    return [message.pose.position.x for message in arm.poses]


def times(arm):
    """When every set-point is meant, s."""
    return [*map(seconds, arm.poses)]


def begin_anew(player, arm):
    """From where the arm is, with no set-point of before."""
    player.call("hand_over")
    player.until_says("operator")
    player.until_says("operator")
    arm.forget(player)
    assert player.call("resume").success


@pytest.fixture
def at_home(arm, player):
    """The arm is at home, onward is where it is told to go, and the player has been released."""
    arm.actions = ONWARD
    if (arm.at["robot0_eef_pos"] != HOME).any():
        player.call("hand_over")  # put back by hand: while it plays, the leap is a fault
        arm.at["robot0_eef_pos"] = HOME.copy()
        player.until_says("operator")
        player.until_says("operator")
    if player.call("resume").success:  # refused where it plays: a test before has left it so
        player.until_says("playing")
    yield
    arm.actions = ONWARD
    arm.frames.clear()


def test_it_starts_stopped_and_silent_and_begins_where_the_arm_is(domain, arm, player, at_home):
    """Chunks come, and somebody moves the arm meanwhile; nothing is published before ~/resume."""
    player.process.end()
    player.restart()
    assert player.until_says("stopped").level == DiagnosticStatus.WARN
    arm.forget(player)
    player.until_says("stopped")
    player.until_says("stopped")
    assert arm.poses == []
    assert player.states[-1].data.startswith("stopped")
    arm.at["robot0_eef_pos"] = HOME + [0.125, 0, 0]
    player.until_says("stopped")
    assert player.call("resume").success
    domain.until(lambda: arm.poses, why="set-points come")
    assert xs(arm)[0] == pytest.approx(HOME[0] + 0.125, abs=0.011)
    assert arm.poses[0].header.frame_id == "base"
    player.until_says("playing")


def test_without_a_policy_it_stays_where_it_is(domain, arm, player, at_home):
    """Stopped and released, but no chunk: it says so, and tells the same as before."""
    arm.actions = None
    player.call("stop")
    player.until_says("stopped: ~/stop was called")
    assert player.call("resume").success
    player.until_says("holding: no chunk yet")
    arm.forget(player)
    player.until_says("holding: no chunk yet")
    player.until_says("holding: no chunk yet")
    assert len(set(xs(arm))) == 1
    arm.actions = ONWARD
    player.until_says("playing")


def test_chunks_become_a_smooth_stream(domain, arm, player, at_home):
    """Many set-points an action, none of them a jump, as far ahead as the contract allows; for
    controllers that ask for reliable delivery and for those that do not.
    """
    unreliable = domain.listen(PoseStamped, "/action_player/pose", qos_profile_sensor_data)
    assert player.set("speed_scale", 0.05).successful  # else a busy player is there in two ticks
    begin_anew(player, arm)
    domain.until(lambda: xs(arm) and max(xs(arm)) > HOME[0] + 0.049, why="the arm is led")
    path, steps = np.array(xs(arm)), np.diff(xs(arm))
    assert (steps > 0).sum() >= 4
    assert (steps <= 0.05 * 0.5 * np.diff(times(arm)) + 1e-6).all()
    assert path.max() <= HOME[0] + 0.05 + 1e-9
    assert arm.told["~/gripper"][-1].data.tolist() == [1.0]
    assert unreliable
    assert player.set("speed_scale", 1.0).successful


def test_a_stop_stays_whatever_is_measured(domain, arm, player, at_home):
    """A push, one wrong sample, chunks: the set-point stays; then it begins where the arm is."""
    assert player.call("stop").success
    assert player.until_says("stopped: ~/stop was called").level == DiagnosticStatus.WARN
    arm.forget(player)
    arm.at["robot0_eef_pos"] = HOME + [0.01, 0, 0]
    domain.until(lambda: len(arm.poses) > 30, why="set-points go on")
    arm.at["robot0_eef_pos"] = HOME + [0.02, 0, 0]
    domain.until(lambda: len(arm.poses) > 60, why="set-points go on")
    assert len(set(xs(arm))) == 1
    assert player.call("resume").success
    player.until_says("playing")


def test_resume_while_it_plays_is_refused(domain, arm, player, at_home):
    """And changes nothing: it would jump."""
    player.until_says("playing")
    answer = player.call("resume")
    assert not answer.success and "playing" in answer.message
    assert player.until_says("playing")


def test_a_stop_that_lets_go(domain, arm, player, at_home):
    """With on_stop: release it brakes, then goes quiet, so that others may move the arm."""
    assert (
        player.set("on_stop", "leave").reason == "parameter on_stop: 'leave'; give keep or release"
    )
    assert player.set("on_stop", "release").successful
    player.until_says("playing")
    player.call("stop")
    player.until_says("stopped")
    player.until_says("stopped")
    arm.forget(player)
    player.until_says("stopped")
    player.until_says("stopped")
    assert arm.poses == []
    player.set("on_stop", "keep")
    player.call("resume")
    player.until_says("playing")


def test_an_operator_takes_over_and_hands_back(domain, arm, player, at_home):
    """Quiet meanwhile, and published as a state; then it starts again from where the arm is."""
    assert player.call("hand_over").success
    assert player.until_says("operator").level == DiagnosticStatus.OK
    assert player.states[-1].data.startswith("operator")
    player.until_says("operator")
    arm.forget(player)
    arm.at["robot0_eef_pos"] = HOME + [0, 0.25, 0]
    player.until_says("operator")
    assert arm.poses == []
    assert player.call("resume").success
    domain.until(lambda: arm.poses, why="it plays again")
    assert arm.poses[0].pose.position.y == pytest.approx(0.25, abs=0.011)
    player.call("hand_over")
    player.until_says("operator")
    arm.at["robot0_eef_pos"] = HOME.copy()
    player.until_says("operator")
    player.call("resume")
    player.until_says("playing")


def test_what_is_no_chunk_is_refused_by_name(domain, arm, player, at_home):
    """NaN, another robot's actions, another frame, another rate; it goes on with what it has."""
    joints = Contract.from_text(JOINTS)
    elsewhere = Contract.from_text(CONTRACT.text.replace("frame: base", "frame: camera"))
    faster = Contract.from_text(CONTRACT.text.replace("rate_hz: 20", "rate_hz: 100"))
    arm.actions = None
    player.until_says("holding: ")
    arm.forget(player)
    arm.send(np.full((4, 7), np.nan))
    player.until_counts("rejected: not finite")
    for contract, said in (
        (joints, "a chunk of shoulder, elbow"),
        (elsewhere, "a chunk in frame 'camera'; the actions of mini_lift_state are in 'base'"),
        (faster, "points 0.01 s apart, or uneven; mini_lift_state has 20 Hz"),
    ):
        arm.contract = contract
        arm.send(np.zeros((4, contract.action_dim)))
        arm.contract = CONTRACT
        domain.until(lambda said=said: said in player.process.output, why=f"it says {said}")
    assert np.isfinite(xs(arm)).all() and len(set(xs(arm))) <= 1
    arm.actions = ONWARD
    player.until_says("playing")


def test_a_pose_in_another_frame_is_a_fault(domain, arm, player, at_home):
    """Named, latched, and cleared by ~/resume once the driver has been mended."""
    arm.frames["/eef_pose"] = "camera_optical_frame"
    report = player.until_says("fault: ")
    assert report.level == DiagnosticStatus.ERROR
    assert "/eef_pose" in report.message and "'camera_optical_frame'" in report.message
    assert "'base'" in report.message and "check_frame" in report.message
    assert player.states[-1].data.startswith("fault")
    arm.frames.clear()
    player.until_says("fault: ")
    player.call("resume")
    player.until_says("playing")


def test_a_pose_that_stops_is_not_believed(domain, arm, player, at_home):
    """It holds, says how old the pose is, and goes on when there is a new one; the log, too."""
    arm.measures.cancel()
    report = player.until_says("robot0_eef")
    assert "holding" in report.message and report.level == DiagnosticStatus.WARN
    arm.measures.reset()
    player.until_says("playing")
    lines = player.process.output.splitlines()
    assert any("holding" in line and "robot0_eef" in line for line in lines)


def test_limits_are_tightened_live_and_loosened_loudly(domain, arm, player, at_home):
    """Tighter at once; looser is refused, and said loudly where it was asked for."""
    assert player.set("translation.step", 0.02).successful
    refused = player.set("translation.step", 0.5)
    assert not refused.successful and "loosen_limits" in refused.reason
    assert player.set("loosen_limits", True).successful
    assert player.set("translation.step", 0.5).successful
    domain.until(lambda: "LOOSENED" in player.process.output, why="it says so in the log")
    player.until_counts("loosened_limits")
    assert player.until_says("playing").level == DiagnosticStatus.WARN
    assert not player.set("loosen_limits", False).successful
    assert player.set("translation.step", 0.0).successful
    assert player.set("loosen_limits", False).successful
    assert not player.set("joint_velocity", 0.5).successful


def test_the_speed_is_scaled_live(domain, arm, player, at_home):
    """By topic or parameter, which are the same; what is no share is refused."""
    scale = domain.node.create_publisher(Float64, "/action_player/speed_scale", 1)
    domain.until(scale.get_subscription_count, why="the player listens")
    scale.publish(Float64(data=0.1))
    domain.until(lambda: player.values()["speed_scale"] == "0.1", why="it is slowed down")
    begin_anew(player, arm)
    domain.until(lambda: xs(arm) and max(xs(arm)) > HOME[0] + 0.02, why="it moves")
    assert (np.diff(xs(arm)) <= 0.1 * 0.5 * np.diff(times(arm)) + 1e-6).all()
    scale.publish(Float64(data=float("nan")))
    scale.publish(Float64(data=1.5))
    domain.until(lambda: "speed_scale" in player.process.output, why="nonsense is refused")
    assert player.set("speed_scale", 1.0).successful
    player.until_says("playing")


def test_a_player_that_is_killed_is_stopped_when_it_comes_back(domain, arm, player, at_home):
    """Whoever restarts it; and so is one that was deactivated."""
    player.process.signal(signal.SIGKILL)
    player.process.wait()
    player.restart()
    player.until_says("stopped: not released yet")
    arm.forget(player)
    player.until_says("stopped")
    player.until_says("stopped")
    assert arm.poses == []
    player.call("resume")
    player.until_says("playing")


def test_a_dead_man_switch(domain, arm):
    """It plays only while the switch says so, again and again."""
    watched = ToyRobot(domain, CONTRACT, AT, "/watched", "/watched_policy")
    watched.actions = ONWARD
    player = Player(
        domain,
        "/watched",
        contract="mini_lift_state",
        policy="/watched_policy",
        armed=True,
        enable_topic="/enable",
    )
    player.until_says("holding: /enable")
    assert watched.poses == []
    switch = domain.node.create_publisher(Bool, "/enable", 1)
    pressing = domain.node.create_timer(0.05, lambda: switch.publish(Bool(data=True)))
    player.until_says("playing")
    pressing.cancel()
    player.until_says("holding: /enable")
    pressing.reset()
    player.until_says("playing")
    pressing.cancel()
    switch.publish(Bool(data=False))
    player.until_says("holding: /enable")
    player.process.end()
    watched.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_joints_by_name_and_an_end_in_order(domain, tmp_path, number):
    """Several points to ros2_control, within their velocity; signals end it with exit code 0."""
    path = tmp_path / "joints.yaml"
    path.write_text(JOINTS)
    name, contract = f"/joints_{number}", Contract.from_text(JOINTS)
    robot = ToyRobot(domain, contract, {"q": [0.1, 0.2]}, name, f"{name}_policy")
    robot.actions = np.tile([0.1, 0.2], (8, 1))
    player = Player(domain, name, contract=path, rate_hz=50.0, policy=f"{name}_policy", armed=True)
    heard = robot.told["~/joint_trajectory"]
    # Only once it is heard does it move: before, it would have arrived unseen.
    domain.until(lambda: heard, why="it is told to stay")
    robot.actions = np.tile([0.3, 0.2], (8, 1))
    there = lambda: heard and abs(heard[-1].points[-1].positions[0] - 0.3) < 1e-6  # noqa: E731
    domain.until(there, why="the joints are where the chunk says")
    robot.actions = None
    assert list(heard[-1].joint_names) == ["shoulder", "elbow"]
    assert [p.time_from_start.nanosec for p in heard[-1].points] == [
        20_000_000 * i for i in range(1, 6)
    ]
    moving = [m for m in heard if m.points[0].velocities[0] > 0]
    assert moving and all(m.points[-1].velocities[0] == 0 for m in moving)
    assert max(p.velocities[0] for m in moving for p in m.points) <= 1.0 + 1e-6
    player.process.signal(number)
    assert player.process.wait() == 0, player.process.output
    robot.end()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"contract": "mini_lift", "rate_hz": 5.0}, "parameter rate_hz"),
        ({"contract": "mini_lift", "on_stale": "wait"}, "parameter on_stale: 'wait'"),
        ({"contract": "mini_lift", "velocity": -1.0}, "parameter velocity: it is -1.0"),
        ({"contract": "mini_lift", "velocty": 0.03}, "no parameter 'velocty'; did you mean 'vel"),
        ({"contract": "mini_lift", "joint_velocity": 0.5}, "commands nothing that it limits"),
        ({"contract": "mini_lift", "lead": 0.5}, "0.5 allows more than the contract's 0.05"),
        ({"contract": "mini_lift", "gripper_joint": "finger"}, "give send: {type: trajectory"),
    ],
)
def test_parameters_that_do_not_fit(domain, parameters, said):
    """One line with the cure, and exit code 2."""
    player = domain.start("action_player", **parameters)
    assert player.wait() == 2
    assert said in player.output and "Traceback" not in player.output
