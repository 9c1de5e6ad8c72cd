"""A simulator as a ROS 2 robot: `sim_robot --ros-args -p sim:=mini_lift -p auto_reset:=true`.

Publishes what the simulator observes, at its own rate, and plays the policy's chunks. Its clock is
the system's, somebody's `/clock`, or its own, which it then publishes (`publish_clock`), faster or
slower than real time.

Topics: the simulator's, its command's where the expert leads, `~/episode` with one line of JSON
an episode. Service `~/reset` begins the episode of parameter `seed`. Between two episodes it is
silent for five frames: the robot jumps, and no window may span that.

With `follow:=/action_player` it is told what to do by an action player, as a robot's controller
is. A reset moves the robot by hand: call the player's `~/hand_over` before it, `~/resume` after.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from rosgraph_msgs.msg import Clock as ClockMessage
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from diffusion_policy_ros.atomic import check_file
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError, refusal
from diffusion_policy_ros.report.gif import RolloutGif
from diffusion_policy_ros.ros.chunks import chunk_of, time_msg
from diffusion_policy_ros.ros.message_types import message_class
from diffusion_policy_ros.ros.parameters import check_overrides, declare
from diffusion_policy_ros.ros.processes import run
from diffusion_policy_ros.ros.set_points import FollowedPlayer
from diffusion_policy_ros.sim.grid import FrameGrid
from diffusion_policy_ros.sim.simulator import FIRST_EVALUATION_SEED, SetPoint, default_contract
from diffusion_policy_ros.sim.stamped import IMAGE, TRAJECTORY, Stamped, ros_array
from diffusion_policy_ros.simulated_robot import EpisodeResult, SimulatedRobot, Step

SILENT_PERIODS = 5
CLOCK_START_NS = 1_000_000_000  # zero means "no time yet" to ROS
CLOCK_PARTS = (10, 5, 2, 1)
CLOCK_HZ = 100.0
ACKNOWLEDGED_S = 2.0
EPISODES_KEPT = 1000  # for who subscribes late
GIF_SIZE, GIF_HZ = 240, 10.0


@dataclass(frozen=True)
class Settings:
    """The node's parameters that do not change; `declare_settings` has their descriptions."""

    sim: str
    contract: str
    action_topic: str
    follow: str
    cameras: bool
    expert: bool
    publish_clock: bool
    speed: float
    auto_reset: bool
    episodes: int
    first_seed: int
    results: str
    gif: str
    gif_episodes: int


def declare_settings(node: Node) -> Settings:
    """Declare the node's parameters."""
    add = functools.partial(declare, node)
    add("seed", -1, "episode that ~/reset begins; -1: the next", low=-1, high=2**31 - 1, live=True)
    return Settings(
        sim=add("sim", "mini_lift", "the simulator: a shipped one, or an entry point"),
        contract=add("contract", "", "contract (name or file); empty: the simulator's own"),
        action_topic=add("action_topic", "policy_node/action_chunk", "chunks to play"),
        follow=add(
            "follow", "", "an action player, as /action_player: its set-points in place of chunks"
        ),
        cameras=add("cameras", True, "render and publish cameras"),
        expert=add("expert", False, "let the scripted expert lead and publish its commands"),
        publish_clock=add("publish_clock", False, "be the source of /clock"),
        speed=add("speed", 1.0, "simulated s in one real s", low=0.01, high=50.0),
        auto_reset=add("auto_reset", False, "begin the next episode at success or the last step"),
        episodes=add("episodes", 0, "end after so many episodes; 0: never", low=0, high=10**6),
        first_seed=add(
            "first_seed", -1, "-1: 10000, or 0 where the expert leads", low=-1, high=10**9
        ),
        results=add("results", "", "append each episode's result to this file"),
        gif=add("gif", "", "write the first episodes to this file, the chunk drawn in"),
        gif_episodes=add("gif_episodes", 1, "how many of them", low=1, high=100),
    )


class SimRobot(Node):
    """A simulator's clock, topics and service; what it does is in `simulated_robot.py`.

    Attributes:
        finished: done when the wanted number of episodes is over.

    Raises:
        UserError: parameters that do not fit, or the cameras cannot be rendered.
    """

    def __init__(self) -> None:
        super().__init__("sim_robot")
        settings = self._settings = declare_settings(self)
        check_overrides(self)
        if settings.speed != 1.0 and not settings.publish_clock:
            cure = "set publish_clock:=true, or leave the speed at 1"
            raise UserError(f"speed {settings.speed:g} without a clock", self.get_name(), cure)
        for name in ("results", "gif"):
            if path := getattr(settings, name):
                check_file(Path(path), f"parameter {name}")
        contract = Contract.load(
            settings.contract or default_contract(settings.sim, settings.cameras)
        )
        how = (settings.cameras, settings.expert, settings.sim)
        self._robot, self._period_ns = SimulatedRobot(contract, *how), contract.period_ns
        self.finished: Future[bool] = Future()
        self._episodes = 0
        self._gif = self._begin_gif() if settings.gif else None
        first = 0 if settings.expert else FIRST_EVALUATION_SEED
        self._next_seed: int | None = first if settings.first_seed < 0 else settings.first_seed
        self._last_ns: int | None = None
        self._warm_up()
        self._connect()
        self._start_clock()
        self.get_logger().info(
            f"simulator {settings.sim}, contract {contract.name}: first seed {self._next_seed}"
        )

    def close(self) -> None:
        """Free what rendering took, and write what there is of the GIF."""
        self._save_gif()
        self._robot.close()

    def _warm_up(self) -> None:
        """Make what rendering needs now: it takes a second, which no frame has to spare."""
        assert self._next_seed is not None
        self._robot.simulator.reset(self._next_seed)
        if self._gif is not None:
            self._robot.simulator.render(*self._view)

    def _connect(self) -> None:
        """Make publishers, the subscription and the service."""
        simulator = self._robot.simulator
        offered = {topic: name for topic, name in simulator.topics.items() if self._offers(name)}
        if self._settings.expert:
            offered[simulator.command_topic] = TRAJECTORY
        self._outputs: dict[str, Publisher] = {
            topic: self.create_publisher(message_class(name), topic, 10)
            for topic, name in offered.items()
        }
        latched = QoSProfile(depth=EPISODES_KEPT, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._episode = self.create_publisher(String, "~/episode", latched)
        if self._settings.follow:
            self._player = FollowedPlayer(
                self, self._settings.follow, self._robot.contract, self._on_set_point
            )
        else:
            topic = self._settings.action_topic
            self.create_subscription(JointTrajectory, topic, self._on_chunk, 10)
        self.create_service(Trigger, "~/reset", self._on_reset)

    def _offers(self, type_name: str) -> bool:
        return self._settings.cameras or type_name != IMAGE

    # ------------------------------------------------------------------------------------ time

    def _start_clock(self) -> None:
        """Tick: by the own clock, somebody's simulated time, or the system's at a steady pace."""
        if not self._settings.publish_clock:
            self._follow_clock()
            return
        fine = CLOCK_HZ * self._period_ns / 1e9 / self._settings.speed
        self._clock_step_ns = self._period_ns // next(
            n for n in CLOCK_PARTS if n <= fine or n == 1
        )
        self._clock_ns = CLOCK_START_NS
        self._clock_topic = self.create_publisher(ClockMessage, "/clock", 10)
        wall_s = self._clock_step_ns / 1e9 / self._settings.speed
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(wall_s, self._on_clock, clock=steady)

    def _follow_clock(self) -> None:
        if self.get_parameter("use_sim_time").value:
            self._grid = FrameGrid(self._period_ns)
            self.create_timer(1 / CLOCK_HZ, self._on_timer)
        else:
            self._grid = FrameGrid(self._period_ns, early_ns=self._period_ns // 2)
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self.create_timer(self._period_ns / 1e9, self._on_timer, clock=steady)

    def _on_timer(self) -> None:
        for stamp_ns in self._grid.stamps(self.get_clock().now().nanoseconds):
            self._frame(stamp_ns)

    def _on_clock(self) -> None:
        self._clock_topic.publish(ClockMessage(clock=time_msg(self._clock_ns)))
        if (self._clock_ns - CLOCK_START_NS) % self._period_ns < self._clock_step_ns:
            self._frame(self._clock_ns)
        self._clock_ns += self._clock_step_ns

    # ---------------------------------------------------------------------------------- frames

    def _frame(self, stamp_ns: int) -> None:
        """Publish what is observed now, then execute what is due now."""
        if self._last_ns is not None and stamp_ns < self._last_ns:
            self.get_logger().warning("time ran backwards: the episode begins anew")
            self._next_seed, self._last_ns = self._robot.seed, None
        if self._next_seed is not None and not self._begun(self._next_seed, stamp_ns):
            return
        self._last_ns = stamp_ns
        # Cameras last: when the anchor arrives, the rest is there and the frame need not wait.
        how = (stamp_ns, message_class, ros_array)
        self._publish(*reversed(self._robot.messages(*how)))
        step = self._robot.advance(stamp_ns)
        if step.command is not None:
            self._publish(self._robot.command_message(step.command, *how))
        self._picture(step, stamp_ns)
        if step.result is not None:
            self._over(step.result)

    def _begun(self, seed: int, stamp_ns: int) -> bool:
        """Begin the next episode once the silence before it has passed."""
        if (
            self._last_ns is not None
            and stamp_ns - self._last_ns < SILENT_PERIODS * self._period_ns
        ):
            return False
        cut_short = self._robot.reset(seed, stamp_ns)
        self._next_seed = None
        if cut_short is not None:
            self._report(cut_short)
        return True

    def _publish(self, *stamped: Stamped) -> None:
        for topic, _, message in stamped:
            if topic in self._outputs:
                self._outputs[topic].publish(message)

    def _on_chunk(self, message: JointTrajectory) -> None:
        try:
            chunk = chunk_of(message, self._robot.contract)
        except UserError as error:
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
            return
        reason = self._robot.offer(chunk)
        if reason:
            self.get_logger().warning(f"chunk not played: {reason}", throttle_duration_sec=1.0)

    def _on_set_point(self, told: SetPoint) -> None:
        if self._robot.seed is not None:
            self._robot.follow(told)

    # -------------------------------------------------------------------------------- episodes

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        wanted = self.get_parameter("seed").value
        before = self._robot.seed if self._next_seed is None else self._next_seed - 1
        self._next_seed = wanted if wanted >= 0 else (-1 if before is None else before) + 1
        response.success, response.message = True, f"the episode of seed {self._next_seed} begins"
        return response

    def _over(self, result: EpisodeResult) -> None:
        self._report(result)
        self._episodes += 1
        if self._episodes == self._settings.gif_episodes:
            self._save_gif()
        if self._episodes == self._settings.episodes:
            self._episode.wait_for_all_acked(Duration(seconds=ACKNOWLEDGED_S))
            self.finished.set_result(True)
        elif self._settings.auto_reset:
            self._next_seed = result.seed + 1

    def _report(self, result: EpisodeResult) -> None:
        line = result.to_json()
        self._episode.publish(String(data=line))
        self.get_logger().info(f"episode {line}")
        if self._settings.results:
            with (
                self._told_of_refusals(),
                Path(self._settings.results).open("a", encoding="utf-8") as file,
            ):
                file.write(line + "\n")

    @contextmanager
    def _told_of_refusals(self) -> Iterator[None]:
        """A full disk ends no robot."""
        try:
            yield
        except OSError as error:
            self.get_logger().error(str(refusal(error)))

    # ------------------------------------------------------------------------------------- GIF

    def _begin_gif(self) -> RolloutGif:
        cameras = self._robot.simulator.cameras
        if not cameras:
            what = f"{self._settings.sim} has no pictures"
            raise UserError(what, "parameter gif", "leave it empty")
        self._view = (cameras[0], GIF_SIZE, GIF_SIZE)
        self._gif_every = max(1, round(self._robot.contract.rate_hz / GIF_HZ))
        return RolloutGif(self._settings.gif, round(1e-6 * self._gif_every * self._period_ns))

    def _picture(self, step: Step, stamp_ns: int) -> None:
        """Ten pictures a second of the first episodes."""
        simulator = self._robot.simulator
        if self._gif is None or simulator.steps % self._gif_every or self._robot.waiting:
            return
        points = simulator.project(self._robot.planned(stamp_ns), *self._view)
        state = "success" if simulator.success else step.holding
        seconds = simulator.steps * self._period_ns / 1e9
        self._gif.add(simulator.render(*self._view), points, f"{seconds:4.1f} s  {state}".strip())

    def _save_gif(self) -> None:
        gif, self._gif = self._gif, None
        with self._told_of_refusals():
            if gif is not None and gif.save():
                self.get_logger().info(f"wrote {gif.path}")


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted or its episodes are over."""
    return run(SimRobot, declare_settings, args)


if __name__ == "__main__":
    sys.exit(main())
