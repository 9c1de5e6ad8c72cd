"""Chunks on the wire, and QoS that fits."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.ros.chunk_source import ChunkSource  # noqa: E402
from diffusion_policy_ros.ros.chunks import ChunkBytes, chunk_msg, chunk_of, hold_msg  # noqa: E402
from diffusion_policy_ros.ros.qos import matches, subscription_qos  # noqa: E402
from diffusion_policy_ros.runtime.tail import Chunk  # noqa: E402

pytestmark = pytest.mark.ros
CONTRACT = Contract.load("mini_lift")
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
LATCHED, VOLATILE = DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE


def chunk(n=15, period_ns=CONTRACT.period_ns):
    """Random actions at a time with an odd nanosecond."""
    actions = np.random.default_rng(0).normal(size=(n, 7))
    return Chunk(1_700_000_000_123_456_789, actions, period_ns)


@pytest.mark.parametrize("n", [1, 2, 15])
def test_a_chunk_survives_the_wire_bit_for_bit(n):
    """Times and actions alike; the i-th action is meant i periods after the stamp."""
    message = chunk_msg(chunk(n), CONTRACT)
    assert list(message.joint_names) == CONTRACT.action_names
    assert message.points[-1].time_from_start.nanosec == (n - 1) * 50_000_000 % 10**9
    back = chunk_of(message, CONTRACT)
    assert back.stamp_ns == chunk(n).stamp_ns and back.period_ns == CONTRACT.period_ns
    np.testing.assert_array_equal(back.actions, chunk(n).actions)


@pytest.mark.parametrize("robot", ["mini_lift", "example_arm"])
def test_a_chunk_of_bytes_is_the_message(robot):
    """Also one of another length than the one before, and one whose numbers are not finite."""
    contract = Contract.load(robot)
    serialized, random = ChunkBytes(contract), np.random.default_rng(0)
    for n, stamp_ns in ((15, 1_700_000_000_123_456_789), (15, -5), (2, 7), (1, 8), (15, 9)):
        actions = random.normal(size=(n, contract.action_dim))
        actions[-1, 0] = np.nan if stamp_ns == 9 else 1e300
        sent = Chunk(stamp_ns, actions, contract.period_ns)
        got = deserialize_message(serialized.of(sent), JointTrajectory)
        assert str(got) == str(chunk_msg(sent, contract))


def test_a_hold_is_a_chunk_without_actions():
    """It keeps its time and the action's size."""
    back = chunk_of(hold_msg(5_000_000_001, CONTRACT), CONTRACT)
    assert back.stamp_ns == 5_000_000_001 and back.actions.shape == (0, 7)


def refused(change):
    """What is said of a chunk that was changed so."""
    message = chunk_msg(chunk(), CONTRACT)
    change(message)
    with pytest.raises(UserError) as caught:
        chunk_of(message, CONTRACT)
    return str(caught.value)


def test_another_robots_chunk_is_refused():
    """By its names, its frame, the size of its points, or times that are not this rate's."""

    def told(**values):
        return lambda message: [setattr(message, key, value) for key, value in values.items()]

    assert "a chunk of shoulder, elbow; publish " in refused(
        told(joint_names=["shoulder", "elbow"])
    )
    said = refused(lambda message: setattr(message.header, "frame_id", "camera"))
    assert (
        said == "action chunk: a chunk in frame 'camera'; the actions of mini_lift are in 'base'"
    )
    said = refused(lambda message: setattr(message.points[3], "positions", [0.0]))
    assert "points of [1, 7] values; give 7" in said

    def late(message):
        message.points[3].time_from_start.nanosec += 20_000_000

    assert "uneven" in refused(late)

    def dense(message):
        for i, point in enumerate(message.points):
            point.time_from_start.nanosec = i * 1_000_000
            point.time_from_start.sec = 0

    assert "points 0.001 s apart, or uneven; mini_lift has 20 Hz" in refused(dense)


def test_a_hold_is_a_hold_whoever_sends_it():
    """It stops the arm, so nothing has to be right about it."""
    message = hold_msg(7, CONTRACT)
    message.joint_names, message.header.frame_id = ["somebody"], "elsewhere"
    assert not len(chunk_of(message, CONTRACT).actions)


@pytest.mark.parametrize(
    "offers, expected",
    [
        ([], (BEST_EFFORT, VOLATILE)),
        ([(RELIABLE, VOLATILE)], (RELIABLE, VOLATILE)),
        ([(RELIABLE, LATCHED)], (RELIABLE, LATCHED)),
        ([(RELIABLE, LATCHED), (BEST_EFFORT, VOLATILE)], (BEST_EFFORT, VOLATILE)),
    ],
)
def test_a_subscription_asks_for_what_all_publishers_offer(domain, offers, expected):
    """And so matches every one of them."""
    for reliability, durability in offers:
        qos = QoSProfile(depth=1, reliability=reliability, durability=durability)
        domain.node.create_publisher(String, "/some", qos)
    count = domain.node.count_publishers
    domain.until(lambda: count("/some") == len(offers), why="publishers are seen")
    request = subscription_qos(domain.node, "/some", 3)
    assert (request.reliability, request.durability, request.depth) == (*expected, 3)
    for reliability, durability in offers:
        assert matches(
            request, QoSProfile(depth=1, reliability=reliability, durability=durability)
        )


def test_asking_for_more_than_is_offered_does_not_match():
    """Reliable from best effort, latched from volatile."""
    plain = QoSProfile(depth=1, reliability=BEST_EFFORT, durability=VOLATILE)
    assert not matches(QoSProfile(depth=1, reliability=RELIABLE, durability=VOLATILE), plain)
    assert not matches(QoSProfile(depth=1, reliability=BEST_EFFORT, durability=LATCHED), plain)


def test_a_player_survives_whatever_is_published_as_a_contract(monkeypatch):
    """It says what it heard, and takes the next one."""
    heard = []
    node = SimpleNamespace(
        create_subscription=lambda _type, _topic, hear, _qos: heard.append(hear)
    )
    source = ChunkSource(node, "policy", lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(Contract, "from_text", lambda _text: 1 / 0)
        heard[0](String(data="x"))
    assert source.problem == "policy/contract is no contract: division by zero"
    heard[0](String(data="no: contract"))
    assert "is no contract: contract:" in source.problem and source.contract is None
    heard[0](String(data=CONTRACT.text))
    assert source.contract == CONTRACT and not source.problem
