"""The recorder as a node, over DDS."""

import itertools
import os
import signal
from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from geometry_msgs.msg import PoseStamped, TwistStamped  # noqa: E402
from live import LATCHED  # noqa: E402
from rclpy.duration import Duration  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from test_latched import TEXT as GOAL  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.bags import open_bag  # noqa: E402
from diffusion_policy_ros.data.convert import convert  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset  # noqa: E402
from diffusion_policy_ros.demonstrations import record_demonstrations  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402
from diffusion_policy_ros.ros.episode_recorder import EpisodeRecorder  # noqa: E402
from diffusion_policy_ros.stopping import STOP_SIGNALS  # noqa: E402

pytestmark = pytest.mark.ros
CAMERAS, STATE = Contract.load("mini_lift"), Contract.load("mini_lift_state")
EXPERT = {"expert": True, "cameras": False, "publish_clock": True}
CLASSES = {
    "PoseStamped": PoseStamped,
    "JointState": JointState,
    "JointTrajectory": JointTrajectory,
}


def start_recording(domain) -> str:
    """Call ~/start until everything has been discovered; what it says then."""

    def begun():
        answer = domain.call("/episode_recorder/start")
        return answer.success and answer.message

    return domain.until(begun, why="recording starts")


def publish_all(domain) -> None:
    """Publishers, silent ones, on every topic of the state contract."""
    for topic, name in STATE.recorded_topics.items():
        domain.node.create_publisher(CLASSES[name.rpartition("/")[2]], topic, 10)


def test_expert_over_dds_becomes_a_dataset(domain, tmp_path):
    """An expert's episode with cameras, recorded live, converts to what is recorded offline."""
    domain.start("sim_robot", expert=True, publish_clock=True, seed=7)
    domain.start("episode_recorder", contract="mini_lift", out=tmp_path / "bags")
    episodes = domain.listen(String, "/sim_robot/episode", LATCHED)
    domain.until(lambda: episodes, why="the first episode is over, and heard of")
    start_recording(domain)
    domain.call("/sim_robot/reset")
    domain.until(lambda: len(episodes) == 2, why="the expert is done")
    stopped = domain.call("/episode_recorder/stop")
    assert stopped.success and "/agentview/image_raw: " in stopped.message

    bag = open_bag(tmp_path / "bags" / "episode_0000")
    assert set(bag.topics) == set(CAMERAS.recorded_topics)
    assert Contract.from_text(bag.metadata["contract"]).hash == CAMERAS.hash
    assert bag.metadata["success"] == "true" and not bag.notes

    # However late a busy machine brings a message, the frame waits for it.
    patient = Contract.from_text(CAMERAS.text.replace("rate_hz: 20", "rate_hz: 20\nsettle_s: 10"))
    convert([bag.path], patient, tmp_path / "live")
    offline = record_demonstrations(CAMERAS, tmp_path / "offline", 1, first_seed=7)
    convert(offline.bags, CAMERAS, tmp_path / "expected")
    recorded, expected = Dataset(tmp_path / "live"), Dataset(tmp_path / "expected")
    assert [e.frames for e in recorded.episodes] == [e.frames for e in expected.episodes]
    ours, theirs = recorded.episode(0), expected.episode(0)
    np.testing.assert_array_equal(ours["action"], theirs["action"])
    for key in CAMERAS.observations:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_refuses_without_publishers(domain, tmp_path):
    """It names every contracted topic that nobody publishes, and one that is of another type."""
    names = {"/eef_pose": TwistStamped, "/gripper/joint_states": JointState}
    for topic, type_ in names.items():
        domain.node.create_publisher(type_, topic, 10)
    domain.start("episode_recorder", contract="mini_lift_state", out=tmp_path / "bags")
    other = "/eef_pose is geometry_msgs/msg/TwistStamped, the contract says"
    said = domain.until(
        lambda: other in (m := domain.call("/episode_recorder/start")).message and m, why=other
    )
    assert not said.success and "\n" not in said.message
    for topic in ("/object_pose", "/gripper_to_object", "/eef_command"):
        assert f"nobody publishes {topic} " in said.message
    assert "/gripper/joint_states" not in said.message
    assert not (tmp_path / "bags").exists()


def test_what_came_while_start_waited_is_not_in_the_episode(domain, tmp_path):
    """It would stand there with the time at which it was read: each time is that of its coming."""
    waiting = {topic: n for topic, n in STATE.recorded_topics.items() if topic != "/eef_command"}
    made = {
        topic: domain.node.create_publisher(CLASSES[name.rpartition("/")[2]], topic, 100)
        for topic, name in waiting.items()
    }
    poses, sent = made["/eef_pose"], []
    domain.start("episode_recorder", contract="mini_lift_state", out=tmp_path / "bags")

    def is_heard() -> bool:
        found = domain.node.get_subscriptions_info_by_topic("/eef_pose")
        return any(i.qos_profile.reliability == ReliabilityPolicy.RELIABLE for i in found)

    domain.until(is_heard, why="the recorder has seen what is offered")

    def pose() -> None:
        message = PoseStamped()
        message.header.stamp = domain.node.get_clock().now().to_msg()
        sent.append(stamp_ns(message))
        poses.publish(message)

    client = domain.node.create_client(Trigger, "/episode_recorder/start")
    domain.until(client.service_is_ready, why="~/start is there")
    started = client.call_async(Trigger.Request())
    domain.until(lambda: pose() or len(sent) == 20, why="poses come while it waits")
    domain.node.create_publisher(CLASSES["JointTrajectory"], "/eef_command", 10)
    domain.until(started.done, why="it starts")
    if not started.result().success:  # the machine is busy, and it has waited long enough
        start_recording(domain)
    pose()
    domain.until(lambda: poses.wait_for_all_acked(Duration(seconds=1)), why="it has them")
    domain.call("/episode_recorder/stop")
    bag = open_bag(tmp_path / "bags" / "episode_0000")
    assert [stamp_ns(m.msg) for m in bag.messages(["/eef_pose"])] == sent[-1:]


def test_what_waits_when_it_is_stopped_is_in_the_episode(domain, tmp_path):
    """A busy machine brings the last frame's messages and the wish to stop at once."""
    given = {"topics": ["/eef_pose"], "out": str(tmp_path / "bags")}
    recorder = EpisodeRecorder(
        context=domain.node.context,
        parameter_overrides=[Parameter(name, value=value) for name, value in given.items()],
    )
    with closing(recorder):
        poses = domain.node.create_publisher(PoseStamped, "/eef_pose", 10)
        domain.until(lambda: recorder.topics.attend() or recorder.topics.types, why="it is seen")
        recorder.start()
        for _ in range(5):
            poses.publish(PoseStamped())
        domain.until(lambda: poses.wait_for_all_acked(Duration(seconds=1)), why="it has them")
        recorder.stop()
    recorder.destroy_node()
    assert len(list(open_bag(tmp_path / "bags" / "episode_0000").messages(["/eef_pose"]))) == 5


def test_stop_and_discard_need_a_recording(domain, tmp_path):
    """Stop, discard and a second start at the wrong moment are refused with the reason."""
    publish_all(domain)
    domain.start("episode_recorder", contract="mini_lift_state", out=tmp_path / "bags")
    for verb in ("stop", "discard"):
        said = domain.call(f"/episode_recorder/{verb}")
        assert not said.success and "nothing is being recorded" in said.message
    start_recording(domain)
    said = domain.call("/episode_recorder/start")
    assert not said.success and "an episode is being recorded" in said.message
    said = domain.call("/episode_recorder/stop")
    assert not said.success and "/eef_pose: NOTHING arrived" in said.message


def test_discards_and_never_overwrites(domain, tmp_path):
    """A discarded episode is gone, a kept one keeps its number, one from before is not touched."""
    (tmp_path / "bags" / "episode_0000").mkdir(parents=True)
    domain.start("sim_robot", **EXPERT, auto_reset=True)
    domain.start("episode_recorder", contract="mini_lift_state", out=tmp_path / "bags")
    start_recording(domain)
    assert domain.call("/episode_recorder/discard").success
    assert [p.name for p in (tmp_path / "bags").iterdir()] == ["episode_0000"]
    assert domain.set("/episode_recorder", "success", False).successful
    assert domain.set("/episode_recorder", "task", "pick the cube").successful
    poses = domain.listen(PoseStamped, "/eef_pose")
    for _ in range(2):
        start_recording(domain)
        poses.clear()
        domain.until(lambda: len(poses) > 10, why="something was recorded")
        assert domain.call("/episode_recorder/stop").success
    names = sorted(p.name for p in (tmp_path / "bags").iterdir())
    assert names == ["episode_0000", "episode_0001", "episode_0002"]
    assert not list((tmp_path / "bags" / "episode_0000").iterdir())
    noted = open_bag(tmp_path / "bags" / "episode_0001").metadata
    assert (noted["success"], noted["task"]) == ("false", "pick the cube")


@pytest.mark.parametrize("number", [signal.SIGKILL, *STOP_SIGNALS])
def test_killed_recordings_convert(domain, tmp_path, number):
    """Killed while messages come in it leaves a bag that converts; asked to end, a whole one."""
    domain.start("sim_robot", **EXPERT, auto_reset=True)
    recorder = domain.start("episode_recorder", contract="mini_lift_state", out=tmp_path / "bags")
    start_recording(domain)
    path = tmp_path / "bags" / "episode_0000"

    def recorded() -> int:
        try:
            return min(count for _, count in open_bag(path).topics.values())
        except UserError:  # nothing whole yet
            return 0

    domain.until(lambda: recorded() > 30, why="messages are in the bag")
    recorder.signal(number)
    code = recorder.wait()
    bag = open_bag(path)
    assert min(count for _, count in bag.topics.values()) >= 25
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL and not (path / "metadata.yaml").exists()
        for file in path.iterdir():  # not as one that is still being recorded
            os.utime(file, (0, 0))
    else:
        assert code == 0 and (path / "metadata.yaml").exists() and not bag.notes
        assert "interrupted; kept" in recorder.output
    report = convert([path], STATE, tmp_path / "dataset")
    assert report.bags[0].status == "kept" and report.frames >= 20


def test_extra_and_latched_topics(domain, tmp_path):
    """Extra topics are recorded beside the contract's; what is published once is in every bag."""
    publish_all(domain)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    domain.node.create_publisher(String, "/calibration", latched).publish(String(data="camera 1"))
    domain.start(
        "episode_recorder",
        contract="mini_lift_state",
        out=tmp_path / "bags",
        extra_topics="[/calibration, /nobody]",
    )
    numbers = itertools.count()

    def record() -> list[str]:
        """What a short episode holds of the latched topic."""
        begun = start_recording(domain)
        said = domain.call("/episode_recorder/stop").message
        assert "/nobody" not in said
        if "/calibration" in begun or "/calibration: NOTHING" in said:  # not heard of yet
            next(numbers)
            return []
        assert begun.endswith(" without /nobody: nobody publishes it yet")
        bag = open_bag(tmp_path / "bags" / f"episode_{next(numbers):04d}")
        return [m.msg.data for m in bag.messages(["/calibration"])]

    domain.until(record, why="the latched message has arrived")
    assert record() == ["camera 1"]


def test_what_holds_is_in_every_episode_and_what_held_before_is_not(domain, tmp_path):
    """A goal of who has gone since, not latched; of a latched gripper's commands the newest."""
    (tmp_path / "goal.yaml").write_text(GOAL)
    node, latched = domain.node, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_publisher(PoseStamped, "/pose", 1)
    gripper = node.create_publisher(String, "/gripper", latched)
    goal = node.create_publisher(PoseStamped, "/goal", 1)
    domain.start(
        "episode_recorder",
        contract=tmp_path / "goal.yaml",
        out=tmp_path / "bags",
        extra_topics="[/gripper]",
    )

    def durability(topic: str) -> list[DurabilityPolicy]:
        found = node.get_subscriptions_info_by_topic(topic)
        return [info.qos_profile.durability for info in found]

    domain.until(
        lambda: (
            durability("/goal") == [DurabilityPolicy.VOLATILE]
            and durability("/gripper") == [DurabilityPolicy.TRANSIENT_LOCAL]
        ),
        why="the recorder has seen what is offered",
    )
    for told in ("open", "close"):
        gripper.publish(String(data=told))
        domain.until(lambda: gripper.wait_for_all_acked(Duration(seconds=1)), why="it is told")
    goal.publish(PoseStamped())
    domain.until(lambda: goal.wait_for_all_acked(Duration(seconds=1)), why="it is told")
    domain.until(lambda: goal.get_subscription_count() == 1, why="it is heard")
    node.destroy_publisher(goal)
    domain.until(lambda: not node.count_publishers("/goal"), why="it is gone")
    start_recording(domain)
    assert "/goal: NOTHING" not in domain.call("/episode_recorder/stop").message
    bag = open_bag(tmp_path / "bags" / "episode_0000")
    assert bag.topics["/goal"][1] == 1
    assert [m.msg.data for m in bag.messages(["/gripper"])] == ["close"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "episode_recorder: no contract; give -p contract:=FILE"),
        ({"contract": "nowhere"}, "nowhere: no such contract"),
        ({"contract": "mini_lift", "out": 5}, "parameter out"),
        ({"contract": "mini_lift", "extra_topics": "/a"}, "parameter extra_topics"),
    ],
)
def test_mistakes_of_parameters_are_one_line(domain, parameters, said):
    """A mistake in the parameters is one line of what, where and cure, and exit code 2."""
    recorder = domain.start("episode_recorder", **parameters)
    assert recorder.wait() == 2
    errors = [line for line in recorder.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert "Traceback" not in recorder.output
