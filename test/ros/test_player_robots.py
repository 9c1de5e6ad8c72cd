"""Robots of many fields, driven over DDS: every field is told, each as its controller takes it."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from live import live  # noqa: E402
from playing import Player  # noqa: E402
from toy_robot import ToyRobot  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.policy.rotations import quaternion_to_rotation_6d  # noqa: E402

pytestmark = pytest.mark.ros
UPRIGHT, TURNED = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 0.0, 0.1, 0.995])
TURNED /= np.linalg.norm(TURNED)
ARM_WITH_GRIPPER = """
name: arm_with_gripper
rate_hz: 20
anchor: q
observations:
  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [shoulder, elbow]}
  finger: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [finger]}
action:
  fields:
    - {name: arm, kind: joint_position, size: 2, state: q, limits: {velocity: 1.0}}
    - {name: gripper, kind: joint_position, size: 1, state: finger, limits: {velocity: 0.1}}
  record: next_state
"""
HALF = """
name: half_a_pose
rate_hz: 20
anchor: pos
observations:
  pos: {topic: /eef_pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  width: {topic: /gripper, type: sensor_msgs/msg/JointState, names: [finger], max_age_s: 3600}
action:
  fields:
    - {name: where, kind: position, frame: base, state: pos, limits: {velocity: 0.5}}
    - {name: gripper, kind: scalar, state: width}
  record: next_state
"""


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """One for all."""
    with live(tmp_path_factory.mktemp("robots")) as domain:
        yield domain


@pytest.fixture
def driven(domain, tmp_path):
    """Makes a robot whose player plays one action over and over, released from the start."""
    made = []

    def make(contract, at, action):
        name = f"/{contract.name}"
        patient = contract.text.replace("observation_timeout_s: 0.5", "observation_timeout_s: 20")
        contract = Contract.from_text(patient)
        robot = ToyRobot(domain, contract, at, name, f"{name}_policy")
        robot.actions = np.tile(action, (10, 1))
        path = tmp_path / "contract.yaml"
        path.write_text(contract.text)
        player = Player(domain, name, contract=path, policy=f"{name}_policy", armed=True)
        made.extend([robot.end, player.process.end])
        return robot

    yield make
    for end in made:
        end()


def until_told(domain, robot, topic, what, expected):
    """Wait until the newest message says so."""

    def there():
        robot.follow()
        heard = robot.told[topic]
        return heard and np.allclose(what(heard[-1]), expected, atol=1e-3)

    said = lambda: f"{topic} says {expected}, not {[what(m) for m in robot.told[topic][-1:]]}"  # noqa: E731
    domain.until(there, why=said)


def place(message):
    """Of a pose."""
    where = message.pose.position
    return [where.x, where.y, where.z]


def turn(message):
    """Of a pose."""
    turned = message.pose.orientation
    return [turned.x, turned.y, turned.z, turned.w]


def test_two_arms_with_grippers(domain, driven):
    """Each arm goes where its own six fields say, in its own frame; 20 numbers an action."""
    contract = Contract.load("two_arms")
    assert contract.action_dim == 20
    start = {"left": [0.4, 0.1, 0.2], "right": [0.5, -0.1, 0.3]}
    at = {f"{arm}_pos": where for arm, where in start.items()}
    at |= {
        "left_quat": UPRIGHT,
        "right_quat": UPRIGHT,
        "left_width": [0.02],
        "right_width": [0.02],
    }
    goals = {"left": np.array([0.45, 0.1, 0.2]), "right": np.array([0.5, -0.15, 0.3])}
    turned = {
        "left": quaternion_to_rotation_6d(TURNED),
        "right": quaternion_to_rotation_6d(UPRIGHT),
    }
    action = np.concatenate(
        [goals["left"], turned["left"], [0.01], goals["right"], turned["right"], [0.07]]
    )
    robot = driven(contract, at, action)
    for arm, quaternion, width in (("left", TURNED, 0.01), ("right", UPRIGHT, 0.07)):
        until_told(domain, robot, f"/{arm}/target_pose", place, goals[arm])
        until_told(domain, robot, f"/{arm}/target_pose", turn, quaternion)
        until_told(domain, robot, f"/{arm}_gripper_controller/commands", lambda m: m.data, [width])
        assert robot.told[f"/{arm}/target_pose"][-1].header.frame_id == f"{arm}_base"


def test_an_arm_whose_gripper_is_a_joint(domain, driven):
    """Two fields of one kind on one topic: one trajectory of all three joints."""
    contract = Contract.from_text(ARM_WITH_GRIPPER)
    robot = driven(contract, {"q": [0.1, 0.2], "finger": [0.0]}, [0.2, 0.1, 0.03])
    until_told(
        domain,
        robot,
        "~/joint_trajectory",
        lambda message: message.points[-1].positions,
        [0.2, 0.1, 0.03],
    )
    assert list(robot.told["~/joint_trajectory"][-1].joint_names) == [
        "shoulder",
        "elbow",
        "finger",
    ]


def test_an_arm_on_a_base(domain, driven):
    """A twist, joints that turn on and on, and a gripper; the base stands when it holds."""
    contract = Contract.load("mobile_manipulator")
    at = {"joints": [0, 0, 0, 0, 0, 3.1], "opening": [1.0]}
    action = [0.2, 0, 0, 0, 0, 0.3, 0.1, 0, 0, 0, 0, -3.1, 0.5]
    robot = driven(contract, at, action)
    until_told(domain, robot, "/cmd_vel", lambda m: [m.linear.x, m.angular.z], [0.2, 0.3])
    path = "/arm_controller/joint_trajectory"
    until_told(domain, robot, path, lambda m: m.points[-1].positions[:1], [0.1])
    last = np.array([message.points[0].positions[5] for message in robot.told[path]])
    assert np.abs(np.diff(last)).max() < 0.2 and (last > 3.05).all()  # the short way round
    until_told(domain, robot, "/gripper_controller/commands", lambda m: m.data, [0.5])
    robot.actions = None
    until_told(domain, robot, "/cmd_vel", lambda m: [m.linear.x, m.angular.z], [0, 0])


def test_half_a_pose_and_a_gripper_that_is_published_on_change(domain, driven):
    """The orientation stays as it was; a width of long ago is believed as long as it may be."""
    contract = Contract.from_text(HALF)
    at = {"pos": [0.1, 0, 0.2], "where.orientation": TURNED, "width": [0.05]}
    robot = driven(contract, at, [0.15, 0, 0.2, 0.01])
    domain.until(lambda: robot.told["~/pose"], why="it begins")
    robot.once = {"/gripper"}
    until_told(domain, robot, "~/pose", place, [0.15, 0, 0.2])
    assert turn(robot.told["~/pose"][-1]) == pytest.approx(TURNED, abs=1e-6)
    first = len(robot.told["~/pose"])
    robot.actions = np.tile([0.1, 0, 0.2, 0.01], (10, 1))
    domain.until(lambda: len(robot.told["~/pose"]) > first + 150, why="it goes on")
    until_told(domain, robot, "~/pose", place, [0.1, 0, 0.2])
