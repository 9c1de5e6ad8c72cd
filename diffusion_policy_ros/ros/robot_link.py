"""All that connects a policy with its robot: subscriptions, chunk publisher, services, clocks.

It lives from configure to cleanup; between `start` and `stop` the robot is told what to do.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from nav_msgs.msg import Path
from rclpy.clock import JumpThreshold, ROSClock, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.ros.chunks import ChunkBytes, hold_msg
from diffusion_policy_ros.ros.planned_path import path_msg
from diffusion_policy_ros.ros.qos import LATCHED, crowd
from diffusion_policy_ros.ros.streams_thread import FOREVER_NS, StreamsThread
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.runner import Runner
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.runtime.trace import Trace

CHUNK_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
"""For who comes late, as of ``robot_description``."""
SILENT_S = 2.0
"""How long a topic may be silent before its publishers are looked at; discovery takes a second."""
LAST_CHANCE_NS = 2_000_000
"""How long a frame that is overdue is waited for: if it was this process that slept, it is just
coming in."""
CLOCK_STANDS_S = 1.0
"""Under simulated time: real time without a frame after which its clock stands still, s."""


class RobotLink:
    """Topics, services and clocks around a policy loop.

    Args:
        node: has them.
        engine: samples the policy, whose contract names the topics.
        sampling: how.
        on_change: called, on any thread, when holding begins or ends.
        seed: of the noise; None draws one.
        trace: file for the times of every chunk; empty: none.

    Attributes:
        loop: decides what the robot is told; whoever calls it has to have its turn.
        runner: gives turns with it, and samples.
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
        self._built, self._started = contextlib.ExitStack(), contextlib.ExitStack()
        self._simulated = self._last_chance = False
        self._wound_ns = self._overdue_ns = self._waited_from_ns = -1
        self.loop = PolicyLoop(
            engine,
            self.contract,
            engine.policy.recipe.policy.n_obs_steps,
            sampling,
            publish=self._publish,
            now_ns=lambda: node.get_clock().now().nanoseconds,
            on_change=on_change,
            seed=seed,
        )
        self.runner = Runner(self.loop)
        with contextlib.ExitStack() as half_built:
            half_built.callback(self.close)
            if trace:
                self._begin_trace(Trace(trace))
            self._open()
            half_built.pop_all()

    def _begin_trace(self, trace: Trace) -> None:
        self.trace, self.loop.on_times = trace, trace.add
        self._built.callback(trace.close)

    def _open(self) -> None:
        self._chunks = self._publisher(JointTrajectory, "~/action_chunk", CHUNK_QOS)
        self._paths = self._publisher(Path, "~/planned_path", QoSProfile(depth=1))
        self._publish_contract()
        self._path_due = self._node.create_guard_condition(self._publish_path)
        self._built.callback(self._node.destroy_guard_condition, self._path_due)
        self._streams = StreamsThread(self._node, self.contract, self._on_message, self._on_time)
        self._built.callback(self._streams.destroy)
        self._streams.start()
        service = self._node.create_service(Trigger, "~/reset", self._serve_reset)
        self._built.callback(self._node.destroy_service, service)

    def _publish_contract(self) -> None:
        """What the chunks mean, for whoever plays them; also while the node is inactive."""
        publisher = self._node.create_publisher(String, "~/contract", LATCHED)
        self._built.callback(self._node.destroy_publisher, publisher)
        publisher.publish(String(data=self.contract.text))

    def _publisher(self, kind: Any, topic: str, qos: QoSProfile) -> Any:
        made = self._node.create_lifecycle_publisher(kind, topic, qos)
        self._built.callback(self._node.destroy_lifecycle_publisher, made)
        return made

    def close(self) -> None:
        """Take all down, as far as it has been built; what is being sampled is waited for."""
        self.stop()
        if not self.runner.stop():
            self._node.get_logger().warning("an inference goes on that was begun before")
        self._built.close()

    def start(self) -> None:
        """Begin with fresh messages; publishers must be active."""
        clock = self._node.get_clock()
        self._simulated = isinstance(clock, ROSClock) and clock.ros_time_is_active
        if self._simulated:
            back = Duration(nanoseconds=-self.contract.period_ns)
            self._on_jumps(JumpThreshold(min_forward=None, min_backward=back), self._on_jump)
            on = JumpThreshold(
                min_forward=Duration(nanoseconds=1), min_backward=None, on_clock_change=False
            )
            self._on_jumps(on, self._on_clock)
        self.runner.start()
        with self.runner.turn() as loop:
            loop.start(time.monotonic_ns())
            self._waited_from_ns = -1
        self._streams.wake()

    def _on_jumps(self, threshold: JumpThreshold, call: Callable[[TimeJump], None]) -> None:
        handle = self._node.get_clock().create_jump_callback(threshold, post_callback=call)
        self._started.callback(handle.unregister)

    def stop(self) -> None:
        """Tell the robot to hold, and wait until it knows; publishers must still be active.

        What is being sampled is not waited for: it comes to nothing when it ends.
        """
        with self.runner.turn() as loop:
            was_active = loop.active
            loop.stop()
        self.runner.stop(timeout_s=0.0)
        if was_active:
            self._chunks.wait_for_all_acked(Duration(seconds=1))
        self._started.close()

    def _on_message(self, topic: str, message: Any) -> None:
        with self.runner.turn() as loop, self._outliving(loop, topic):
            loop.push(topic, message, time.monotonic_ns())

    @contextlib.contextmanager
    def _outliving(self, loop: PolicyLoop, what: str) -> Iterator[None]:
        """Hold, by name, where a fault is ours: whatever comes does not end the node."""
        try:
            yield
        except Exception as error:
            self._node.get_logger().error(traceback.format_exc(), once=True)
            loop.refuse(what, f"{what}: {error!r}", time.monotonic_ns())

    def _on_time(self) -> int:
        """Do what is due; for how many ns there is nothing more."""
        with self.runner.turn() as loop:
            if not loop.active:
                return FOREVER_NS
            now_ns = time.monotonic_ns()
            with self._outliving(loop, "frame"):
                loop.poll(now_ns)
            if loop.frame_arrival_ns != self._wound_ns:
                self._wound_ns = loop.frame_arrival_ns
                self._wait_from(self._wound_ns)
            elif now_ns >= self._overdue_ns:
                self._when_overdue(now_ns)
            settles_ns = loop.history.settles_ns
        due_ns = self._overdue_ns if settles_ns is None else min(self._overdue_ns, settles_ns)
        return min(max(due_ns - now_ns, 0), FOREVER_NS)

    def _wait_from(self, now_ns: int) -> None:
        """Wait for the next frame as long as it may take."""
        # A simulator's seconds are longer or shorter than ours: `_on_clock` counts them.
        frame_timeout_ns = (
            round(CLOCK_STANDS_S * 1e9) if self._simulated else self.loop.frame_timeout_ns
        )
        self._overdue_ns, self._last_chance = now_ns + frame_timeout_ns, False
        self._waited_from_ns = self._node.get_clock().now().nanoseconds

    def _when_overdue(self, now_ns: int) -> None:
        if not self._last_chance:
            self._last_chance, self._overdue_ns = True, now_ns + LAST_CHANCE_NS
            return
        # Not since the frame: /clock may come after what it is the time of, and catch up then.
        moved_ns = self._node.get_clock().now().nanoseconds - self._waited_from_ns
        stands = self._simulated and moved_ns < self.loop.frame_timeout_ns
        self.loop.overdue(now_ns, f"/clock moved {moved_ns / 1e9:.3f} s since" if stands else "")
        self._wait_from(now_ns)

    def _on_clock(self, _: TimeJump) -> None:
        """Simulated time went on."""
        now_ns = self._node.get_clock().now().nanoseconds
        with self.runner.turn() as loop:
            overdue = (
                now_ns - max(loop.frame_time_ns, self._waited_from_ns) >= loop.frame_timeout_ns
            )
            if not overdue or self._last_chance:
                return
            self._overdue_ns = 0
        self._streams.wake()

    def _on_jump(self, jump: TimeJump) -> None:
        """Simulated time ran backwards: it began anew, or two tell it in turn."""
        self._jumped_ns, self._waited_from_ns = time.monotonic_ns(), -1
        reason = f"/clock jumped {-jump.delta.nanoseconds / 1e9:.3f} s back"
        several = crowd(self._node, "/clock")
        with self.runner.turn() as loop:
            if several:
                loop.inhibit(f"{reason}; {several}")
            else:
                loop.hold(reason)

    def look_after_the_clock(self) -> None:
        """Go on once only one tells the time, or all have agreed for a while."""
        agreed_s = (time.monotonic_ns() - self._jumped_ns) / 1e9
        if self.loop.inhibited and (agreed_s > CLOCK_STANDS_S or not crowd(self._node, "/clock")):
            with self.runner.turn() as loop:
                loop.inhibit("")

    def look_after_topics(self) -> None:
        """Find out why topics are silent, or of two minds; subscribe anew where that helps."""
        now_ns = time.monotonic_ns()
        for topic, arrivals in self.loop.arrivals.items():
            age_s = arrivals.age_s(now_ns)
            waited_s = (now_ns - self._built_ns) / 1e9 if age_s is None else age_s
            silent = waited_s > SILENT_S
            problem = self._streams.attend(topic, silent)
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
        with self.runner.turn() as loop:
            newest = list(loop.history.frames)[-1:]
        # What leads nowhere, as of a rotation that is none, is not drawn; the player rejects it.
        with contextlib.suppress(ValueError):
            if newest and self._paths.is_activated:
                self._paths.publish(path_msg(self._newest, self.contract, newest[0].arrays))

    def _serve_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self.runner.turn() as loop:
            response.success, response.message = loop.active, "node is not active"
            if loop.active:
                loop.reset(time.monotonic_ns())
                response.message = loop.state
        return response

    def set_hold(self, on: bool) -> str:
        """Hold until told otherwise, also while inactive; the state after it."""
        with self.runner.turn() as loop:
            loop.set_hold(on)
            return loop.state
