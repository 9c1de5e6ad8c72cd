"""`policy_node`: observations in, chunks out, as a lifecycle node.

    policy_node --ros-args -p checkpoint:=runs/latest

Wiring only: what a frame is, when the robot holds and how a chunk is made is in `observe/` and
`runtime/`. The node brings itself up unless `autostart` is false. Before it goes quiet, whatever
the reason, it tells the robot to hold.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_srvs.srv import SetBool

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine, build_engine
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import checkpoint_hash, choice_lines, load_policy
from diffusion_policy_ros.ros import diagnostics, policy_parameters
from diffusion_policy_ros.ros.managed import SUCCESS, ManagedNode
from diffusion_policy_ros.ros.processes import (
    on_stop_signal,
    raise_on_stop_signal,
    start,
    told_of,
)
from diffusion_policy_ros.ros.robot_link import RobotLink
from diffusion_policy_ros.runtime.counts import kind_of
from diffusion_policy_ros.runtime.inference import warm_up

REPORT_S = 0.5
LOG_S = 1.0
"""At most one line of log about the same reason to hold, or about running, in so long."""
EXIT_USER_ERROR = 2


class PolicyNode(ManagedNode):
    """Runs a policy on a robot; its parameters are in `policy_parameters`.

    Raises:
        UserError: a parameter that it is started with does not fit.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("policy_node", **kwargs)
        self.link: RobotLink | None = None
        self._facts: dict[str, object] = {}
        self._logged = ""
        self._log_again_s: dict[str, float] = {}
        self._held = False
        policy_parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock, so that a simulator that stands still is reported too.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPORT_S, self._report, clock=self._steady)
        self._changed = self.create_guard_condition(self._report)
        # Of the node, not of what is configured: it stays held whatever comes between.
        self.create_service(SetBool, "~/hold", self._serve_hold)

    def end(self) -> None:
        """Tell the robot to hold and be no more, also in the midst of a transition."""
        with contextlib.suppress(rclpy_implementation.RCLError):
            self.trigger_shutdown()
        self._tear_down()
        self.destroy_node()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the policy, connect to the robot."""
        result = self.attempt("configure", self._set_up)
        if result != SUCCESS:
            self._tear_down()
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Wait for fresh messages and make chunks of them."""
        super().on_activate(state)
        result = self.attempt("activate", self._link.start)
        if result != SUCCESS:
            self._link.stop()
            super().on_deactivate(state)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tell the robot to hold, then go quiet."""
        self._link.stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of robot and policy; the live parameters are as at the start again."""
        self._tear_down()
        policy_parameters.forget(self)
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tell the robot to hold and everybody that it is so, then let go of it."""
        if self.link is not None:
            self.link.stop()
        self._report()
        self._diagnostics.wait_for_all_acked(Duration(seconds=1))
        self._tear_down()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tell the robot to hold, and be unconfigured."""
        return self.on_cleanup(state)

    def _set_up(self) -> None:
        engine = self._load_engine()
        settings = engine.policy.recipe.policy
        sampling = policy_parameters.sampling(self, settings)
        warm_up(engine, sampling)
        seed = policy_parameters.seed(self)
        trace = policy_parameters.value(self, "trace")
        link = RobotLink(self, engine, sampling, self._changed.trigger, seed, trace)
        # Once nothing can fail any more: the next checkpoint must not be sampled as this one.
        policy_parameters.adopt(self, settings, sampling)
        self.link = link
        self.link.set_hold(self._held)
        self._warn_of_unstamped(engine.policy.contract)
        # What lives now lives long; looking through it for garbage would take 50 ms each time.
        gc.collect()
        gc.freeze()

    def _load_engine(self) -> Engine:
        path = policy_parameters.value(self, "checkpoint")
        if not path:
            cure = "give one: --ros-args -p checkpoint:=DIR"
            raise UserError("is not set", "parameter checkpoint", cure)
        robot = policy_parameters.value(self, "contract")
        policy = load_policy(path, contract=Contract.load(robot) if robot else None)
        for line in choice_lines(path):
            self.get_logger().info(line)
        engine = build_engine(
            policy,
            policy_parameters.value(self, "engine"),
            policy_parameters.value(self, "device"),
            policy_parameters.value(self, "dtype"),
            policy_parameters.value(self, "threads"),
            Path(path),
            self.get_logger().warning,
        )
        self._facts = {
            "checkpoint": path,
            "checkpoint_hash": checkpoint_hash(path),
            "contract": policy.contract.name,
            "contract_hash": policy.contract.hash,
            "device": engine.device,
            "engine": engine.name,
            "dtype": engine.dtype,
        }
        self.get_logger().info(", ".join(f"{name} {fact}" for name, fact in self._facts.items()))
        return engine

    def _warn_of_unstamped(self, contract: Contract) -> None:
        for stream in contract.observations.values():
            if not stream.message.stamped and stream.tf is None:  # transforms have stamps
                self.get_logger().warning(
                    f"{stream.name} ({stream.topic}): {stream.type} HAS NO STAMP; the time of its "
                    "receipt is taken, which is later than the truth. Publish a stamped type."
                )

    def _tear_down(self) -> None:
        if self.link is not None:
            self.link.close()
        self.link, self._facts = None, {}
        gc.unfreeze()

    @property
    def _link(self) -> RobotLink:
        assert self.link is not None, "the lifecycle has configured it"
        return self.link

    def _serve_hold(self, asked: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Hold, or no longer; in every state of the node, and over all its transitions."""
        self._held = asked.data
        state = "unconfigured" if self.link is None else self.link.set_hold(asked.data)
        response.success, response.message = True, state
        return response

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As rclpy has it, but a wrong type is refused in words; what is set then takes effect.

        Not in the callback, which only asks whether it may; Humble has none for what was set.
        """
        try:
            policy_parameters.check_types(self, parameter_list)
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        result = super().set_parameters_atomically(parameter_list)
        if result.successful and self.link is not None:
            with self.link.runner.turn() as loop:
                policy_parameters.apply(loop, parameter_list)
        return result

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Whether they may be set, or why not."""
        try:
            if self.link is not None:
                policy_parameters.checked(self.link.loop, parameters)
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        """Publish the state; twice a second, and at once when holding begins or ends."""
        values, level = dict(self._facts), DiagnosticStatus.OK
        message, robot = self.failure or "unconfigured", ""
        if self.link is not None:
            self.link.look_after_topics()
            self.link.look_after_the_clock()
            loop = self.link.loop
            message, level, robot = loop.state, diagnostics.level(loop), loop.contract.name
            self._log(message)
            values.update(diagnostics.values(loop, self.link.problems, time.monotonic_ns()))
            values.update(self.link.look_after_trace())
        if self.failure:
            message, level = self.failure, DiagnosticStatus.ERROR
        now = self.get_clock().now().to_msg()
        name = f"{self.get_fully_qualified_name()}: policy"
        self._diagnostics.publish(diagnostics.message(name, robot, level, message, values, now))

    def _log(self, state: str) -> None:
        """Who looks at the terminal alone sees when it begins to hold, why, and when it ends."""
        kind, now_s = kind_of(state), time.monotonic()
        again_s = {said: at for said, at in self._log_again_s.items() if at > now_s}
        # What lasts is said in the end, however often it was said before.
        if kind != self._logged and kind not in again_s:
            self._logged, again_s[kind] = kind, now_s + LOG_S
            if state == "running":
                self.get_logger().info(state)
            elif not state.startswith("inactive"):
                self.get_logger().warning(state)
        self._log_again_s = again_s


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; 2 when it was to bring itself up and could not."""
    if told_of(__doc__, policy_parameters.declare, args):
        return 0
    # Until it has been brought up, which may take a minute, either ends it at once.
    raise_on_stop_signal()
    # So long has the inference thread to wait for the other one's Python at most, not 5 ms.
    sys.setswitchinterval(0.0001)
    try:
        start(args, signal_handler_options=SignalHandlerOptions.NO)
        return _run()
    except KeyboardInterrupt:
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        rclpy.try_shutdown()


def _run() -> int:
    node = PolicyNode()
    done: Future = Future()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if not policy_parameters.value(node, "autostart"):
            node.say_unconfigured()
        elif not node.bring_up():
            return EXIT_USER_ERROR
        on_stop_signal(lambda: done.set_result(None))
        executor.spin_until_future_complete(done)
        return 0
    finally:
        node.end()
        executor.shutdown()


if __name__ == "__main__":
    sys.exit(main())
