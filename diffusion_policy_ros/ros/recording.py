"""A recorder on a thread of this process, and what a person at a terminal asks of it.

It is asked without ROS: its services have the name of every other recorder that somebody runs in
the same domain, and would begin that one's episode.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import LoggingSeverity
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.episode_recorder import EpisodeRecorder, answer
from diffusion_policy_ros.ros.processes import start

ANSWER_S = 60.0
"""A disk may be slow to take the last of an episode."""


class Recording:
    """An `EpisodeRecorder` on a thread.

    Args:
        parameters: of the recorder.
        ros_args: for it, as ``-r __ns:=/left``.

    Raises:
        UserError: the parameters, or the contract, have mistakes.
    """

    def __init__(self, parameters: Mapping[str, Any], ros_args: Sequence[str] = ()) -> None:
        words = ["--ros-args", *ros_args] if ros_args else []
        start(words, signal_handler_options=SignalHandlerOptions.NO)
        try:
            given = [Parameter(name, value=value) for name, value in parameters.items()]
            self._recorder = EpisodeRecorder(parameter_overrides=given)
        except BaseException:
            rclpy.try_shutdown()
            raise
        self._recorder.get_logger().set_level(LoggingSeverity.FATAL)  # it is told here
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._recorder)
        self._thread = threading.Thread(target=self._serve, name="recorder", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """What the recorder says of itself: idle, recording where, failed why."""
        return self._recorder.text

    @property
    def values(self) -> dict[str, str]:
        """Its newest figures."""
        return {key: str(value) for key, value in self._recorder.figures.items()}

    @property
    def is_recording(self) -> bool:
        """Whether an episode is being recorded."""
        return self.text.startswith("recording")

    def ask(self, verb: str) -> str:
        """Have it start, stop or discard; its answer."""
        said: queue.SimpleQueue[str] = queue.SimpleQueue()
        method, response = getattr(self._recorder, verb), Trigger.Response()
        self._executor.create_task(
            lambda: said.put(answer(self._recorder, method, None, response).message)
        )
        try:
            return said.get(timeout=ANSWER_S)
        except queue.Empty:
            name = self._recorder.get_fully_qualified_name()
            raise UserError("the recorder does not answer", name, "look at the disk") from None

    def keep(self, success: bool) -> str:
        """Stop, with the label; its answer."""
        self._recorder.set_parameters([Parameter("success", value=success)])
        return self.ask("stop")

    def close(self) -> str:
        """End; what is being recorded is kept, and told."""
        self._executor.shutdown()
        self._thread.join()
        kept = self._recorder.close()
        self._recorder.destroy_node()
        rclpy.try_shutdown()
        return kept

    def _serve(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()
