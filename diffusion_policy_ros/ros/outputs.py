"""Where set-points go: one publisher a topic, one client an action."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rclpy.action import ActionClient
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future

from diffusion_policy_ros.contract import ActionField, Contract, Output, Send
from diffusion_policy_ros.ros.encoders import Told, action_class, encode, looks_ahead
from diffusion_policy_ros.ros.message_types import message_class

SET_POINT_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
"""Controllers ask for reliable delivery as often as for best effort, and this offer serves both;
with a depth of one nothing is sent again once there is something newer."""
CHANGE = 0.01
"""A goal is sent anew where it differs by more than this share of the gripper's range, or where it
has come to rest: a network's noise in a gripper's width is no reason to start over."""
REST_NS = 200_000_000
"""What has differed by no more for so long has come to rest, and is sent once as it then is."""
RETRY_S = 1.0


class TopicOutput:
    """A topic that is told every set-point.

    Args:
        node: publishes, while it is active.
        output: topic, type and fields.
    """

    def __init__(self, node: LifecycleNode, output: Output) -> None:
        self._node, self.output = node, output
        kind = message_class(output.type)
        self._publisher = node.create_lifecycle_publisher(kind, output.topic, SET_POINT_QOS)
        self.name, self.problem = self._publisher.topic_name, ""

    def tell(self, told: Told) -> None:
        """Publish it."""
        self._publisher.publish(encode(self.output, told))

    def forget(self) -> None:
        """Nothing is kept that would have to be told again."""

    def destroy(self) -> None:
        """Be no more."""
        self._node.destroy_lifecycle_publisher(self._publisher)


class ActionOutput:
    """An action server that is sent a goal when what it is told changes.

    Args:
        node: has the client.
        output: topic, type and fields.

    Attributes:
        problem: why the newest goal is not executed; empty when it is.

    Raises:
        UserError: the action's package is not installed.
    """

    def __init__(self, node: LifecycleNode, output: Output) -> None:
        self._node, self.output = node, output
        self._client: Any = ActionClient(node, action_class(output.type), output.topic)
        self.name, self.problem = node.resolve_service_name(output.topic), ""
        self._part = output.fields[0]
        self._low, self._high = min(_ends(self._part)), max(_ends(self._part))
        self.forget()

    def forget(self) -> None:
        """Send the next one whatever it is: somebody else may have moved the gripper."""
        self._sent: float | None = None
        self._before: float | None = None
        self._sent_ns, self._rested, self._retry_s = 0, False, 0.0

    def tell(self, told: Told) -> None:
        """Send a goal if it is news; one that is not accepted is sent again a second later."""
        value = float(told.set_point[self._part.name][0])
        self._low, self._high = min(self._low, value), max(self._high, value)
        rests, self._before = value == self._before, value
        if self._sent is not None and not self._is_news(abs(value - self._sent), rests, told):
            return
        if time.monotonic() < self._retry_s:
            return
        if not self._client.server_is_ready():
            self._fail("nobody serves it")
            return
        self._sent, self._sent_ns = value, told.time_ns
        goal = encode(self.output, told)
        self._client.send_goal_async(goal).add_done_callback(self._on_answer)

    def _is_news(self, moved: float, rests: bool, told: Told) -> bool:
        """Whether what is told differs from what was sent by more than a network's noise."""
        if moved > CHANGE * (self._high - self._low):
            self._rested = False
            return True
        calm = not self._rested and told.time_ns - self._sent_ns >= REST_NS
        self._rested = self._rested or rests or calm
        return moved > 0 and (rests or calm)

    def _on_answer(self, future: Future) -> None:
        answer = future.result()
        if answer is not None and answer.accepted:
            self.problem = ""
        else:
            self._fail("the goal was rejected")

    def _fail(self, problem: str) -> None:
        self.problem, self._sent = problem, None
        self._retry_s = time.monotonic() + RETRY_S

    def destroy(self) -> None:
        """Be no more."""
        self._client.destroy()


def _ends(part: ActionField) -> list[float]:
    """Between which values a gripper's width or angle is, as the contract says; else it is from 0
    to the farthest that was told.
    """
    send, limits = part.send, part.limits
    if limits.min is not None and limits.max is not None:
        return [float(np.min(limits.min)), float(np.max(limits.max))]
    said = part.role == "scalar" and (send.open, send.closed) != (Send.open, Send.closed)
    return [send.open, send.closed] if said else [0.0]


class Outputs:
    """All that a contract's action is sent to.

    Args:
        node: publishes, while it is active.
        contract: says what goes where.

    Attributes:
        looks_ahead: whether one of them wants to know what comes next.

    Raises:
        UserError: a message or action is not installed.
    """

    def __init__(self, node: LifecycleNode, contract: Contract) -> None:
        self.looks_ahead = any(looks_ahead(output) for output in contract.outputs)
        self._outputs: list[TopicOutput | ActionOutput] = []
        try:
            for output in contract.outputs:
                kind = ActionOutput if "/action/" in output.type else TopicOutput
                self._outputs.append(kind(node, output))
        except BaseException:
            self.destroy()
            raise

    def __iter__(self) -> Iterator[TopicOutput | ActionOutput]:
        return iter(self._outputs)

    def tell(self, told: Told) -> None:
        """Tell every topic whose fields have all been commanded."""
        for output in self._outputs:
            if all(part.name in told.set_point for part in output.output.fields):
                output.tell(told)

    def forget(self) -> None:
        """What comes next is news to everybody."""
        for output in self._outputs:
            output.forget()

    def destroy(self) -> None:
        """Take all down."""
        for output in self._outputs:
            output.destroy()
        self._outputs.clear()
