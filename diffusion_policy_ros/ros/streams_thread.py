"""The contracted topics, with a thread of their own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.subscription import Subscription

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.ros.streams import Streams

FOREVER_NS = 1_000_000_000
"""The longest that messages are waited for: then it is looked whether the process ends."""


class NotByExecutor(MutuallyExclusiveCallbackGroup):
    """Of subscriptions that somebody else takes the messages of."""

    def can_execute(self, entity: Any) -> bool:
        """Never."""
        return False


class StreamsThread(Streams):
    """Takes the messages of a contract's topics on a thread that waits for nothing else.

    rclpy's executor looks through every timer, service and subscription of a node each time that
    it wakes up: 0.35 ms until the first message of a frame is handed over, and 0.6 ms after the
    last one, while the chunk is being made.

    Args:
        node: subscribes; its executor, if it spins, is given the thread's errors.
        contract: names topics and types.
        on_message: called on the thread with topic, as the contract names it, and message.
        on_time: called on the thread before it waits; says for how many ns it may.

    Raises:
        UserError: a message type is not installed.
    """

    def __init__(
        self,
        node: Node,
        contract: Contract,
        on_message: Callable[[str, Any], None],
        on_time: Callable[[], int],
    ) -> None:
        super().__init__(node, contract, on_message, NotByExecutor())
        self._on_time, self._changing = on_time, threading.Lock()
        self._failure: Exception | None = None
        self._failed = node.create_guard_condition(self._raise)
        self._wakes = GuardCondition(callback=None, callback_group=None, context=node.context)
        self._ended = False
        self._thread = threading.Thread(target=self._receive, name="messages", daemon=True)

    def start(self) -> None:
        """Begin to hand over messages."""
        self._thread.start()

    def destroy(self) -> None:
        """Unsubscribe from all, after what is being handed over."""
        self._ended = True
        if self._thread.is_alive():
            self.wake()
            self._thread.join()
        super().destroy()
        self._node.destroy_guard_condition(self._failed)
        self._wakes.destroy()

    def wake(self) -> None:
        """Have `on_time` called now."""
        self._wakes.trigger()

    def _raise(self) -> None:
        """On the executor's thread, whose errors end the node."""
        if self._failure is not None:
            raise self._failure

    def _receive(self) -> None:
        try:
            handle: Any = self._node.context.handle
            wait_set = rclpy_implementation.WaitSet(len(self._types), 1, 0, 0, 0, 0, handle)
            while not self._ended and self._node.context.ok():
                self._wait(wait_set, self._on_time())
                self._drain()
        except rclpy_implementation.InvalidHandle:
            return  # the node has been destroyed
        except Exception as error:
            self._failure = error
            self._failed.trigger()

    def _wait(self, wait_set: Any, limit_ns: int) -> None:
        """Until there are messages, or it is woken; as `rclpy.wait_for_message` does it."""
        with contextlib.ExitStack() as used:
            with self._changing:
                handles = [subscription.handle for subscription in self._subscriptions.values()]
                for handle in (self._wakes.handle, *handles):
                    used.enter_context(handle)
            wait_set.clear_entities()
            wait_set.add_guard_condition(self._wakes.handle)
            for handle in handles:
                wait_set.add_subscription(handle)
            wait_set.wait(limit_ns)

    def _take(self, topic: str, subscription: Subscription) -> bool:
        try:
            return super()._take(topic, subscription)
        except rclpy_implementation.InvalidHandle:  # another has just taken its place
            return False

    def _subscribe_anew(self, topic: str) -> None:
        with self._changing:
            super()._subscribe_anew(topic)
        self.wake()
