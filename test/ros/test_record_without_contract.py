"""First contact: a recording without a contract, a draft of one, a dataset; what a recorder says
of streams that die and of two who command.
"""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from geometry_msgs.msg import PoseStamped, TwistStamped  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from diffusion_policy_ros.cli.main import main  # noqa: E402
from diffusion_policy_ros.data.bags import message_types, open_bag, serialize  # noqa: E402
from diffusion_policy_ros.ros.stand_in import stand_in  # noqa: E402

pytestmark = pytest.mark.ros
TF = "tf2_msgs/msg/TFMessage"
CONTRACT = """
name: watched
rate_hz: 10
anchor: image
observations:
  image: {topic: /camera/image_raw, type: sensor_msgs/msg/Image, shape: [64, 64, 3], resize: none}
  tool: {topic: /tool_pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields: [{name: way, kind: twist}]
  record:
    - {topic: /arm/cmd_vel, type: geometry_msgs/msg/TwistStamped, field: twist.linear}
    - {topic: /arm/cmd_vel, type: geometry_msgs/msg/TwistStamped, field: twist.angular}
"""


class Robot:
    """A camera, a pose, a command and tf at 20 Hz.

    Attributes:
        count: of ticks.
        silent: topics that are published no more.
    """

    def __init__(self, domain):
        self.domain, self.count, self.silent = domain, 0, set()
        make = domain.node.create_publisher
        self._topics = {
            "/camera/image_raw": (make(Image, "/camera/image_raw", 10), self._image),
            "/tool_pose": (make(PoseStamped, "/tool_pose", 10), self._pose),
            "/arm/cmd_vel": (make(TwistStamped, "/arm/cmd_vel", 10), TwistStamped),
        }
        # A type that is not installed with the wheels, and one of which nobody knows anything.
        self._tf = make(stand_in(TF), "/tf", 10)
        self._thing = make(stand_in("nowhere_msgs/msg/Thing"), "/thing", 10)
        domain.node.create_timer(0.05, self._tick)

    def _image(self):
        data = np.full(64 * 64 * 3, self.count % 256, np.uint8)
        return Image(height=64, width=64, step=192, encoding="rgb8", data=data.tobytes())

    def _pose(self):
        message = PoseStamped()
        message.header.frame_id = "base_link"
        message.pose.position.x = 0.01 * self.count
        message.pose.orientation.w = 1.0
        return message

    def _tick(self):
        self.count += 1
        stamp = self.domain.node.get_clock().now().to_msg()
        for topic, (publisher, make) in self._topics.items():
            if topic not in self.silent:
                message = make()
                message.header.stamp = stamp
                publisher.publish(message)
        self._tf.publish(serialize(TF, message_types(TF)(transforms=[])))
        self._thing.publish(b"\0\1\0\0\0\0\0\0")

    def go(self, ticks):
        """So many more."""
        count = self.count + ticks
        self.domain.until(lambda: self.count >= count, why=f"{ticks} ticks")


@pytest.fixture
def robot(domain):
    """It publishes."""
    return Robot(domain)


def record(domain, robot, between=lambda: None):
    """Start, some ticks, whatever comes between, stop; both answers."""
    began = domain.until(
        lambda: (a := domain.call("/episode_recorder/start")).success and a, why="it starts"
    )
    robot.go(30)
    between()
    stopped = domain.call("/episode_recorder/stop")
    robot.silent = set()
    return began.message, stopped


def test_all_that_is_there_becomes_a_draft_that_passes_and_a_dataset(domain, robot, tmp_path):
    """Also a type that is not installed; one that nobody knows is named, and nothing is lost."""
    domain.start("episode_recorder", all=True, out=tmp_path / "bags")
    began, said = record(domain, robot)
    assert "without /thing (nowhere_msgs/msg/Thing: this message type is not installed" in began
    assert said.success, said.message
    bag = open_bag(tmp_path / "bags" / "episode_0000")
    assert {"/camera/image_raw", "/tool_pose", "/arm/cmd_vel", "/tf"} <= bag.topics.keys()
    assert not {"/thing", "/rosout", "/parameter_events"} & bag.topics.keys()
    assert bag.topics["/tf"][0] == TF and bag.topics["/tf"][1] > 20
    draft = str(tmp_path / "arm.yaml")
    assert main(["inspect", str(bag.path), "--draft", draft]) == 0
    assert main(["contract", "check", draft]) == 0
    words = ["convert", str(bag.path), "--contract", draft, "--out", str(tmp_path / "data")]
    assert main(words) == 0


def test_named_topics_must_be_there(domain, robot, tmp_path):
    """Of whatever type; what is not named is not recorded."""
    topics = "[/tool_pose, /later]"
    domain.start("episode_recorder", topics=topics, out=tmp_path / "bags")
    said = domain.call("/episode_recorder/start")
    assert not said.success and "nobody publishes /later" in said.message
    robot.domain.node.create_publisher(PoseStamped, "/later", 10)
    _, said = record(domain, robot)
    assert "/later: NOTHING arrived" in said.message
    assert set(open_bag(tmp_path / "bags" / "episode_0000").topics) == {"/tool_pose", "/later"}


def test_a_camera_that_dies_and_a_second_commander_are_no_success(domain, robot, tmp_path, capsys):
    """The recorder says so; of who commanded, the bag tells inspect and convert."""
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    domain.start("episode_recorder", contract=tmp_path / "contract.yaml", out=tmp_path / "bags")
    assert record(domain, robot)[1].success

    def dies(*topics):
        robot.silent = set(topics)
        robot.go(40)

    _, said = record(domain, robot, lambda: dies("/camera/image_raw", "/arm/cmd_vel"))
    assert not said.success and said.message.count("SILENT for the last") == 2
    assert "kept, but not whole; /camera/image_raw DIED; " in said.message
    _, said = record(domain, robot, lambda: dies("/arm/cmd_vel"))  # nobody has to command on
    assert said.success and said.message.count("SILENT for the last") == 1
    second = domain.another("second")
    second.create_publisher(TwistStamped, "/arm/cmd_vel", 10)
    deadline = time.monotonic() + 60  # discovered when it is
    while "2 nodes publish it: second, test; end all but one" not in said.message:
        assert time.monotonic() < deadline, said.message
        _, said = record(domain, robot)
    assert not said.success and "/arm/cmd_vel: 2 nodes" in said.message
    bag = max((tmp_path / "bags").iterdir())
    assert main(["inspect", str(bag)]) == 0
    assert "noted by its recorder: /arm/cmd_vel: 2 nodes publish it" in capsys.readouterr().out
    words = ["convert", str(bag), "--keep-idle", "--out", str(tmp_path / "data")]
    assert main(words) == 0
    assert "noted by its recorder: /arm/cmd_vel: 2 nodes publish it" in capsys.readouterr().out


class Terminal:
    """`diffusion-policy record` at a terminal of its own.

    Attributes:
        shown: all that it has written.
    """

    def __init__(self, domain, *words):
        self._fd, end = pty.openpty()
        self.shown = ""
        command = [sys.executable, "-m", "diffusion_policy_ros.cli.main", "record", *words]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain.domain)}
        self._process = subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, env=environment
        )
        os.close(end)
        self.domain = domain
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError):  # it has ended
            while data := os.read(self._fd, 4096):
                self.shown += data.decode(errors="replace")

    def until_hears(self, topic):
        """Wait for its messages: before that nobody may be known to publish it."""
        counted = re.compile(rf"{topic} +[1-9]")
        self.domain.until(lambda: counted.search(self.shown), 60, lambda: self.shown[-2000:])

    def press(self, key, until):
        """A key, and what is written from then on up to something."""
        before = len(self.shown)
        os.write(self._fd, key.encode())
        self.domain.until(lambda: until in self.shown[before:], 60, lambda: self.shown[-2000:])
        return self.shown[before:]

    def interrupt(self):
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def wait(self):
        """Its exit code."""
        self.domain.until(lambda: self._process.poll() is not None, 60, "it ends")
        return self._process.returncode


def test_a_terminal_records_keeps_labels_and_discards_by_keys(domain, robot, tmp_path):
    """Space, f, d and q; counts, rates and what is silent are seen live."""
    terminal = Terminal(domain, "--out", str(tmp_path / "bags"))
    terminal.until_hears("/tool_pose")
    for key, told in ((" ", "kept /"), ("f", "kept /"), ("d", "discarded /")):
        terminal.press(" ", "recording /")
        robot.go(10)
        terminal.press(key, told)
    seen = terminal.press("", "kept 1 as success, 1 as failure; discarded 1")
    assert "/thing cannot be recorded" in seen + terminal.shown
    robot.silent = {"/tool_pose"}
    terminal.press("", "SILENT")
    terminal.press(" ", "recording /")
    robot.go(5)
    terminal.press("q", "next: diffusion-policy inspect")
    assert terminal.wait() == 0 and "kept what came: /" in terminal.shown
    bags = [open_bag(tmp_path / "bags" / f"episode_000{i}") for i in range(3)]
    assert [bag.metadata.get("success") for bag in bags] == ["true", "false", None]
    assert all(bag.topics["/camera/image_raw"][1] > 3 and not bag.notes for bag in bags)


def test_an_interruption_keeps_what_is_being_recorded(domain, robot, tmp_path):
    """Ctrl-C, whatever it interrupts: a whole bag, and the terminal as it was."""
    terminal = Terminal(domain, "--topics", "/tool_pose", "--out", str(tmp_path / "bags"))
    terminal.until_hears("/tool_pose")
    terminal.press(" ", "recording /")
    robot.go(10)
    terminal.interrupt()
    assert terminal.wait() == 130 and "Traceback" not in terminal.shown, terminal.shown[-3000:]
    bag = open_bag(tmp_path / "bags" / "episode_0000")
    assert bag.topics["/tool_pose"][1] > 5 and not bag.notes


def test_keys_are_of_their_own_terminal(domain, robot, tmp_path):
    """Of two people who record in one domain, each begins and keeps his own episodes."""
    left, right = (Terminal(domain, "--out", str(tmp_path / side)) for side in ("left", "right"))
    for terminal, side in ((left, "left"), (right, "right")):
        terminal.until_hears("/tool_pose")
        terminal.press(" ", f"recording {tmp_path / side}")
        robot.go(5)
        terminal.press(" ", f"kept {tmp_path / side}")
        terminal.press("q", "next: diffusion-policy inspect")
        assert terminal.wait() == 0 and len([*(tmp_path / side).iterdir()]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--contract", "nowhere"], "nowhere: no such contract"),
        (["--topics", "tool pose"], "'tool pose': Invalid topic name"),
        (["--extra-topics", "/arm//tool"], "'/arm//tool': Invalid topic name"),
    ],
)
def test_record_says_what_is_wrong_in_one_line(tmp_path, capsys, words, said):
    """Before a terminal is touched."""
    assert main(["record", *words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
