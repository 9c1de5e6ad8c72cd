"""All that connects a policy with its robot: subscriptions, chunk publisher, services, timers.

It lives from configure to cleanup; between `start` and `stop` the robot is told what to do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockType, JumpThreshold, ROSClock, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.ros.chunks import ChunkBytes, hold_msg
from diffusion_policy_ros.ros.planned_path import path_msg
from diffusion_policy_ros.ros.qos import publishers
from diffusion_policy_ros.ros.streams import Streams
from diffusion_policy_ros.runtime.playback import Chunk
from diffusion_policy_ros.runtime.runner import Sampling
from diffusion_policy_ros.runtime.supervisor import Supervisor
from diffusion_policy_ros.runtime.trace import Trace

CHUNK_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
SILENT_S = 2.0
"""How long a topic may be silent before its publishers are looked at; discovery takes a second."""
CLOCK_STANDS_S = 1.0
"""Under simulated time: real time without a frame after which its clock stands still, s."""


class RobotLink:
    """Topics, services and timers around a supervisor.

    Args:
        node: has them.
        engine: samples the policy, whose contract names the topics.
        sampling: how.
        on_change: called, on any thread, when holding begins or ends.
        seed: of the noise; None draws one.
        trace: file for the times of every chunk; empty: none.

    Attributes:
        pilot: decides what the robot is told.
        problems: topic → what is wrong with its publishers.
        trace: writes that file.

    Raises:
        UserError: a message type is not installed, or the file cannot be written.
    """

    def __init__(
        self,
        node: LifecycleNode,
        engine: Engine,
        sampling: Sampling,
        on_change: Callable[[], None],
        seed: int | None,
        trace: str = "",
    ) -> None:
        self._node, self._built_ns = node, time.monotonic_ns()
        self.trace: Trace | None = None
        self.contract = engine.policy.contract
        self.problems: dict[str, str] = {}
        self._trace_problem = ""
        self._chunk_bytes = ChunkBytes(self.contract)
        self._jumped_ns = 0
        self._built, self._timers = contextlib.ExitStack(), contextlib.ExitStack()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.pilot = Supervisor(
            engine,
            self.contract,
            engine.policy.recipe.policy.n_obs_steps,
            sampling,
            publish=self._publish,
            now_ns=lambda: node.get_clock().now().nanoseconds,
            on_change=on_change,
            seed=seed,
        )
        with contextlib.ExitStack() as half_built:
            half_built.callback(self.close)
            if trace:
                self._begin_trace(Trace(trace))
            self._open()
            half_built.pop_all()

    def _begin_trace(self, trace: Trace) -> None:
        self.trace, self.pilot.runner.on_times = trace, trace.add
        self._built.callback(trace.close)

    def _open(self) -> None:
        self._chunks = self._publisher(JointTrajectory, "~/action_chunk", CHUNK_QOS)
        self._paths = self._publisher(Path, "~/planned_path", QoSProfile(depth=1))
        self._path_due = self._node.create_guard_condition(self._publish_path)
        self._last_chance = self._node.create_guard_condition(self._on_last_chance)
        for guard in (self._path_due, self._last_chance):
            self._built.callback(self._node.destroy_guard_condition, guard)
        self._streams = Streams(self._node, self.contract, self._on_message)
        self._built.callback(self._streams.destroy)
        self._service(Trigger, "~/reset", self._serve_reset)
        self._service(SetBool, "~/hold", self._serve_hold)

    def _publisher(self, kind: Any, topic: str, qos: QoSProfile) -> Any:
        made = self._node.create_lifecycle_publisher(kind, topic, qos)
        self._built.callback(self._node.destroy_lifecycle_publisher, made)
        return made

    def _service(self, kind: Any, name: str, serve: Callable[..., Any]) -> None:
        self._built.callback(
            self._node.destroy_service, self._node.create_service(kind, name, serve)
        )

    def close(self) -> None:
        """Take all down, as far as it has been built; what is being sampled is waited for."""
        self.stop()
        if not self.pilot.runner.stop():
            self._node.get_logger().warning("an inference goes on that was begun before")
        self._built.close()

    def start(self) -> None:
        """Begin with fresh messages; publishers must be active."""
        limit_s = self.pilot.limit_ns / 1e9
        self._settle = self._timer(max(self.contract.settle_s, 1e-3), self._on_settled)
        self._settle.cancel()
        clock = self._node.get_clock()
        if (
            isinstance(clock, ROSClock) and clock.ros_time_is_active
        ):  # a simulator's seconds are longer or shorter than ours
            self._watchdogs = [
                self._timer(limit_s, self._on_overdue, clock),
                self._timer(CLOCK_STANDS_S, self._on_standing_clock),
            ]
            back = JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-self.contract.period_ns)
            )
            jumps = clock.create_jump_callback(back, post_callback=self._on_jump)
            self._timers.callback(jumps.unregister)
        else:
            self._watchdogs = [self._timer(limit_s, self._on_overdue)]
        self._heard = clock.now()
        self.pilot.start(time.monotonic_ns())

    def _timer(self, seconds: float, call: Callable[[], None], clock: Clock | None = None) -> Any:
        made = self._node.create_timer(seconds, call, clock=clock or self._steady)
        self._timers.callback(self._node.destroy_timer, made)
        return made

    def stop(self) -> None:
        """Tell the robot to hold, and wait until it knows; publishers must still be active.

        What is being sampled is not waited for: it comes to nothing when it ends.
        """
        if self.pilot.active:
            self.pilot.stop(timeout_s=0.0)
            self._chunks.wait_for_all_acked(Duration(seconds=1))
        self._timers.close()

    def _on_message(self, topic: str, message: Any) -> None:
        heard_ns = self.pilot.heard_ns
        self.pilot.push(topic, message, time.monotonic_ns())
        self._wind_timers(heard_ns)

    def _on_settled(self) -> None:
        heard_ns = self.pilot.heard_ns
        self.pilot.poll(time.monotonic_ns())
        self._wind_timers(heard_ns)

    def _wind_timers(self, heard_ns: int) -> None:
        """Timers run only while there is something to wait for: nothing ticks in between."""
        if not self.pilot.active:
            return
        if self.pilot.heard_ns != heard_ns:
            self._heard = self._node.get_clock().now()
            for watchdog in self._watchdogs:
                watchdog.reset()
        if self.pilot.history.waiting != self._settle.is_canceled():
            return
        self._settle.reset() if self.pilot.history.waiting else self._settle.cancel()

    def _on_overdue(self) -> None:
        # If it was this process that slept, the frame lies here unread, and comes before this.
        self._heard_before_ns = self.pilot.heard_ns
        self._last_chance.trigger()

    def _on_last_chance(self) -> None:
        if self.pilot.heard_ns == self._heard_before_ns:
            self.pilot.overdue(time.monotonic_ns())

    def _on_standing_clock(self) -> None:
        moved_s = (self._node.get_clock().now() - self._heard).nanoseconds / 1e9
        self.pilot.overdue(time.monotonic_ns(), f"/clock moved {moved_s:.3f} s since")

    def _on_jump(self, jump: TimeJump) -> None:
        """Simulated time ran backwards: it began anew, or two tell it in turn."""
        self._jumped_ns = time.monotonic_ns()
        reason, several = (
            f"/clock jumped {-jump.delta.nanoseconds / 1e9:.3f} s back",
            self._clocks(),
        )
        if several:
            self.pilot.bar(f"{reason}; {several}")
        else:
            self.pilot.hold(reason)

    def _clocks(self) -> str:
        """Who publishes /clock, if more than one does."""
        names = sorted(info.node_name for info in publishers(self._node, "/clock"))
        listed = f"{len(names)} nodes publish it: {', '.join(names)}; end all but one"
        return listed if len(names) > 1 else ""

    def look_after_the_clock(self) -> None:
        """Go on once only one tells the time, or all have agreed for a while."""
        agreed_s = (time.monotonic_ns() - self._jumped_ns) / 1e9
        if self.pilot.barred and (agreed_s > CLOCK_STANDS_S or not self._clocks()):
            self.pilot.bar("")

    def look_after_silent_topics(self) -> None:
        """Find out why topics are silent, and subscribe anew where that helps."""
        now_ns = time.monotonic_ns()
        for topic, arrivals in self.pilot.arrivals.items():
            age_s = arrivals.age_s(now_ns)
            waited_s = (now_ns - self._built_ns) / 1e9 if age_s is None else age_s
            problem = self._streams.attend(topic) if waited_s > SILENT_S else ""
            if problem and problem != self.problems.get(topic):
                self._node.get_logger().warning(f"{topic}: {problem}")
            self.problems[topic] = problem

    def look_after_trace(self) -> dict[str, str]:
        """What there is to report of the trace; a problem is logged, once."""
        if self.trace is None:
            return {}
        if self.trace.problem and not self._trace_problem:
            self._node.get_logger().error(f"trace {self.trace}")
        self._trace_problem = self.trace.problem
        return {"trace": str(self.trace)}

    def _publish(self, chunk: Chunk) -> None:
        if not len(chunk.actions):
            self._chunks.publish(hold_msg(chunk.stamp_ns, self.contract))
            return
        self._chunks.publish(self._chunk_bytes.of(chunk))
        if self._paths.get_subscription_count():
            self._newest = chunk
            self._path_due.trigger()

    def _publish_path(self) -> None:
        frames = self.pilot.history.frames
        if frames and self._paths.is_activated:
            self._paths.publish(path_msg(self._newest, self.contract, frames[-1].arrays))

    def _serve_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = self.pilot.active, "node is not active"
        if self.pilot.active:
            self.pilot.reset(time.monotonic_ns())
            response.message = self.pilot.state
        return response

    def _serve_hold(self, asked: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = self.pilot.active, "node is not active"
        if self.pilot.active:
            self.pilot.set_hold(asked.data)
            response.message = self.pilot.state
        return response
