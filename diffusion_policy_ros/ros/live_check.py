"""A contract beside the running robot: who publishes what, as what, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.messages import TF_STATIC
from diffusion_policy_ros.data.definitions import name_types_of
from diffusion_policy_ros.data.watch import Finding, Watch
from diffusion_policy_ros.ros.message_types import reader
from diffusion_policy_ros.ros.processes import raise_on_stop_signal, start
from diffusion_policy_ros.ros.qos import publishers
from diffusion_policy_ros.ros.recorded_topics import RecordedTopics, alone_of

DISCOVERY_S, ATTEND_S = 2.0, 0.2


@dataclass(frozen=True)
class Seen:
    """What a look at a robot found.

    Attributes:
        rows: topic → type, who publishes it, rate, age, tf frame; as text.
        findings: what does not fit.
        frames: how many frames could be made.
    """

    rows: dict[str, tuple[str, ...]]
    findings: list[Finding]
    frames: str


def look(contract: Contract, seconds: float, ros_args: Sequence[str] = ()) -> Seen:
    """Listen to a robot for a while.

    Args:
        contract: what it should be.
        seconds: how long.
        ros_args: of the node, as ``-r __ns:=/left``.

    Raises:
        UserError: a type is neither installed nor known by its definition.
    """
    raise_on_stop_signal()
    words = ["--ros-args", *ros_args] if ros_args else []
    start(words, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node("contract_check")
        return _Look(node, contract).listen(seconds)
    finally:
        rclpy.try_shutdown()


class _Look:
    """The subscriptions of one look."""

    def __init__(self, node: Node, contract: Contract) -> None:
        name_types_of(contract)
        self._node, self._contract, self._watch = node, contract, Watch(contract)
        self._types = contract.recorded_topics
        self._topics = RecordedTopics(node, self._types, (), False, self._take)

    def listen(self, seconds: float) -> Seen:
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        try:
            self._spin(executor, DISCOVERY_S, until_heard=True)
            self._spin(executor, seconds)
            findings = [*self._of_publishers(), *self._of_listeners()]
            unheard = self._topics.problems()  # nobody publishes it, or as something else
            findings += [f for f in self._watch.findings() if f.topic not in unheard]
            rows = {topic: self._row(topic) for topic in self._types}
        finally:
            executor.shutdown()
            self._node.destroy_node()
        return Seen(rows, findings, self._watch.frames)

    def _spin(
        self, executor: SingleThreadedExecutor, seconds: float, until_heard: bool = False
    ) -> None:
        end = now = attended = time.monotonic()
        end += seconds
        while now < end and not (until_heard and self._all_heard()):
            executor.spin_once(timeout_sec=min(0.05, end - now))
            now = time.monotonic()
            if now - attended > ATTEND_S:
                self._topics.attend()
                attended = now
            self._watch.poll(time.monotonic_ns())

    def _all_heard(self) -> bool:
        return all(self._topics.arrivals[topic].count for topic in self._contract.topics)

    def _take(self, topic: str, data: bytes) -> None:
        msg = reader(self._types[topic])(memoryview(data))
        now_ns = self._node.get_clock().now().nanoseconds
        self._watch.note(topic, msg, time.monotonic_ns(), now_ns)

    def _row(self, topic: str) -> tuple[str, ...]:
        names = sorted(info.node_name for info in publishers(self._node, topic))
        return (self._types[topic], ", ".join(names) or "nobody", *self._watch.row(topic))

    def _of_publishers(self) -> Iterator[Finding]:
        problems = self._topics.problems()
        for topic in self._types:
            if topic not in problems:
                yield from self._of_offers(topic)
            elif publishers(self._node, topic):
                yield Finding(topic, problems[topic], "mend type:, or the driver")
            elif topic in self._contract.topics:
                yield Finding(topic, "nobody publishes it", "start its driver, or mend topic:")
            else:
                what = "nobody publishes these commands"
                yield Finding(topic, what, "needed to record, not to run", wrong=False)
        for topic, who in self._topics.crowds(alone_of(self._contract)).items():
            what, _, cure = who.partition("; ")
            yield Finding(topic, what, cure)

    def _of_offers(self, topic: str) -> Iterator[Finding]:
        """What quality of service is asked for and not offered."""
        streams = self._contract.topics.get(topic, [])
        offers = [(i.node_name, i.qos_profile) for i in publishers(self._node, topic)]
        for name, offer in offers:
            less = offer.reliability == ReliabilityPolicy.BEST_EFFORT
            if less and any(stream.qos == "reliable" for stream in streams):
                what = f"{name} offers best effort, the contract asks for reliable"
                yield Finding(topic, what, "leave qos: out, or have it offer more")
            keeps = offer.durability == DurabilityPolicy.TRANSIENT_LOCAL
            if streams and streams[0].static and not keeps and topic != TF_STATIC:
                what = f"{name} keeps nothing for who comes later, the contract says static"
                cure = "have it publish transient local, or now and then"
                yield Finding(topic, what, cure, wrong=False)

    def _of_listeners(self) -> Iterator[Finding]:
        """Who should take set-points, where that is not the player's own topic."""
        for output in self._contract.outputs:
            if output.topic.startswith("~") or "/action/" in output.type:
                continue
            name = self._node.resolve_topic_name(output.topic)
            types = {i.topic_type for i in self._node.get_subscriptions_info_by_topic(name)}
            if types and output.type not in types:
                what = f"who listens takes {', '.join(sorted(types))}, not {output.type}"
                yield Finding(output.topic, what, "mend send: {type: ...}")
