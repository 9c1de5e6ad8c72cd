"""The action player in a process of its own, over DDS; an arm that stands where it is."""

import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from conftest import JOINTS  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from geometry_msgs.msg import PoseStamped, TwistStamped  # noqa: E402
from live import live  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.ros.chunks import chunk_msg, time_msg  # noqa: E402
from diffusion_policy_ros.runtime.tail import Chunk  # noqa: E402

pytestmark = pytest.mark.ros
CONTRACT = Contract.load("mini_lift_state")
HOME = np.array([0.0625, 0.0, 0.25])  # a float32 knows these


class Arm:
    """Publishes where it is and chunks; hears what it is told."""

    def __init__(self, domain):
        self.domain, self.node = domain, domain.node
        self.contract, self.action = CONTRACT, np.array([0.01, 0, 0, 0, 0, 0, 1.0])
        self.told = domain.listen(PoseStamped, "/action_player/pose")
        self._arrays = domain.listen(DiagnosticArray, "/diagnostics")
        self._pose = self.node.create_publisher(PoseStamped, "/eef_pose", 10)
        self._joints = self.node.create_publisher(JointState, "/joint_states", 10)
        topic = "/policy_node/action_chunk"
        self._chunks = self.node.create_publisher(JointTrajectory, topic, 10)
        self.measures = self.node.create_timer(0.02, self._measure)
        self.acts = self.node.create_timer(0.1, self.send)

    @property
    def now_ns(self):
        """By the clock of all."""
        return self.node.get_clock().now().nanoseconds

    def _measure(self):
        pose, now = PoseStamped(), time_msg(self.now_ns)
        pose.header.stamp = now
        where = pose.pose.position
        where.x, where.y, where.z = HOME.tolist()
        pose.pose.orientation.w = 1.0
        self._pose.publish(pose)
        state = JointState(name=["elbow", "shoulder"], position=[0.2, 0.1])
        state.header.stamp = now
        self._joints.publish(state)

    def send(self, actions=None):
        """A chunk from now on; of the usual action where none are given."""
        actions = np.tile(self.action, (4, 1)) if actions is None else actions
        chunk = Chunk(self.now_ns, actions, self.contract.period_ns)
        self._chunks.publish(chunk_msg(chunk, self.contract))

    @property
    def x(self):
        """Of every set-point so far."""
        return [message.pose.position.x for message in self.told]

    @property
    def reports(self):
        every = [array.status[0] for array in self._arrays]
        return [status for status in every if status.name == "/action_player: player"]

    def values(self):
        """Of the newest report."""
        return {entry.key: entry.value for entry in self.reports[-1].values}

    def until_says(self, text):
        """Wait for a report from now on with this in its message."""
        seen = len(self.reports)
        new = lambda: next((s for s in self.reports[seen:] if text in s.message), None)  # noqa: E731
        return self.domain.until(new, why=f"the player reports {text!r}")


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("action_player")) as domain:
        yield domain


@pytest.fixture(scope="module")
def arm(domain):
    """One for all, and the player beside it; every test leaves it playing."""
    arm = Arm(domain)
    domain.start("action_player", contract="mini_lift_state", publish_twist=True, velocity=0.5)
    return arm


def test_without_a_policy_it_stays_where_the_arm_is(domain, arm):
    """A player without a node holds, says why, and tells the arm to be where it is."""
    arm.acts.cancel()
    arm.until_says("holding: no chunk yet")
    domain.until(lambda: len(arm.told) > 20, why="set-points come")
    assert set(arm.x) == {HOME[0]}
    assert arm.told[-1].header.frame_id == "base"
    arm.acts.reset()
    arm.until_says("playing")


def test_chunks_become_a_smooth_stream(domain, arm):
    """Many set-points an action, none of them a jump, as far ahead as the contract allows."""
    grippers = domain.listen(Float64MultiArray, "/action_player/gripper")
    twists = domain.listen(TwistStamped, "/action_player/twist")
    domain.call("/action_player/resume")
    arm.told.clear()

    def since_home():
        """The x of the set-points since it last was at the measured pose."""
        home = [place for place, x in enumerate(arm.x) if x == HOME[0]]
        return arm.x[home[-1] :] if home else [HOME[0]]

    domain.until(lambda: max(since_home()) > HOME[0] + 0.049, why="the arm is led")
    path = np.array(since_home())
    steps = np.diff(path)
    moving = steps[(steps > 0) & (path[1:] < HOME[0] + 0.049)]
    assert len(moving) >= 8 and steps.max() <= 0.5 / 100 + 1e-9  # a late tick, too
    assert max(arm.x) <= HOME[0] + 0.05 + 1e-9
    assert grippers[-1].data.tolist() == [1.0]
    assert max(twist.twist.linear.x for twist in twists) > 0.05


def test_a_stop_stays_until_it_is_released(domain, arm):
    """Whatever chunks come; then it begins at the measured pose."""
    assert domain.call("/action_player/stop").success
    assert arm.until_says("stopped: ~/stop was called").level == DiagnosticStatus.ERROR
    arm.told.clear()
    domain.until(lambda: len(arm.told) > 50, why="set-points go on")
    assert len(set(arm.x)) == 1
    assert domain.call("/action_player/resume").success
    arm.told.clear()
    domain.until(lambda: HOME[0] in arm.x, why="it begins at the measured pose")
    arm.until_says("playing")


def test_what_is_no_chunk_is_refused_by_name(domain, arm):
    """NaN and another robot's actions; the arm goes on with what it has, then holds."""
    arm.acts.cancel()
    arm.until_says("holding: ")
    arm.told.clear()
    arm.send(np.full((4, 7), np.nan))
    domain.until(lambda: "rejected: not finite" in arm.values(), why="NaN is counted")
    arm.contract = Contract.from_text(JOINTS)
    arm.send(np.zeros((4, 2)))
    arm.contract = CONTRACT
    other = "rejected: not a chunk of this contract"
    domain.until(lambda: other in arm.values(), why="the other robot's is counted")
    assert np.isfinite(arm.x).all() and len(set(arm.x)) == 1
    arm.acts.reset()
    arm.until_says("playing")


def test_a_pose_that_stops_is_not_believed(domain, arm):
    """It holds, says how old the pose is, and goes on when there is a new one."""
    arm.measures.cancel()
    report = arm.until_says("holding: the measured pose is")
    assert "0.5 s are allowed" in report.message and report.level == DiagnosticStatus.WARN
    arm.measures.reset()
    arm.until_says("playing")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_joints_by_name_and_an_end_in_order(domain, arm, tmp_path, number):
    """Joints go to ros2_control, within their velocity; signals end it with exit code 0."""
    path = tmp_path / "joints.yaml"
    path.write_text(JOINTS)
    topic = f"/joints_{number}"
    words = ["--ros-args", "-r", f"__node:=joints_{number}"]
    player = domain.start(
        "action_player", *words, contract=path, rate_hz=50.0, action_topic=f"{topic}/chunks"
    )
    heard = domain.listen(JointTrajectory, f"{topic}/joint_trajectory")
    chunks = domain.node.create_publisher(JointTrajectory, f"{topic}/chunks", 10)
    contract = Contract.from_text(JOINTS)

    def send():
        chunk = Chunk(arm.now_ns, np.tile([0.3, 0.2], (8, 1)), contract.period_ns)
        chunks.publish(chunk_msg(chunk, contract))

    timer = domain.node.create_timer(0.1, send)
    there = lambda: heard and abs(heard[-1].points[0].positions[0] - 0.3) < 1e-6  # noqa: E731
    domain.until(there, why="the joints are where the chunk says")
    timer.cancel()
    assert list(heard[-1].joint_names) == ["shoulder", "elbow"]
    assert heard[-1].points[0].time_from_start.nanosec == 20_000_000
    first = np.array([message.points[0].positions[0] for message in heard])
    assert first[0] >= 0.1 and np.abs(np.diff(first)).max() <= 2 * 0.02 + 1e-9
    player.signal(number)
    assert player.wait() == 0, player.output


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "action_player: no contract; give -p contract:=FILE"),
        ({"contract": "mini_lift", "rate_hz": 5.0}, "parameter rate_hz"),
        ({"contract": "mini_lift", "on_stale": "wait"}, "parameter on_stale: 'wait'"),
        ({"contract": "mini_lift", "velocity": -1.0}, "parameter velocity: it is -1.0"),
        ({"contract": "mini_lift", "velocty": 0.03}, "no parameter 'velocty'; did you mean 'vel"),
        (
            {"contract": "mini_lift", "joint_velocity": 0.5},
            "parameter joint_velocity: the action of mini_lift commands nothing that it limits",
        ),
    ],
)
def test_parameters_that_do_not_fit(domain, parameters, said):
    """One line with the cure, and exit code 2."""
    player = domain.start("action_player", **parameters)
    assert player.wait() == 2
    assert said in player.output and "Traceback" not in player.output
