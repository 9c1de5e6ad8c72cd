"""The simulated robot as a node, over DDS."""

import json
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from geometry_msgs.msg import PoseStamped  # noqa: E402
from live import LATCHED, START_S  # noqa: E402
from rclpy.duration import Duration  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.observe.codecs import decode, stamp_ns  # noqa: E402
from diffusion_policy_ros.ros.chunks import chunk_msg, hold_msg, time_msg  # noqa: E402
from diffusion_policy_ros.runtime.tail import Chunk  # noqa: E402
from diffusion_policy_ros.sim.arm import PERIOD_NS, SimArm  # noqa: E402

pytestmark = pytest.mark.ros
STATE, CAMERAS = Contract.load("mini_lift_state"), Contract.load("mini_lift")
ACTIONS = "/policy_node/action_chunk"


class Driver:
    """A policy's side: hears poses, sends chunks."""

    def __init__(self, domain) -> None:
        self.domain = domain
        self.poses = domain.listen(PoseStamped, "/eef_pose")
        self.episodes = domain.listen(String, "/sim_robot/episode", LATCHED)
        self.publisher = domain.node.create_publisher(JointTrajectory, ACTIONS, 10)
        domain.until(lambda: self.poses, why="poses come")
        domain.until(self.publisher.get_subscription_count, why="somebody plays chunks")

    def send(self, stamp: int, actions: np.ndarray) -> None:
        self.publish(chunk_msg(Chunk(stamp, actions, PERIOD_NS), STATE))

    def publish(self, message: JointTrajectory) -> None:
        self.publisher.publish(message)

    def newest(self) -> int:
        return stamp_ns(self.poses[-1])

    def x(self) -> float:
        return self.poses[-1].pose.position.x

    def wait_s(self, seconds: float) -> None:
        """Wait by the robot's clock."""
        end = self.newest() + round(seconds * 1e9)
        self.domain.until(lambda: self.newest() >= end, why="the robot's time passes")

    def results(self) -> list[dict]:
        return [json.loads(message.data) for message in self.episodes]


class SteppedDriver(Driver):
    """Whose robot's time goes on when it says so: nothing depends on how busy the machine is."""

    def __init__(self, domain) -> None:
        self.now_ns, self._told = 1_000 * 10**9, domain.node.create_publisher(Clock, "/clock", 10)
        timer = domain.node.create_timer(0.05, self._tell)  # /clock may lose messages
        super().__init__(domain)
        domain.node.destroy_timer(timer)

    def _tell(self) -> None:
        self._told.publish(Clock(clock=time_msg(self.now_ns)))

    def publish(self, message: JointTrajectory) -> None:
        """Send a chunk, and wait until it is there."""
        self.publisher.publish(message)
        assert self.publisher.wait_for_all_acked(Duration(seconds=START_S))

    def wait_s(self, seconds: float) -> None:
        """Frame after frame."""
        for _ in range(round(seconds * 1e9) // PERIOD_NS):
            self.now_ns += PERIOD_NS
            self._until(lambda: self.newest() >= self.now_ns)

    def pass_silence(self) -> None:
        """Until there is a frame again."""
        seen = len(self.poses)

        def go_on() -> None:
            self.now_ns += PERIOD_NS

        self._until(lambda: len(self.poses) > seen, go_on)

    def _until(self, done: Callable[[], bool], go_on: Callable[[], None] = lambda: None) -> None:
        self._tell()

        def again() -> None:
            go_on()
            self._tell()

        timer = self.domain.node.create_timer(0.2, again)
        self.domain.until(done, why=f"a frame at {self.now_ns}")
        self.domain.node.destroy_timer(timer)


def drift(n: int, x: float) -> np.ndarray:
    """`n` actions along x."""
    return np.tile([x, 0, 0, 0, 0, 0, -1.0], (n, 1))


def test_plays_holds_and_resets(domain):
    """Deltas are integrated by time, an empty chunk holds, a chunk that ages out holds."""
    domain.start("sim_robot", cameras=False, use_sim_time=True, seed=4)
    driver = SteppedDriver(domain)
    begin, start = driver.x(), driver.newest()
    driver.wait_s(0.1)
    driver.send(start, drift(12, 0.004))
    driver.wait_s(1.2)
    # It came late by three periods, and what is late is dropped.
    assert (driver.x() - begin) / 0.004 == pytest.approx(9, abs=0.15)

    driver.send(driver.newest(), drift(100, 0.001))
    driver.wait_s(0.3)
    driver.publish(hold_msg(driver.newest(), STATE))
    driver.wait_s(0.3)
    held = driver.x()
    driver.wait_s(0.3)
    assert driver.x() == pytest.approx(held, abs=5e-4)

    driver.send(driver.newest(), drift(100, 0.0005))
    driver.wait_s(1.5)
    aged = driver.x()
    assert aged > held + 0.004
    driver.wait_s(0.5)
    assert driver.x() == pytest.approx(aged, abs=5e-4)

    stale = driver.newest()
    assert domain.call("/sim_robot/reset").message == "the episode of seed 4 begins"
    driver.pass_silence()
    domain.until(driver.results, why="the result of what was cut short")
    driver.send(stale, drift(100, 0.01))
    expected = SimArm(render=False).reset(4)["robot0_eef_pos"]
    driver.wait_s(0.4)
    streams = STATE.observations
    np.testing.assert_array_equal(decode(streams["robot0_eef_pos"], driver.poses[-1]), expected)
    result = driver.results()[0]
    assert (result["seed"], result["ended"], result["success"]) == (10000, "reset", False)
    assert result["holds"] > 5


def test_silence_between_episodes(domain):
    """A reset shows as a gap of the stamps of more than one and a half frames, and only there."""
    domain.start("sim_robot", cameras=False, publish_clock=True, speed=2.0)
    driver = Driver(domain)
    driver.wait_s(0.3)
    domain.call("/sim_robot/reset")
    driver.wait_s(0.6)
    stamps = [stamp_ns(message) for message in driver.poses]
    steps = np.diff(stamps) / PERIOD_NS
    assert sorted(set(steps)) == [1.0, 5.0]
    assert list(steps).count(5.0) == 1


@pytest.mark.parametrize("speed", [5.0, 0.5])
def test_is_the_clock_source(domain, speed):
    """It publishes /clock ahead of its frames, at the speed asked for, with exact stamps."""
    domain.start("sim_robot", cameras=False, publish_clock=True, speed=speed)
    clock: list[int] = []
    arrivals: list[int] = []

    def on_clock(message: Clock) -> None:
        clock.append(message.clock.sec * 10**9 + message.clock.nanosec)
        arrivals.append(domain.node.get_clock().now().nanoseconds)

    domain.node.create_subscription(Clock, "/clock", on_clock, 100)
    poses = domain.listen(PoseStamped, "/eef_pose")
    domain.until(lambda: poses, why="poses come")
    wanted = round(1.5 * speed / 0.05)
    domain.until(lambda: len(poses) > wanted, why="the robot's time passes")
    assert all(0 < b - a <= PERIOD_NS for a, b in zip(clock, clock[1:], strict=False))
    assert {stamp_ns(message) % PERIOD_NS for message in poses} == {0}
    # A busy machine is late, never early: messages are delayed, but not all of them.
    told, came = np.array(clock), np.array(arrivals)
    first, second = np.array_split(came - told / speed, 2)
    assert second.min() > first.min() - 0.05e9
    pace = (told[20:] - told[:-20]) / (came[20:] - came[:-20])
    assert pace.max() > 0.5 * speed


def test_follows_somebodys_clock(domain):
    """With use_sim_time it stands still until /clock moves, and stamps by it."""
    robot = domain.start("sim_robot", cameras=False, use_sim_time=True)
    poses = domain.listen(PoseStamped, "/eef_pose")
    clock = domain.node.create_publisher(Clock, "/clock", 10)
    domain.until(lambda: "first seed" in robot.output, why="it starts")
    domain.until(clock.get_subscription_count, why="it listens to /clock")
    assert not poses
    now = iter(range(500_000_000_000, 600_000_000_000, 10_000_000))

    def tick() -> bool:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(next(now), 10**9)
        clock.publish(message)
        return len(poses) >= 20

    domain.until(tick, why="frames come")
    stamps = np.array([stamp_ns(message) for message in poses])
    assert stamps[0] >= 500 * 10**9 and (np.diff(stamps) > 0.7 * PERIOD_NS).all()


def test_real_time_by_the_systems_clock(domain):
    """Without a simulated clock frames come at 20 Hz, stamped with the system's time."""
    domain.start("sim_robot", cameras=False)
    poses = domain.listen(PoseStamped, "/eef_pose")
    domain.until(lambda: len(poses) > 40, why="poses come")
    now = domain.node.get_clock().now().nanoseconds
    stamps = np.array([stamp_ns(message) for message in poses])
    assert 0 <= now - stamps[-1] < 60e9
    assert np.median(np.diff(stamps)) == pytest.approx(PERIOD_NS, abs=2e6)


def test_observations_are_the_simulators(domain):
    """Both cameras and every vector of a seed's first frame arrive as `SimArm` gives them."""
    domain.start("sim_robot", first_seed=12, publish_clock=True)
    heard = {key: domain.listen(Image, CAMERAS.observations[key].topic) for key in IMAGES}
    domain.until(lambda: all(heard.values()), why="images come")
    with SimArm() as arm:
        expected = arm.reset(12)
    for key, messages in heard.items():
        np.testing.assert_array_equal(
            decode(CAMERAS.observations[key], messages[0]), expected[key]
        )


IMAGES = ("agentview_image", "robot0_eye_in_hand_image")


def test_episodes_follow_each_other_and_end(domain, tmp_path):
    """Led by the expert it runs the episodes asked for, says how each went, and exits."""
    gif, results = tmp_path / "rollout.gif", tmp_path / "results.jsonl"
    robot = domain.start(
        "sim_robot",
        expert=True,
        auto_reset=True,
        episodes=3,
        first_seed=20,
        publish_clock=True,
        speed=4.0,
        cameras=False,
        gif=gif,
        results=results,
    )
    assert robot.wait() == 0
    told = [json.loads(line) for line in results.read_text().splitlines()]
    assert [episode["seed"] for episode in told] == [20, 21, 22]
    assert all(e["success"] and e["seconds"] == pytest.approx(e["steps"] / 20) for e in told)
    assert gif.read_bytes()[:3] == b"GIF"


def test_a_full_disk_ends_no_robot(domain):
    """What cannot be written is told, and the episodes go on."""
    how = {"results": "/dev/full", "episodes": 2, "auto_reset": True, "expert": True}
    robot = domain.start("sim_robot", cameras=False, publish_clock=True, speed=20.0, **how)
    assert robot.wait() == 0
    assert robot.output.count("no space left on device") == 2


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"speed": 2.0}, "speed 2 without a clock; set publish_clock:=true"),
        ({"contract": "nowhere"}, "nowhere: no such contract"),
        ({"contract": "example_arm"}, "a field of the action names no state"),
        ({"speed": 99.0, "publish_clock": True}, "parameter speed"),
        ({"results": "/"}, "/: is a folder; give parameter results a file's name"),
        ({"gif": "/dev/null/a.gif"}, "cannot be written (File exists)"),
        ({"sim": "mini_lfit"}, "no simulator 'mini_lfit'; did you mean 'mini_lift'?"),
    ],
)
def test_mistakes_are_one_line(domain, parameters, said):
    """A mistake in the parameters is one line of what, where and cure, and exit code 2."""
    robot = domain.start("sim_robot", **parameters)
    assert robot.wait() == 2
    errors = [line for line in robot.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert "Traceback" not in robot.output


def test_it_follows_an_action_player(domain):
    """As a robot's controller would: chunk to player, set-points to the arm, pose to both."""
    domain.start("sim_robot", cameras=False, follow="/action_player")
    domain.start("action_player", contract="mini_lift_state", velocity=0.2, armed=True)
    driver = Driver(domain)
    told = domain.listen(PoseStamped, "/action_player/pose")
    begin = driver.x()

    def moved():
        driver.send(driver.newest(), drift(8, 0.005))
        seen = len(driver.poses)
        domain.until(lambda: len(driver.poses) >= seen + 4, why="the arm goes on")
        return driver.x() > begin + 0.04

    domain.until(moved, why="the arm is where the chunks lead")
    far = max(pose.pose.position.x for pose in told) + 0.01
    assert driver.x() < far, "no farther than the player says"
