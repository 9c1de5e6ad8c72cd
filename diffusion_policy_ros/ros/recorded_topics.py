"""The topics of a recording: subscribed as they appear, and what is wrong with them."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.subscription import Subscription

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.messages import TF_STATIC
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.message_types import serialized_class
from diffusion_policy_ros.ros.qos import crowd, publishers, subscription_qos
from diffusion_policy_ros.runtime.arrivals import Arrivals

DEPTH = 100
"""Messages kept until they are read: a slow disk must not cost any."""
ROS_OWN = ("/rosout", "/parameter_events")
SHARED = (
    "sensor_msgs/msg/JointState",
    "tf2_msgs/msg/TFMessage",
    "diagnostic_msgs/msg/DiagnosticArray",
)
"""Types that several nodes may publish on one topic."""


def wanted_of(contract: Contract, commands: bool) -> dict[str, str]:
    """Topic → type of what an episode must hold.

    Args:
        contract: names it.
        commands: whether somebody commands; nobody does while the policy runs.
    """
    if commands:
        return dict(contract.recorded_topics)
    return {topic: streams[0].type for topic, streams in contract.topics.items()}


def alone_of(contract: Contract) -> set[str]:
    """Topics that only one node may publish: what two say in turn contradicts itself."""
    observed = {
        topic
        for topic, streams in contract.topics.items()
        if not all(stream.names or stream.static or stream.tf for stream in streams)
    }
    return observed | {stream.topic for stream in contract.action.commands}


class RecordedTopics:
    """Subscriptions to what is wanted, to what may be there, or to all that is published.

    Args:
        node: subscribes.
        needed: topic → type, empty where any will do; an episode cannot begin without them.
        others: topics that are recorded where they are published.
        every: whether all others are, too.
        on_message: called with topic and bytes, as they came.
        static: topics whose last message holds for ever, whoever published it and how.

    Attributes:
        needed: topic → type.
        types: topic → message type, of what is subscribed to.
        unreadable: topic → why it cannot be.
        arrivals: topic → when its messages came, by the monotonic clock.

    Raises:
        UserError: a needed type is neither installed nor known.
    """

    def __init__(
        self,
        node: Node,
        needed: Mapping[str, str],
        others: Iterable[str],
        every: bool,
        on_message: Callable[[str, bytes], None],
        static: Collection[str] = (),
    ) -> None:
        self._node, self._on_message, self._every = node, on_message, every
        self.needed, self._others = dict(needed), tuple(others)
        self.types: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self.arrivals: dict[str, Arrivals] = {}
        self._inputs: dict[str, tuple[Subscription, QoSProfile]] = {}
        self._latched: dict[str, deque[bytes]] = {}
        self._static = frozenset(static)
        for topic, name in self.needed.items():
            if name:
                self._subscribe(topic, name)
        self.attend()

    @property
    def latched(self) -> list[tuple[str, bytes]]:
        """What was published once and is wanted in every episode."""
        return [(topic, data) for topic, kept in self._latched.items() for data in kept]

    @property
    def absent(self) -> list[str]:
        """What was asked for, but need not be there, and nobody publishes."""
        return [topic for topic in self._others if topic not in {*self.types, *self.unreadable}]

    def attend(self) -> None:
        """Subscribe to what has appeared, and anew where more is offered than was asked for."""
        for topic in self._asked():
            offers = publishers(self._node, topic)
            if not offers:
                continue
            name = self.needed.get(topic) or offers[0].topic_type
            try:
                self._subscribe(topic, name)
                self.unreadable.pop(topic, None)
            except UserError as error:
                self.unreadable[topic] = f"{name}: {error.what}; {error.cure}"

    def _asked(self) -> list[str]:
        asked = dict.fromkeys((*self.needed, *self._others))
        if self._every:
            own = self._node.get_name()
            for topic, _ in self._node.get_topic_names_and_types():
                hidden = any(part.startswith("_") for part in topic.split("/"))
                nodes = (
                    {info.node_name for info in publishers(self._node, topic)}
                    if not hidden
                    else ()
                )
                if topic not in ROS_OWN and set(nodes) - {own}:
                    asked.setdefault(topic)
        return list(asked)

    def problems(self) -> dict[str, str]:
        """Topic → what is wrong with it: nobody publishes it as it should be, or of what type."""
        found = {topic: f"{topic} cannot be recorded: {w}" for topic, w in self.unreadable.items()}
        for topic, wanted in self.needed.items():
            types = {info.topic_type for info in publishers(self._node, topic)}
            told = topic == TF_STATIC or (topic in self._static and self._latched.get(topic))
            if not types and not told:  # a tree may only move; what is static was said before
                found[topic] = f"nobody publishes {topic}" + (f" ({wanted})" if wanted else "")
            elif types and wanted and wanted not in types:
                was = ", ".join(sorted(types))
                found[topic] = f"{topic} is {was}, the contract says {wanted}"
        return found

    def missing(self) -> list[str]:
        """Why an episode cannot begin."""
        found = [why for topic, why in self.problems().items() if topic in self.needed]
        return found if found or self.types else ["nobody publishes anything"]

    def figures(self, problems: Mapping[str, str]) -> dict[str, object]:
        """How every topic is, for diagnostics: count, rate, age, and what is wrong with it."""
        now_ns, found = time.monotonic_ns(), dict[str, object]()
        for topic in dict.fromkeys((*self.types, *problems)):
            came = self.arrivals.get(topic, Arrivals())
            age_s = came.age_s(now_ns)
            found[f"{topic}.count"] = came.count
            found[f"{topic}.rate_hz"] = f"{came.rate_hz(now_ns):.1f}"
            found[f"{topic}.age_s"] = "never" if age_s is None else f"{age_s:.3f}"
            if problems.get(topic):
                found[f"{topic}.problem"] = problems[topic]
        return found

    def crowds(self, alone: Iterable[str] | None) -> dict[str, str]:
        """Topic → who publishes it, where only one may.

        Args:
            alone: the topics; all but those of `SHARED` types where it is not known.
        """
        if alone is None:
            alone = [topic for topic, name in self.types.items() if name not in SHARED]
        found = {topic: crowd(self._node, topic) for topic in alone}
        return {topic: who for topic, who in found.items() if who}

    def take_queued(self) -> None:
        """Take what came already: the last of an episode, or what came before one and is none.

        It would be noted later, with the time of then.
        """
        for topic, (subscription, _) in self._inputs.items():
            for _ in range(DEPTH):
                with subscription.handle:
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                if taken is None:
                    break
                self._take(topic, taken[0])

    def _subscribe(self, topic: str, type_name: str) -> None:
        kind = serialized_class(type_name)
        static = topic in self._static
        qos = subscription_qos(self._node, topic, DEPTH, latched=static)
        if topic in self._inputs:
            subscription, before = self._inputs[topic]
            if (qos.reliability, qos.durability) == (before.reliability, before.durability):
                return
            self._node.destroy_subscription(subscription)
        if static or qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
            # Of one publisher only the newest holds: a gripper's commands of before do not.
            kept = DEPTH if type_name in SHARED else 1
            self._latched[topic] = deque(self._latched.get(topic, ()), kept)
        self.types[topic] = type_name
        self.arrivals.setdefault(topic, Arrivals())
        take = functools.partial(self._take, topic)
        made = self._node.create_subscription(kind, topic, take, qos, raw=True)
        self._inputs[topic] = (made, qos)

    def _take(self, topic: str, data: bytes) -> None:
        self.arrivals[topic].note(time.monotonic_ns(), None)
        self._on_message(topic, data)
        if topic in self._latched:
            self._latched[topic].append(data)
