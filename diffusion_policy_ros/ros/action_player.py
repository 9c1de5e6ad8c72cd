"""Chunks become set-points for a robot's controller: `action_player --ros-args -p contract:=C`.

A lifecycle node that brings itself up unless `autostart` is false. It plays the chunks of the
policy node that `policy` names, and takes that node's contract where it is given none. What goes
where is said by `send` of the contract's action fields; by default

    ~/pose              geometry_msgs/PoseStamped         what moves a position, a rotation or both
    ~/joint_trajectory  trajectory_msgs/JointTrajectory   joints
    ~/twist             geometry_msgs/TwistStamped        a twist
    ~/joint_velocity    std_msgs/Float64MultiArray        velocities of joints
    ~/gripper           std_msgs/Float64MultiArray        a gripper

It starts stopped, and publishes nothing until it is released (`~/resume`, or `armed:=true`) and
a chunk has come that begins where the robot is. `~/stop` brakes and stays so, `~/hand_over` leaves
the robot to an operator, both until `~/resume`; `~/speed_scale` slows it down. `~/state` (latched)
and `/diagnostics` say what it does and why. Chunks are checked, interpolated and limited by
`runtime/player.py`. Beside the parameters below, each field of the contract has its limits:
`FIELD.velocity` and so on, as `translation.velocity`.

This is no safety-rated function: see doc/how-to/before-your-robot.md.
"""

from __future__ import annotations

import sys
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.task import Future
from std_msgs.msg import Float64, String
from std_srvs.srv import Trigger

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.check import sent_in_other_units
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros import diagnostics, player_parameters
from diffusion_policy_ros.ros.chunk_source import ChunkSource
from diffusion_policy_ros.ros.chunks import SECOND_NS
from diffusion_policy_ros.ros.managed import SUCCESS, ManagedNode
from diffusion_policy_ros.ros.parameters import check_overrides
from diffusion_policy_ros.ros.player_link import PlayerLink
from diffusion_policy_ros.ros.processes import run
from diffusion_policy_ros.ros.qos import LATCHED
from diffusion_policy_ros.runtime.counts import kind_of

REPORT_S = 0.5
EXIT_USER_ERROR = 2
LEVELS = {
    "playing": DiagnosticStatus.OK,
    "operator": DiagnosticStatus.OK,
    "fault": DiagnosticStatus.ERROR,
}
"""State → level of the report; of all others a warning."""


class ActionPlayer(ManagedNode):
    """Lifecycle, services and parameters of a player; its parameters are in `player_parameters`.

    Attributes:
        finished: never done: it runs until it is interrupted.

    Raises:
        UserError: parameters that do not fit.
    """

    def __init__(self) -> None:
        super().__init__("action_player")
        self.finished: Future[bool] = Future()
        self.link: PlayerLink | None = None
        self._active, self._changed = False, False
        self._said = self._last_hold = ""
        self._settings = player_parameters.declare_all(self)
        self._armed = self._settings.armed
        player_parameters.check(self._values)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._state = self.create_publisher(String, "~/state", LATCHED)
        self._source = ChunkSource(self, self._settings.policy, self._on_contract)
        self.create_service(Trigger, "~/stop", self._stop)
        self.create_service(Trigger, "~/resume", self._resume)
        self.create_service(Trigger, "~/hand_over", self._hand_over)
        self.create_subscription(Float64, "~/speed_scale", self._on_speed_scale, 1)
        # A steady clock, so that simulated time that stands still is reported, too.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPORT_S, self._report, clock=steady)

    # -------------------------------------------------------------------------------- lifecycle

    def _on_contract(self) -> None:
        """The policy's contract was heard, by a player that may have waited for it."""
        if self._settings.autostart and self.link is None and not self._settings.contract:
            self.bring_up()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the contract, connect to robot and policy."""
        return self.attempt("configure", self._set_up)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tick; released only where it is armed, and only the first time."""
        return self.attempt("activate", lambda: self._begin(state))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Brake, then go quiet; activated again, it is stopped."""
        self._end("deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the robot."""
        self._tear_down()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Brake, then let go of the robot."""
        self._tear_down()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Be unconfigured."""
        self._tear_down()
        return SUCCESS

    def close(self) -> None:
        """Brake within the limits and be no more."""
        self._tear_down()
        self._report()

    def _set_up(self) -> None:
        contract = self._playable()
        player_parameters.declare_limits(self, contract)
        check_overrides(self)
        link = PlayerLink(self, contract, self._settings, self._source, self._note)
        try:
            self._take_parameters(link)
        except BaseException:
            link.close()
            raise
        self.link = link
        where = ", ".join(output.name for output in link.outputs)
        self.get_logger().info(f"player of {contract.name}: {where}")
        for line in sent_in_other_units(contract):
            self.get_logger().warning(line)
        for name in contract.action.unlimited:
            cure = f"give it one, or -p {name}.velocity:=..."
            self.get_logger().warning(f"{name} has no limit of velocity; {cure}")

    def _playable(self) -> Contract:
        """The contract that was given; the policy's where none was.

        Raises:
            UserError: there is none, or nobody could play it.
        """
        contract, source = self._source.contract, self._source
        if self._settings.contract:
            contract = Contract.load(self._settings.contract)
        if contract is None:
            cure = "start the policy node, or give -p contract:=FILE or a shipped name"
            what = source.problem or f"waiting for {source.contract_topic}"
            raise UserError("no contract", what, cure)
        contract.check_outputs()
        return contract

    def _begin(self, state: LifecycleState) -> None:
        assert self.link is not None, "the lifecycle has configured it"
        self.link.start()
        super().on_activate(state)
        self._active = True
        if self._armed:
            self.link.player.release(self.link.now_ns)
        self._armed = False

    def _end(self, why: str) -> None:
        if self.link is not None and self._active:
            self.link.stop(why)
        self._active = False

    def _tear_down(self) -> None:
        self._end("the player ends")
        if self.link is not None:
            self.link.close()
        self.link = None

    # ------------------------------------------------------------------------------- parameters

    @property
    def _values(self) -> dict[str, Any]:
        return {name: parameter.value for name, parameter in self._parameters.items()}

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse with the reason; what is accepted takes effect with the next tick."""
        new = {parameter.name: parameter.value for parameter in parameters}
        try:
            player_parameters.check(new)
            if self.link is not None:
                self.link.restricted({**self._values, **new})
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        # Only once all have agreed they are set; releases before Jazzy do not tell when.
        self._changed = True
        return SetParametersResult(successful=True)

    def _take_parameters(self, link: PlayerLink) -> None:
        self._changed = False
        before = link.loosened
        link.apply(self._values)
        if link.loosened != before:
            self.get_logger().warning(f"LIMITS ARE LOOSENED: {link.loosened or 'no longer'}")

    def _on_speed_scale(self, message: Float64) -> None:
        result = self.set_parameters([Parameter("speed_scale", value=message.data)])[0]
        if not result.successful:
            self.get_logger().warning(f"~/speed_scale: {result.reason}", throttle_duration_sec=5.0)

    # --------------------------------------------------------------------------------- services

    def _stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._armed = False
        if self.link is not None:
            self.link.player.stop("~/stop was called", self.link.keeps)
        return self._answered(response, "")

    def _resume(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.link is None or not self._active:
            return self._answered(response, "it is not active")
        return self._answered(response, self.link.player.release(self.link.now_ns))

    def _hand_over(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.link is None or not self._active:
            return self._answered(response, "it is not active")
        self.link.player.hand_over("~/hand_over was called")
        return self._answered(response, "")

    def _answered(self, response: Trigger.Response, refused: str) -> Trigger.Response:
        self._note()
        response.success, response.message = not refused, refused or self._state_now()
        return response

    # ------------------------------------------------------------------------------ diagnostics

    def _state_now(self) -> str:
        """State and reason in one line."""
        if self.link is None:
            why = self.failure or self._awaited()
            return f"unconfigured: {why}" if why else "unconfigured"
        if not self._active:
            return f"inactive: {self.failure}" if self.failure else "inactive"
        player = self.link.player
        return f"{player.state}: {player.why}" if player.why else player.state

    def _awaited(self) -> str:
        """What it will bring itself up with, once it is heard."""
        settings, source = self._settings, self._source
        if not settings.autostart or settings.contract or source.contract is not None:
            return ""
        return f"no contract on {source.contract_topic}; start the policy node, or give contract:="

    def _note(self) -> None:
        """Say what has changed: state, or its reason."""
        if self._changed and self.link is not None:
            self._take_parameters(self.link)
        now = self._state_now()
        kind = kind_of(now)
        if kind == self._said:
            return
        self._said = kind
        self._state.publish(String(data=now))
        if now.startswith(("holding", "fault")):
            self._last_hold = now
        if now.startswith("fault"):
            self.get_logger().error(now)
        else:
            self.get_logger().info(now)

    def _report(self) -> None:
        self._note()
        now, robot, values = self._state_now(), "", dict[str, object]()
        level = LEVELS.get(now.partition(":")[0], DiagnosticStatus.WARN)
        if self.failure:
            level = DiagnosticStatus.ERROR
        if self.link is not None:
            robot, values = self.link.contract.name, self._facts(self.link)
            if self.link.loosened or values["problem"]:
                level = max(level, DiagnosticStatus.WARN)
        name = f"{self.get_fully_qualified_name()}: player"
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostics.message(name, robot, level, now, values, stamp))

    def _facts(self, link: PlayerLink) -> dict[str, object]:
        player, now_ns = link.player, link.now_ns
        ages = {
            f"{key}.age_s": f"{(now_ns - time_ns) / SECOND_NS:.3f}"
            for key, time_ns in link.measured.times_ns.items()
        }
        return {
            "chunks": link.taken,
            "dropped_actions": player.dropped,
            "late_ticks": player.late_ticks,
            "speed_scale": player.speed_scale,
            "loosened_limits": link.loosened,
            "last_hold": self._last_hold,
            "problem": link.problem(),
            **ages,
            **{f"rejected: {reason}": count for reason, count in player.rejected.items()},
            **{f"clamped: {name}": count for name, count in player.clamped.items()},
        }


def make() -> ActionPlayer:
    """The node, brought up unless that was not wanted or there is no contract yet; the process
    ends, as the log says why, where it could not be.
    """
    node = ActionPlayer()
    if not node._settings.autostart:
        node.say_unconfigured()
    elif node._settings.contract and not node.bring_up():
        raise SystemExit(EXIT_USER_ERROR)
    return node


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted."""
    return run(make, player_parameters.declare_all, args)


if __name__ == "__main__":
    sys.exit(main())
