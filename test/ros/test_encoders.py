"""Set-points as messages: what each says, and that every row of the table has its function."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from rclpy.task import Future  # noqa: E402

from diffusion_policy_ros.contract import ACTION_KINDS, OUTPUTS, Contract  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.ros import outputs as outputs_module  # noqa: E402
from diffusion_policy_ros.ros.encoders import ENCODERS, Told, encode  # noqa: E402
from diffusion_policy_ros.ros.outputs import ActionOutput  # noqa: E402
from diffusion_policy_ros.ros.planned_path import path_msg  # noqa: E402
from diffusion_policy_ros.ros.set_points import DECODERS  # noqa: E402
from diffusion_policy_ros.runtime.tail import Chunk  # noqa: E402

ROBOT = """
name: robot
rate_hz: 20
anchor: pos
observations:
  pos: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  quat: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [shoulder, elbow]}
action:
  fields:
FIELDS
  record: {topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [SIZE]}
"""
POSITION = "{name: where, kind: position, frame: base, state: pos}"
ROTATION = "{name: turned, kind: quaternion, frame: base, state: quat}"
PLACE, TURN = np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.0, 0.6, 0.8])


def outputs(*fields):
    """What these fields go out in."""
    lines = "\n".join(f"    - {field}" for field in fields)
    sizes = [int(size) for size in re.findall(r"size: (\d+)", lines)]
    sizes += [ACTION_KINDS[kind] for kind in re.findall(r"kind: (\w+)", lines)]
    contract = Contract.from_text(ROBOT.replace("FIELDS", lines).replace("SIZE", str(sum(sizes))))
    contract.check_outputs()
    return contract.outputs


def field(name, kind, send, **more):
    """One of an action, sent so."""
    extra = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{{name: {name}, kind: {kind}{extra}, send: {{{send}}}}}"


def told(set_point, velocity=None, ahead=(), time_from_start_s=0.1):
    """At the time of 3.5 s."""
    point = {name: np.asarray(value, dtype=float) for name, value in set_point.items()}
    return Told(3_500_000_000, point, velocity or {}, time_from_start_s, list(ahead))


def test_every_output_of_the_contract_has_an_encoder():
    """And no encoder is one that no contract can ask for."""
    assert set(ENCODERS) == set(OUTPUTS)


def test_a_position_and_a_rotation_make_a_pose():
    """In their frame, of the time that they are meant for."""
    (output,) = outputs(POSITION, ROTATION)
    message = encode(output, told({"where": PLACE, "turned": TURN}))
    assert (output.topic, message.header.frame_id) == ("~/pose", "base")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 500_000_000)
    place, turn = message.pose.position, message.pose.orientation
    assert [place.x, place.y, place.z] == PLACE.tolist()
    assert [turn.x, turn.y, turn.z, turn.w] == TURN.tolist()


@pytest.mark.parametrize("half", [POSITION, ROTATION])
def test_half_a_pose_is_sent_with_the_other_half_as_it_was(half):
    """The contract names what is kept, and the pose is whole."""
    (output,) = outputs(half)
    values = {"position": PLACE, "rotation": TURN}
    message = encode(output, told({part.name: values[part.role] for part in output.fields}))
    assert message.pose.position.y == 0.2 and message.pose.orientation.w == 0.8


@pytest.mark.parametrize("kind", ["TwistStamped", "Twist"])
def test_a_twist_is_told_or_is_the_velocity_of_a_pose(kind):
    """Linear, then angular."""
    send = f"topic: /cmd_vel, type: geometry_msgs/msg/{kind}"
    (output,) = outputs(field("base", "twist", send, frame="base_link"))
    message = encode(output, told({"base": [1, 2, 3, 4, 5, 6]}))
    twist = message.twist if kind == "TwistStamped" else message
    assert (twist.linear.y, twist.angular.z) == (2.0, 6.0)
    if kind == "TwistStamped":
        assert message.header.frame_id == "base_link"
    (output,) = outputs(
        field("where", "position", send, state="pos"),
        field("turned", "quaternion", send, state="quat"),
    )
    velocity = {"where": np.array([0.1, 0, 0]), "turned": np.array([0, 0, 0.7])}
    message = encode(output, told({"where": PLACE, "turned": TURN}, velocity))
    twist = message.twist if kind == "TwistStamped" else message
    assert (twist.linear.x, twist.angular.z) == (0.1, 0.7)


def test_a_planned_path_begins_with_the_first_action_where_nothing_measures_the_position():
    """Which is legal for a policy that tells where to be."""
    contract = Contract.from_text(
        ROBOT.replace("FIELDS", "    - {name: at, kind: position}").replace("SIZE", "3")
    )
    path = path_msg(Chunk(10**9, np.eye(3), contract.period_ns), contract, {"q": np.zeros(2)})
    assert [pose.pose.position.x for pose in path.poses] == [1, 0, 0]


def test_a_trajectory_says_the_way_ahead_and_ends_at_rest():
    """Several points with velocities; begun at once; the last one rests, as controllers demand."""
    (output,) = outputs("{name: arm, kind: joint_position, size: 2, state: q}")
    way = [{"arm": np.array([0.1 * i, 1.0])} for i in range(6)]
    message = encode(output, told(way[0], ahead=way[1:], time_from_start_s=0.5))
    assert list(message.joint_names) == ["shoulder", "elbow"]
    assert message.header.stamp.sec == message.header.stamp.nanosec == 0
    starts = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in message.points]
    np.testing.assert_allclose(starts, [0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_allclose([p.positions[0] for p in message.points], [0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_allclose([p.velocities[0] for p in message.points], [1, 1, 1, 1, 0])
    assert all(p.velocities[1] == 0 for p in message.points)


def test_a_grippers_trajectory_has_one_point_at_its_time():
    """It closes in that time, not in a tick."""
    send = (
        "topic: /g, type: trajectory_msgs/msg/JointTrajectory, names: [finger], "
        "open: 0.0, closed: 0.8"
    )
    (output,) = outputs(field("gripper", "binary", send))
    way = [{"gripper": np.ones(1)}] * 5
    message = encode(output, told({"gripper": [1.0]}, ahead=way, time_from_start_s=0.5))
    (point,) = message.points
    assert list(message.joint_names) == ["finger"] and point.positions.tolist() == [0.8]
    assert point.time_from_start.nanosec == 500_000_000 and point.velocities.tolist() == [0.0]


def test_arrays_and_joint_states_join_their_fields_in_order():
    """An arm and its gripper as one message; speeds are speeds."""
    array = "topic: /c, type: std_msgs/msg/Float64MultiArray"
    (output,) = outputs(
        field("arm", "joint_position", array, size=2, state="q"),
        field("gripper", "binary", array + ", open: 0.04, closed: 0.0"),
    )
    told_now = told({"arm": [0.1, 0.2], "gripper": [-1.0]})
    assert encode(output, told_now).data.tolist() == [0.1, 0.2, 0.04]
    states = "topic: /c, type: sensor_msgs/msg/JointState"
    (output,) = outputs(
        field("arm", "joint_position", states, size=2, state="q"),
        field("gripper", "scalar", states + ", names: [finger]"),
    )
    message = encode(output, told({"arm": [0.1, 0.2], "gripper": [0.5]}))
    assert list(message.name) == ["shoulder", "elbow", "finger"]
    assert message.position.tolist() == [0.1, 0.2, 0.5] and not message.velocity
    names = states + ", names: [left, right]"
    (output,) = outputs(field("wheels", "joint_velocity", names, size=2))
    message = encode(output, told({"wheels": [3.0, 4.0]}))
    assert message.velocity.tolist() == [3.0, 4.0] and not message.position
    (output,) = outputs(field("lift", "scalar", "topic: /c, type: std_msgs/msg/Float64"))
    assert encode(output, told({"lift": [0.3]})).data == 0.3


def test_a_driver_is_told_in_its_own_units():
    """Degrees and per cent beside each other, in a message's values and in its velocities."""
    for kind in ("sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"):
        send = f"topic: /c, type: {kind}"
        (output,) = outputs(
            field("arm", "joint_position", send + ", scale: [0.01]", size=2, state="q"),
            field("hand", "scalar", send + ", names: [finger], scale: [0.5]"),
        )
        point = {"arm": [0.1, 0.2], "hand": [0.25]}
        message = encode(output, told(point, ahead=[told(point).set_point]))
        values = message.position if kind.endswith("JointState") else message.points[0].positions
        np.testing.assert_allclose(values, [10.0, 20.0, 0.5])
        back = DECODERS[kind](output, message)
        np.testing.assert_allclose(back["arm"], point["arm"])


def goal(command):
    """A stand-in for a goal: control_msgs has no wheels, so its own classes are not tested."""
    return type("Action", (), {"Goal": lambda: SimpleNamespace(command=command())})


@pytest.fixture
def control_msgs(monkeypatch):
    """Stands in for the package; only the names of its fields are the real ones'."""
    module = ModuleType("control_msgs.action")
    fields = {"position": 0.0, "max_effort": 0.0}
    module.GripperCommand = goal(lambda: SimpleNamespace(**fields))
    module.ParallelGripperCommand = goal(
        lambda: SimpleNamespace(name=[], position=[], velocity=[], effort=[])
    )
    monkeypatch.setitem(sys.modules, "control_msgs", ModuleType("control_msgs"))
    monkeypatch.setitem(sys.modules, "control_msgs.action", module)


def test_gripper_actions(control_msgs):
    """A position, and an effort where one is given."""
    send = "topic: /g, open: 0.08, closed: 0.0, max_effort: 20.0, type: control_msgs/action/"
    (output,) = outputs(field("gripper", "binary", send + "GripperCommand"))
    message = encode(output, told({"gripper": [-1.0]}))
    assert (message.command.position, message.command.max_effort) == (0.08, 20.0)
    send = "topic: /g, names: [finger], type: control_msgs/action/"
    (output,) = outputs(field("gripper", "scalar", send + "ParallelGripperCommand"))
    command = encode(output, told({"gripper": [0.03]})).command
    assert (command.name, list(command.position), command.effort) == (["finger"], [0.03], [])


def test_an_action_that_is_not_installed_is_named():
    """With what to do about it."""
    pytest.importorskip("rclpy")
    if "control_msgs" in sys.modules:
        pytest.skip("control_msgs is installed")
    send = "topic: /g, type: control_msgs/action/GripperCommand"
    (output,) = outputs(field("gripper", "scalar", send))
    with pytest.raises(UserError, match="not installed; install or source control_msgs"):
        encode(output, told({"gripper": [0.0]}))


class Server:
    """Stands in for an action server and its client.

    Attributes:
        goals: what it was sent.
        ready: whether it is there.
        accepts: whether it accepts goals.
    """

    def __init__(self, *_):
        self.goals, self.ready, self.accepts = [], True, True
        Server.made = self

    def server_is_ready(self):
        return self.ready

    def send_goal_async(self, goal):
        self.goals.append(goal.command.position)
        future = Future()
        future.set_result(SimpleNamespace(accepted=self.accepts))
        return SimpleNamespace(add_done_callback=lambda call: call(future))


@pytest.fixture
def gripper(control_msgs, monkeypatch):
    """Tells a gripper's action a width, and returns the goals so far."""
    monkeypatch.setattr(outputs_module, "ActionClient", Server)
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(outputs_module, "time", clock)
    return Gripper(clock, "scalar", "open: 1.0, closed: 0.0")


class Gripper:
    """An output to a gripper's action, and its server."""

    def __init__(self, clock, kind, send="max_effort: 1.0", **limits):
        sent = f"topic: /g, type: control_msgs/action/GripperCommand, {send}"
        (output,) = outputs(field("width", kind, sent, **limits))
        self.output = ActionOutput(SimpleNamespace(resolve_service_name=str), output)
        self.server, self.clock, self.time_ns = Server.made, clock, 10**9

    def tell(self, *widths, period_ns=0):
        """The goals so far, after these set-points."""
        for width in widths:
            self.time_ns += period_ns
            self.output.tell(Told(self.time_ns, {"width": np.array([width])}, {}))
        return self.server.goals


def test_a_gripper_is_sent_a_goal_when_what_it_is_told_changes(gripper):
    """Not for noise, but for where it comes to rest; and anew after others had the robot."""
    assert gripper.tell(0.5, 0.5, 0.5) == [0.5]
    assert gripper.tell(0.505, 0.501, 0.508) == [0.5]
    assert gripper.tell(0.508) == [0.5, 0.508]
    assert gripper.tell(0.6, 0.7) == [0.5, 0.508, 0.6, 0.7]
    gripper.output.forget()
    assert gripper.tell(0.7) == [0.5, 0.508, 0.6, 0.7, 0.7]


def test_a_gripper_that_does_not_take_its_goal_is_asked_again(gripper):
    """A second later, not every tick; what is wrong is said meanwhile."""
    gripper.server.ready = False
    assert gripper.tell(0.5) == [] and gripper.output.problem == "nobody serves it"
    gripper.server.ready, gripper.server.accepts = True, False
    assert gripper.tell(0.5) == []
    gripper.clock.now += 1.1
    assert gripper.tell(0.5, 0.5) == [0.5] and gripper.output.problem == "the goal was rejected"
    gripper.server.accepts = True
    gripper.clock.now += 1.1
    assert gripper.tell(0.5, 0.5) == [0.5, 0.5] and gripper.output.problem == ""


@pytest.mark.parametrize("limits", [{"limits": "{min: 0.0, max: 0.08}"}, {}])
def test_a_gripper_ends_where_it_is_told_to_be_whatever_its_unit(gripper, limits):
    """In m, with a network's noise of 10 um, for which alone it does not start over."""
    narrow = Gripper(gripper.clock, "scalar", **limits)
    noise = 1e-5 * np.random.default_rng(0).normal(size=300)
    narrow.tell(*(0.04 + noise), period_ns=10**7)
    assert len(narrow.tell()) <= 2
    narrow.tell(*np.linspace(0.04, 0.0208, 20), period_ns=10**7)
    moving = len(narrow.tell())
    goals = narrow.tell(*(0.0205 + noise), period_ns=10**7)
    assert goals[-1] == pytest.approx(0.0205, abs=5e-5) and len(goals) - moving <= 2


def test_a_binary_gripper_is_told_each_change_whatever_it_is_sent(gripper):
    """Once each, by numbers of any size."""
    hand = Gripper(gripper.clock, "binary", "open: 0.0, closed: 800.0")
    assert hand.tell(-1.0, -1.0, 1.0, 1.0, -1.0) == [0.0, 800.0, 0.0]
    assert hand.tell(1.0) == [0.0, 800.0, 0.0, 800.0]
