"""Quality of service that fits what the publishers offer.

A request that asks for more than is offered never matches, and DDS says so only in a log. Asking
for less always matches, but loses what the publisher would have repeated.
"""

from __future__ import annotations

from rclpy.exceptions import NameValidationException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.validate_full_topic_name import validate_full_topic_name
from rclpy.validate_topic_name import validate_topic_name

from diffusion_policy_ros.errors import UserError

LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""The newest message waits for who subscribes later."""


def subscription_qos(
    node: Node, topic: str, depth: int, asked: str = "", latched: bool = False
) -> QoSProfile:
    """The most that all publishers of a topic offer; best effort where there is none.

    Args:
        node: any node; its namespace and remappings apply to the topic.
        topic: the topic's name.
        depth: messages that are kept until they are read.
        asked: the reliability that is asked for whatever is offered, as `Stream.qos` has it.
        latched: whether what was published before is wanted, also of who begins later.

    Returns:
        Reliable where all publishers are, transient local where all are.
    """
    offers = [info.qos_profile for info in publishers(node, topic)]
    reliable = all(q.reliability == ReliabilityPolicy.RELIABLE for q in offers)
    kept = all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in offers)
    reliable = asked == "reliable" if asked else reliable and bool(offers or latched)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL
        if kept and (offers or latched)
        else DurabilityPolicy.VOLATILE,
    )


def wrong_name(error: NameValidationException) -> UserError:
    """What is no name of a topic, as a user's error."""
    what, name, *_ = str(error).splitlines()
    return UserError(what.rstrip(":"), name.strip(), "write it as /camera/image_raw")


def publishers(node: Node, topic: str) -> list:
    """What publishes a topic: endpoints with ``node_name``, ``topic_type`` and ``qos_profile``.

    Raises:
        UserError: it is no topic name.
    """
    try:  # what resolving raises for it does not say so
        validate_topic_name(topic)
        name, space = node.get_name(), node.get_namespace()
        validate_full_topic_name(expand_topic_name(topic, name, space))
    except NameValidationException as error:
        raise wrong_name(error) from None
    return node.get_publishers_info_by_topic(node.resolve_topic_name(topic))


def crowd(node: Node, topic: str) -> str:
    """Who publishes a topic, if more than one does: what they say in turn contradicts itself."""
    names = sorted(info.node_name for info in publishers(node, topic))
    listed = f"{len(names)} nodes publish it: {', '.join(names)}; end all but one"
    return listed if len(names) > 1 else ""


def matches(request: QoSProfile, offer: QoSProfile) -> bool:
    """Whether a subscription with this request receives from a publisher with this offer."""
    unreliable = (
        request.reliability == ReliabilityPolicy.RELIABLE
        and offer.reliability == ReliabilityPolicy.BEST_EFFORT
    )
    forgetful = (
        request.durability == DurabilityPolicy.TRANSIENT_LOCAL
        and offer.durability == DurabilityPolicy.VOLATILE
    )
    return not unreliable and not forgetful
