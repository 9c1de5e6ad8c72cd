"""A recorder in this process, and what a person at a terminal asks of it: its services alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter as ParameterMsg, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import LoggingSeverity
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_srvs.srv import Trigger

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.episode_recorder import EpisodeRecorder
from diffusion_policy_ros.ros.processes import start

ANSWER_S = 60.0
"""A disk may be slow to take the last of an episode."""


class Recording:
    """An `EpisodeRecorder` on a thread, and a client of it here.

    Args:
        parameters: of the recorder.
        ros_args: for both nodes, as ``-r __ns:=/left``.

    Attributes:
        text: what the recorder says of itself: idle, recording where, failed why.
        values: its newest figures.

    Raises:
        UserError: the parameters, or the contract, have mistakes.
    """

    def __init__(self, parameters: Mapping[str, Any], ros_args: Sequence[str] = ()) -> None:
        words = ["--ros-args", *ros_args] if ros_args else []
        start(words, signal_handler_options=SignalHandlerOptions.NO)
        self.text, self.values = "", dict[str, str]()
        try:
            given = [Parameter(name, value=value) for name, value in parameters.items()]
            self._recorder = EpisodeRecorder(parameter_overrides=given)
        except BaseException:
            rclpy.try_shutdown()
            raise
        self._recorder.get_logger().set_level(LoggingSeverity.FATAL)  # it is told here
        self._name = self._recorder.get_fully_qualified_name()
        self._node = rclpy.create_node("recording_terminal")
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._note, 10)
        self._triggers: dict[str, Any] = {
            verb: self._node.create_client(Trigger, f"{self._name}/{verb}")
            for verb in ("start", "stop", "discard")
        }
        self._parameters: Any = self._node.create_client(
            SetParameters, f"{self._name}/set_parameters"
        )
        self._executor, self._recorders = SingleThreadedExecutor(), SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._recorders.add_node(self._recorder)
        self._thread = threading.Thread(target=self._serve, name="recorder", daemon=True)
        self._thread.start()

    @property
    def is_recording(self) -> bool:
        """Whether an episode is being recorded, as far as the recorder has said."""
        return self.text.startswith("recording")

    def ask(self, verb: str) -> str:
        """Have it start, stop or discard; its answer."""
        answer = self._answer(self._triggers[verb], Trigger.Request())
        begun = verb == "start" and answer.success
        self.text = answer.message if begun else self.text if verb == "start" else "idle"
        return str(answer.message)

    def keep(self, success: bool) -> str:
        """Stop, with the label; its answer."""
        value = ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=success)
        request = SetParameters.Request(parameters=[ParameterMsg(name="success", value=value)])
        self._answer(self._parameters, request)
        return self.ask("stop")

    def spin(self, seconds: float) -> None:
        """Hear what the recorder says, for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def close(self) -> None:
        """End; what is being recorded is kept."""
        self._executor.shutdown()
        self._recorders.shutdown()
        self._thread.join()
        self._recorder.close()
        self._recorder.destroy_node()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _serve(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._recorders.spin()

    def _answer(self, client: Any, request: Any) -> Any:
        if not client.wait_for_service(ANSWER_S):
            raise UserError(f"{client.srv_name} is not there", self._name, "start it again")
        future: Future[Any] = client.call_async(request)
        self._executor.spin_until_future_complete(future, ANSWER_S)
        if not future.done():
            raise UserError("the recorder does not answer", self._name, "look at the disk")
        return future.result()

    def _note(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.name == f"{self._name}: recorder":
                self.text = status.message
                self.values = {entry.key: entry.value for entry in status.values}
