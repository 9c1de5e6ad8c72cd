"""All that connects a player with its robot: measured states in, chunks in, set-points out.

It lives from configure to cleanup; set-points flow between `start` and `stop`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import Bool
from trajectory_msgs.msg import JointTrajectory

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros import player_parameters
from diffusion_policy_ros.ros.chunk_source import ChunkSource
from diffusion_policy_ros.ros.chunks import SECOND_NS, chunk_of
from diffusion_policy_ros.ros.encoders import Told
from diffusion_policy_ros.ros.measured import Measured
from diffusion_policy_ros.ros.outputs import Outputs
from diffusion_policy_ros.ros.player_parameters import Settings
from diffusion_policy_ros.ros.streams import Streams
from diffusion_policy_ros.runtime.counts import kind_of
from diffusion_policy_ros.runtime.player import Player

BRAKING_S = 1.0
"""At the end it brakes for so long at most."""
POINTS_AHEAD = 5
"""Of a trajectory."""
AGAIN_S = 5.0
"""What stays wrong is logged again after so long."""


class PlayerLink:
    """Topics, switch and clock around a player.

    Args:
        node: has them.
        contract: the robot's.
        settings: the parameters that stay.
        source: of the chunks.
        on_tick: called after each tick.

    Attributes:
        player: decides what the robot is told.
        measured: what is known of the robot.
        outputs: where set-points go.
        loosened: which limits are looser than the contract's; empty when none is.
        taken: chunks that were taken.
        keeps: whether ~/stop goes on to tell the set-point.

    Raises:
        UserError: a limit that is no tighter than the contract's, or a message type that is not
            installed.
    """

    def __init__(
        self,
        node: LifecycleNode,
        contract: Contract,
        settings: Settings,
        source: ChunkSource,
        on_tick: Callable[[], None],
    ) -> None:
        self._node, self.contract, self._settings = node, contract, settings
        self._source, self._on_tick = source, on_tick
        self.taken, self.loosened, self.keeps, self._doubt = 0, "", True, ""
        self._complaints: dict[str, float] = {}
        self._period_ns = round(SECOND_NS / settings.rate_hz)
        self._enabled_s, self._simulated = -float("inf"), False
        self.player = Player(contract, settings.rate_hz)
        self.measured = Measured(contract)
        self._built, self._started = contextlib.ExitStack(), contextlib.ExitStack()
        with contextlib.ExitStack() as half_built:
            half_built.callback(self.close)
            self._open()
            half_built.pop_all()

    def _open(self) -> None:
        self.outputs = Outputs(self._node, self.contract)
        self._built.callback(self.outputs.destroy)
        seen = dataclasses.replace(self.contract, observations=self.measured.streams)
        self._streams = Streams(self._node, seen, self._take)
        self._built.callback(self._streams.destroy)
        self._subscribe(JointTrajectory, self._source.topic, self._offer, 10)
        if self._settings.enable_topic:
            topic = self._settings.enable_topic
            self._subscribe(Bool, topic, self._on_switch, qos_profile_sensor_data)

    def _subscribe(self, kind: Any, topic: str, call: Any, qos: Any) -> None:
        made = self._node.create_subscription(kind, topic, call, qos)
        self._built.callback(self._node.destroy_subscription, made)

    def close(self) -> None:
        """Take all down, as far as it has been built."""
        self._started.close()
        self._built.close()

    def apply(self, values: Mapping[str, Any]) -> None:
        """Let parameters take effect.

        Args:
            values: name → value of all.

        Raises:
            UserError: a limit is looser than the contract's, and that was not asked for.
        """
        action, self.loosened = self.restricted(values)
        self.player.contract = dataclasses.replace(self.contract, action=action)
        self.player.speed_scale = values["speed_scale"]
        self.keeps = values["on_stop"] == "keep"
        self._time_from_start_s = values["time_from_start"]

    def restricted(self, values: Mapping[str, Any]) -> tuple[Any, str]:
        """The contract's action with the limits of the parameters, and which of them are looser.

        Raises:
            UserError: one is looser, and that was not asked for.
        """
        changes, action = player_parameters.limits(values), self.contract.action
        try:
            return action.tightened(changes), ""
        except UserError as error:
            if not values["loosen_limits"]:
                raise
            return action.tightened(changes, loosen=True), str(error)

    # ------------------------------------------------------------------------------- the stream

    def start(self) -> None:
        """Begin to tick: by simulated time where there is one, else at a steady pace."""
        clock = self._node.get_clock()
        self._simulated = isinstance(clock, ROSClock) and clock.ros_time_is_active
        if not self._simulated:
            clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self._node.create_timer(self._period_ns / SECOND_NS, self._tick, clock=clock)
        self._started.callback(self._node.destroy_timer, timer)

    def stop(self, why: str) -> None:
        """Brake within the limits, then end: what the robot was told last is to stay there."""
        self._started.close()
        self.player.stop(why, keep=False)
        now_ns, deadline_s = self.now_ns, time.monotonic() + BRAKING_S
        while not self.player.quiet and time.monotonic() < deadline_s:
            # Simulated time stands still meanwhile: nobody reads /clock.
            now_ns += self._period_ns
            self.tell(now_ns)
            time.sleep(self._period_ns / SECOND_NS)

    @property
    def now_ns(self) -> int:
        """By the clock that chunks are stamped by."""
        return int(self._node.get_clock().now().nanoseconds)

    def _tick(self) -> None:
        self._look_at_switch()
        self.tell(self.now_ns)
        self._on_tick()

    def tell(self, now_ns: int) -> None:
        """Tell the robot where to be now, if it is told anything."""
        measured, player = self.measured, self.player
        set_point = player.tick(now_ns, measured.arrays, measured.times_ns)
        if set_point is None:
            self.outputs.forget()
            return
        ahead_s, ahead = self._time_from_start_s, []
        if self.outputs.looks_ahead and not player.quiet:  # else it was the last one
            ahead = player.ahead(POINTS_AHEAD, round(ahead_s / POINTS_AHEAD * SECOND_NS))
        self.outputs.tell(Told(now_ns, set_point, player.velocity, ahead_s, ahead))

    # ----------------------------------------------------------------------------------- topics

    def _take(self, topic: str, message: Any) -> None:
        measured = self.measured
        measured.take(topic, message, self.now_ns)
        if measured.wrong_frame:
            self.player.fault("frame", measured.wrong_frame)
        elif measured.problem:
            self._complain(measured.problem)

    def _offer(self, message: JointTrajectory, info: Any) -> None:
        number = info.get("publication_sequence_number")
        self._doubt = self._source.doubt(self.contract, number) if message.points else ""
        reason = self._doubt
        if reason:
            self.player.rejected["not from this player's policy"] += 1
        try:
            reason = reason or self.player.offer(chunk_of(message, self.contract), self.now_ns)
        except UserError as error:
            reason = str(error)
            self.player.rejected["not a chunk of this contract"] += 1
        self.taken += not reason
        if reason and reason != self.player.why:  # that it is stopped or holds is said elsewhere
            self._complain(f"chunk rejected: {reason}")

    def _complain(self, text: str) -> None:
        """Log what is wrong; again only after a while."""
        kind, now_s = kind_of(text), time.monotonic()
        recent = {k: t for k, t in self._complaints.items() if now_s - t < AGAIN_S}
        if kind not in recent:
            self._node.get_logger().warning(text)
            recent[kind] = now_s
        self._complaints = recent

    def _on_switch(self, message: Bool) -> None:
        self._enabled_s = time.monotonic() if message.data else -float("inf")
        self._look_at_switch()

    def _look_at_switch(self) -> None:
        """Hold while the dead-man switch is open, or says nothing any more."""
        topic, timeout_s = self._settings.enable_topic, self._settings.enable_timeout_s
        if topic:
            closed = time.monotonic() - self._enabled_s <= timeout_s
            self.player.hold("" if closed else f"{topic} does not enable it")

    def problem(self) -> str:
        """What is wrong with what it hears or is heard by; subscribes anew where that helps."""
        found = [self.measured.problem, self._doubt]
        if self._simulated and not self.now_ns:
            found.append("nobody publishes /clock")
        found += [f"{output.name}: {output.problem}" for output in self.outputs if output.problem]
        if self.measured.missing or self.player.state in ("holding", "fault"):
            topics = dict.fromkeys(stream.topic for stream in self.measured.streams.values())
            told = {topic: self._streams.attend(topic) for topic in topics}
            found += [f"{topic}: {problem}" for topic, problem in told.items() if problem]
        return "; ".join(filter(None, found))
