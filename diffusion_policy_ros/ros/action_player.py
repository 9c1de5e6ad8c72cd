"""Chunks become set-points for a robot's controller: `action_player --ros-args -p contract:=C`.

Subscribes to the policy's chunks and to what the contract's action fields name as their `state`,
and publishes at `rate_hz`, once both are there:

    ~/pose              geometry_msgs/PoseStamped      for a contract that commands a pose
    ~/twist             geometry_msgs/TwistStamped     with publish_twist
    ~/joint_trajectory  trajectory_msgs/JointTrajectory, one point, for a contract of joints
    ~/gripper           std_msgs/Float64MultiArray, or a JointTrajectory with gripper_joint

Chunks are checked, interpolated and limited by `runtime/player.py`; the limits are those of the
contract, or the parameters here. Service `~/stop` stays in force until `~/resume`, which begins
at the measured pose. `/diagnostics` says what it does and why.

This is no safety-rated function: see doc/how-to/before-your-robot.md.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from diffusion_policy_ros.contract import JOINT_LIMITS, Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array, decode, stamp_ns
from diffusion_policy_ros.ros import diagnostics, set_points
from diffusion_policy_ros.ros.chunks import SECOND_NS, chunk_of
from diffusion_policy_ros.ros.parameters import check_overrides, declare
from diffusion_policy_ros.ros.processes import run
from diffusion_policy_ros.ros.set_points import SetPoint
from diffusion_policy_ros.ros.streams import Streams
from diffusion_policy_ros.runtime.player import Player

REPORT_S = 0.5
BRAKING_S = 1.0
"""At the end it brakes for so long at most."""
LIMITS = {
    "velocity": ("speed of the set-point, m/s", 10.0),
    "acceleration": ("acceleration of the set-point, m/s2", 100.0),
    "angular_velocity": ("turning speed of the set-point, rad/s", 50.0),
    "angular_acceleration": ("turning acceleration of the set-point, rad/s2", 500.0),
    "joint_velocity": ("speed of every joint, rad/s or m/s", 50.0),
    "joint_acceleration": ("acceleration of every joint, rad/s2 or m/s2", 500.0),
    "lead": ("distance of the set-point from the measured position, m", 1.0),
    "lead_rotation": ("angle of the set-point to the measured orientation, rad", 3.14),
    "joint_lead": ("distance of every joint's set-point from the measured joint, rad or m", 3.14),
    "jump": ("distance of a chunk's first action from the measured position, m", 1.0),
    "jump_rotation": ("angle of a chunk's first action to the measured orientation, rad", 3.14),
    "joint_jump": ("distance of a chunk's first joints from the measured ones, rad or m", 3.14),
    "chunk_timeout_s": ("age of the newest chunk, s", 60.0),
    "observation_timeout_s": ("age of the measured state, s", 60.0),
}
"""Limits of the contract that a parameter can replace: what it limits, and the highest value."""


@dataclass(frozen=True)
class Settings:
    """The node's parameters; `declare_settings` has their descriptions."""

    contract: str
    action_topic: str
    rate_hz: float
    publish_twist: bool
    gripper_joint: str
    gripper_open: float
    gripper_closed: float
    on_stale: str
    limits: dict[str, Any]


def declare_settings(node: Node) -> Settings:
    """Declare the node's parameters."""
    add = functools.partial(declare, node)
    limits = {
        name: add(name, 0.0, f"greatest {what}; 0: the contract's", low=0.0, high=highest)
        for name, (what, highest) in LIMITS.items()
    }
    return Settings(
        contract=add("contract", "", "contract of the robot: a file or a shipped name"),
        action_topic=add("action_topic", "/policy_node/action_chunk", "chunks to play"),
        rate_hz=add("rate_hz", 100.0, "set-points a second, Hz", low=20.0, high=500.0),
        publish_twist=add("publish_twist", False, "publish the set-point's velocity, too"),
        gripper_joint=add(
            "gripper_joint", "", "joint of ~/gripper as a JointTrajectory; empty: numbers only"
        ),
        gripper_open=add("gripper_open", -1.0, "open gripper, rad or m", low=-10.0, high=10.0),
        gripper_closed=add(
            "gripper_closed", 1.0, "closed gripper, likewise", low=-10.0, high=10.0
        ),
        on_stale=add("on_stale", "", "after a time-out: hold or stop; empty: the contract's"),
        limits={
            # A joint limit of the contract is a list: one for all joints, or one for each.
            name: (value,) if name in JOINT_LIMITS else value
            for name, value in limits.items()
            if value
        },
    )


def playable(settings: Settings) -> Contract:
    """The contract, with the limits that are given as parameters.

    Raises:
        UserError: there is none, or it commands what cannot be published.
    """
    if not settings.contract:
        cure = "give -p contract:=FILE or a shipped name"
        raise UserError("no contract", "action_player", cure)
    contract, changes = Contract.load(settings.contract), dict[str, Any](settings.limits)
    if settings.on_stale not in ("", "hold", "stop"):
        raise UserError(f"'{settings.on_stale}'", "parameter on_stale", "give hold or stop")
    if settings.on_stale:
        changes["on_stale"] = settings.on_stale
    action = contract.action
    for problem in dataclasses.replace(
        action, limits=dataclasses.replace(action.limits, **changes)
    ).idle_limits():
        what = f"the action of {contract.name} commands nothing that it limits"
        raise UserError(what, f"parameter {problem.key.rpartition('.')[2]}", problem.cure)
    for part in action.fields:
        if part.kind != "binary" and not part.state:
            cure = "name the observation that measures it as its state"
            raise UserError(f"{part.name} has no state", contract.name, cure)
        if part.kind == "joint_position" and not contract.observations[part.state].names:
            cure = f"give observations.{part.state}.names"
            raise UserError("the joints have no names", contract.name, cure)
    limits = dataclasses.replace(action.limits, **changes)
    return dataclasses.replace(contract, action=dataclasses.replace(action, limits=limits))


class Measured:
    """The newest of every observation that an action field names as its state.

    Args:
        contract: names them.

    Attributes:
        arrays: key → newest array.
        problem: why a message could not be read; empty after the next one that can.
    """

    def __init__(self, contract: Contract) -> None:
        self.streams = {
            part.state: contract.observations[part.state]
            for part in contract.action.fields
            if part.state
        }
        self.arrays: dict[str, Array] = {}
        self.problem = ""
        self.times_ns: dict[str, int] = {}

    def take(self, topic: str, message: Any, now_ns: int) -> None:
        """Read a message."""
        for key, stream in self.streams.items():
            if stream.topic != topic:
                continue
            try:
                stamp = stamp_ns(message)
                self.arrays[key] = decode(stream, message)
            except UserError as error:
                self.problem = str(error)
                return
            measured_ns = now_ns if stamp is None else stamp
            self.times_ns[key] = measured_ns - round(stream.observation_latency_s * SECOND_NS)
        self.problem = ""

    @property
    def missing(self) -> list[str]:
        """Keys of which nothing has come yet."""
        return [key for key in self.streams if key not in self.arrays]

    @property
    def time_ns(self) -> int | None:
        """When the oldest was measured."""
        return min(self.times_ns.values(), default=None)


class ActionPlayer(Node):
    """Timer, topics and services; what the robot is told is decided in `runtime/player.py`.

    Attributes:
        finished: never done: it runs until it is interrupted.

    Raises:
        UserError: parameters that do not fit.
    """

    def __init__(self) -> None:
        super().__init__("action_player")
        self.finished: Future[bool] = Future()
        settings = self._settings = declare_settings(self)
        check_overrides(self)
        self._contract = playable(settings)
        self._player = Player(self._contract, settings.rate_hz)
        self._measured = Measured(self._contract)
        self._told: SetPoint | None = None
        self._holding, self._last_hold, self._chunks = "", "", 0
        self._period_ns = round(SECOND_NS / settings.rate_hz)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._advertise()
        seen = dataclasses.replace(self._contract, observations=self._measured.streams)
        self._streams = Streams(self, seen, self._take)
        self.create_subscription(JointTrajectory, settings.action_topic, self._offer, 10)
        self.create_service(Trigger, "~/stop", self._stop)
        self.create_service(Trigger, "~/resume", self._resume)
        # A steady clock: set-points go on where simulated time stands still, and the report, too.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0 / settings.rate_hz, self._tick, clock=steady)
        self.create_timer(REPORT_S, self._report, clock=steady)
        where = ", ".join(publisher.topic_name for publisher in self._outputs.values())
        self.get_logger().info(f"player of {self._contract.name}: {where}")
        for name in self._contract.action.unlimited:
            self.get_logger().warning(
                f"no {name}.velocity limit: set-points go as fast as the policy says"
            )

    def _advertise(self) -> None:
        """Publishers of what the contract's action commands."""
        action, wanted = self._contract.action, dict[str, Any]()
        self._joints = action.of_kind("joint_position")
        self._gripper = action.of_kind("binary")
        slots = {part.role for part in self._contract.action.fields}
        if {"position", "rotation"} <= slots:
            wanted["pose"] = PoseStamped
            if self._settings.publish_twist:
                wanted["twist"] = TwistStamped
        elif "position" in slots or "rotation" in slots:
            cure = "add the other to action.fields: controllers take whole poses"
            raise UserError("the action is half a pose", self._contract.name, cure)
        if self._joints is not None:
            wanted["joint_trajectory"] = JointTrajectory
        if self._gripper is not None:
            by_name = bool(self._settings.gripper_joint)
            wanted["gripper"] = JointTrajectory if by_name else Float64MultiArray
        self._outputs = {
            name: self.create_publisher(kind, f"~/{name}", 10) for name, kind in wanted.items()
        }

    # ---------------------------------------------------------------------------------- topics

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _take(self, topic: str, message: Any) -> None:
        self._measured.take(topic, message, self._now_ns())
        if self._measured.problem:
            self.get_logger().error(self._measured.problem, throttle_duration_sec=5.0)

    def _offer(self, message: JointTrajectory) -> None:
        try:
            reason = self._player.offer(chunk_of(message, self._contract), self._now_ns())
        except UserError as error:
            reason = str(error)
            self._player.rejected["not a chunk of this contract"] += 1
        self._chunks += not reason
        if reason:
            self.get_logger().warning(f"chunk rejected: {reason}", throttle_duration_sec=5.0)

    def _tick(self) -> None:
        """Tell the robot where to be now; nothing before it is known where it is."""
        now_ns, measured = self._now_ns(), self._measured
        if measured.missing:
            self._note(f"waiting for {', '.join(measured.missing)}")
            return
        before = self._told
        if self._player.state == "stopped" and not self._chunks and self._told is None:
            self._player.release(now_ns)
        found = self._player.tick(now_ns, measured.arrays, measured.times_ns) or {}
        roles = {part.role: found.get(part.name) for part in self._contract.action.fields}
        gripper = roles.get("binary")
        told = SetPoint(
            roles.get("position"),
            roles.get("rotation"),
            None if gripper is None else float(gripper[0]),
            roles.get("joints"),
            self._player.why,
        )
        self._note(told.holding)
        if told.position is None and told.joints is None:
            return
        self._told = told
        self._publish(told, before or told, now_ns)

    def _publish(self, told: SetPoint, before: SetPoint, now_ns: int) -> None:
        settings, head = (
            self._settings,
            set_points.header(now_ns, self._contract.action.frame),
        )
        messages: dict[str, Any] = {}
        if "pose" in self._outputs:
            messages["pose"] = set_points.pose_msg(told, head)
        if "twist" in self._outputs:
            period_s = self._period_ns / SECOND_NS
            messages["twist"] = set_points.twist_msg(before, told, period_s, head)
        if self._joints is not None and told.joints is not None:
            names = self._measured.streams[self._joints.state].names
            messages["joint_trajectory"] = set_points.trajectory_msg(
                names, told.joints, self._period_ns
            )
        if self._gripper is not None and told.gripper is not None:
            value = settings.gripper_closed if told.gripper > 0 else settings.gripper_open
            messages["gripper"] = (
                set_points.trajectory_msg([settings.gripper_joint], [value], self._period_ns)
                if settings.gripper_joint
                else set_points.array_msg([value])
            )
        for name, message in messages.items():
            self._outputs[name].publish(message)

    # -------------------------------------------------------------------------------- services

    def _stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._player.stop("~/stop was called")
        response.success, response.message = True, f"stopped: {self._player.why}"
        return response

    def _resume(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        refused = self._player.release(self._now_ns())
        response.success = not refused
        response.message = refused or "goes on from the measured state"
        return response

    def close(self) -> None:
        """Brake within the limits, then end: what the robot was told last is to stay there."""
        self._player.stop("the player ends")
        deadline = time.monotonic() + BRAKING_S
        while self._told is not None and time.monotonic() < deadline:
            before = self._told
            self._tick()
            if _same(before, self._told):
                return
            time.sleep(self._period_ns / SECOND_NS)

    # ------------------------------------------------------------------------------ diagnostics

    def _note(self, holding: str) -> None:
        """Log when holding begins or ends."""
        if bool(holding) != bool(self._holding):
            self.get_logger().info(f"holding: {holding}" if holding else "playing")
        self._holding = holding
        self._last_hold = holding or self._last_hold

    def _report(self) -> None:
        for topic in {stream.topic for stream in self._measured.streams.values()}:
            if self._measured.missing or self._holding:
                problem = self._streams.attend(topic)
                if problem:
                    self.get_logger().warning(f"{topic}: {problem}", throttle_duration_sec=5.0)
        player, now = self._player, self.get_clock().now()
        age_ns = self._measured.time_ns
        values: dict[str, object] = {
            "chunks": self._chunks,
            "dropped_actions": player.dropped,
            "last_hold": self._last_hold,
            "measured.age_s": "never"
            if age_ns is None
            else f"{(now.nanoseconds - age_ns) / SECOND_NS:.3f}",
            **{f"rejected: {reason}": count for reason, count in player.rejected.items()},
            **{f"clamped: {name}": count for name, count in player.clamped.items()},
        }
        level, text = DiagnosticStatus.OK, "playing"
        if self._holding:
            level, text = DiagnosticStatus.WARN, f"holding: {self._holding}"
        if player.state in ("stopped", "fault"):
            level, text = DiagnosticStatus.ERROR, f"{player.state}: {player.why}"
        if self._measured.problem:
            values["problem"] = self._measured.problem
        name = f"{self.get_fully_qualified_name()}: player"
        self._diagnostics.publish(
            diagnostics.message(name, self._contract.name, level, text, values, now.to_msg())
        )


def _same(one: SetPoint, other: SetPoint) -> bool:
    """Whether the robot is told to be at the same place."""
    return all(
        a is b or (a is not None and b is not None and bool((a == b).all()))
        for a, b in (
            (one.position, other.position),
            (one.quaternion, other.quaternion),
            (one.joints, other.joints),
        )
    )


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted."""
    return run(ActionPlayer, declare_settings, args)


if __name__ == "__main__":
    sys.exit(main())
