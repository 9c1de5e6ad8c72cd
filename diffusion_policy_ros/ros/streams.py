"""The contracted topics, subscribed; and what keeps one of them silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.messages import TF_STATIC
from diffusion_policy_ros.data.definitions import name_types_of
from diffusion_policy_ros.ros.message_types import reader, serialized_class
from diffusion_policy_ros.ros.qos import crowd, matches, publishers, subscription_qos

IMAGES, VECTORS = 10, 200
"""Messages kept until they are read: half a second of a 20 Hz camera, of a 400 Hz arm."""
ROUNDS = 20
"""Messages of each topic that are handed over at once; then everything else has its turn, also
where somebody publishes faster than we can take."""


class Streams:
    """Subscriptions to every topic that a contract observes.

    Args:
        node: subscribes.
        contract: names topics and types.
        on_message: called with topic, as the contract names it, and message.
        group: of the subscriptions; the node's own where not given.

    Raises:
        UserError: a message type is neither installed nor known by its definition.
    """

    def __init__(
        self,
        node: Node,
        contract: Contract,
        on_message: Callable[[str, Any], None],
        group: CallbackGroup | None = None,
    ) -> None:
        name_types_of(contract)
        self._node, self._on_message, self._group = node, on_message, group
        self._streams = contract.topics
        self._types = {topic: streams[0].type for topic, streams in contract.topics.items()}
        self._depths = {
            topic: IMAGES if streams[0].is_image else VECTORS
            for topic, streams in contract.topics.items()
        }
        self._subscriptions: dict[str, Subscription] = {}
        for topic in self._types:
            self._subscribe(topic)

    def destroy(self) -> None:
        """Unsubscribe from all."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def attend(self, topic: str, silent: bool = True) -> str:
        """Look after a topic: subscribe anew where the publishers offer other QoS now.

        Args:
            topic: as the contract names it.
            silent: whether nothing comes on it.

        Returns:
            What is wrong with its publishers; empty when nothing is.
        """
        found, wanted = publishers(self._node, topic), self._types[topic]
        same = [info for info in found if info.topic_type == wanted]
        if not same:
            missed = silent and (found or topic != TF_STATIC)  # a tree may only move
            return self._nobody(found, wanted) if missed else ""
        request = self._subscriptions[topic].qos_profile
        unmatched = [info for info in same if not matches(request, info.qos_profile)]
        if unmatched and subscription_qos(*self._qos(topic)) != request:
            self._subscribe_anew(topic)
        elif unmatched:
            asked = self._streams[topic][0].qos
            return f"{unmatched[0].node_name} offers less than the contract's qos: {asked}"
        # Drivers of different joints share a topic; each stream takes what holds its own.
        shared = all(stream.names or stream.static or stream.tf for stream in self._streams[topic])
        return "" if silent or shared else crowd(self._node, topic)

    def _nobody(self, found: list, wanted: str) -> str:
        if not found:
            return "nobody publishes it"
        other = found[0]
        return f"{other.node_name} publishes it as {other.topic_type}, not as {wanted}"

    def _qos(self, topic: str) -> tuple[Node, str, int, str, bool]:
        """What `subscription_qos` is asked for a topic."""
        first = self._streams[topic][0]
        return self._node, topic, self._depths[topic], first.qos, first.static

    def _subscribe_anew(self, topic: str) -> None:
        self._node.destroy_subscription(self._subscriptions.pop(topic))
        self._subscribe(topic)

    def _deliver(self, topic: str, data: bytes) -> None:
        """Hand over this message and what has come since, on whatever topic.

        The executor takes 0.3 ms for each message, and a frame needs one of every topic. This is
        how `rclpy.wait_for_message` takes them, too.
        """
        self._hand_over(topic, data)
        self._drain()

    def _hand_over(self, topic: str, data: bytes) -> None:
        self._on_message(topic, reader(self._types[topic])(memoryview(data)))

    def _drain(self) -> None:
        for _ in range(ROUNDS):
            # A sum, not any(): one of every topic in each round, so that none is drained first.
            if not sum(self._take(*entry) for entry in list(self._subscriptions.items())):
                return

    def _take(self, topic: str, subscription: Subscription) -> bool:
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, True)
        if taken is not None:
            self._hand_over(topic, taken[0])
        return taken is not None

    def _subscribe(self, topic: str) -> None:
        self._subscriptions[topic] = self._node.create_subscription(
            serialized_class(self._types[topic]),
            topic,
            lambda data: self._deliver(topic, data),
            subscription_qos(*self._qos(topic)),
            callback_group=self._group,
            raw=True,
            # rclpy's warning of QoS that does not match, which `attend` mends, costs every message
            # some 10 us in the executor.
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
        )
