"""Records demonstrations: `episode_recorder --ros-args -p contract:=my_arm.yaml -p out:=bags`.

Services `~/start`, `~/stop` (keep) and `~/discard`, all `std_srvs/Trigger`; one rosbag2 (MCAP) an
episode, with the contract's text in it. The messages are written as they came, never decoded.
A recording that is interrupted keeps what came until then. A run of the policy is recorded with
`commands:=false` and `extra_topics:=['/policy_node/action_chunk', '/diagnostics']`.
"""

from __future__ import annotations

import functools
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.subscription import Subscription
from rclpy.task import Future
from std_srvs.srv import Trigger

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.messages import TF_STATIC
from diffusion_policy_ros.data.episode_writer import EpisodeWriter, new_episode
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.definitions import name_installed
from diffusion_policy_ros.ros.message_types import message_class
from diffusion_policy_ros.ros.parameters import check_overrides, declare, declare_described
from diffusion_policy_ros.ros.processes import run
from diffusion_policy_ros.ros.qos import publishers, subscription_qos

DEPTH = 100  # messages kept until they are read: a slow disk must not cost any
ATTEND_S = 0.5
DISCOVERY_S = 2.0  # what has just been started may not have been heard of yet


@dataclass(frozen=True)
class Settings:
    """The node's parameters that do not change; `declare_settings` has their descriptions."""

    contract: str
    out: str
    commands: bool
    extra_topics: tuple[str, ...]


def declare_settings(node: Node) -> Settings:
    """Declare the node's parameters.

    Raises:
        UserError: one was set to another type.
    """
    declare(node, "success", True, "noted with an episode when it is kept", live=True)
    about = ParameterDescriptor(description="topics to record beside the contract's: [/a, /b]")
    declare_described(node, "extra_topics", Parameter.Type.STRING_ARRAY, about)
    return Settings(
        contract=declare(node, "contract", "", "contract of the robot: a file or a shipped name"),
        out=declare(node, "out", "bags", "folder for the episodes"),
        commands=declare(node, "commands", True, "false: a run of the policy, nobody commands"),
        extra_topics=tuple(filter(None, node.get_parameter_or("extra_topics").value or ())),
    )


class EpisodeRecorder(Node):
    """Subscribes to what the contract names and writes it, one bag an episode.

    Raises:
        UserError: no contract, or one with mistakes; a message type is not installed.
    """

    def __init__(self) -> None:
        super().__init__("episode_recorder")
        self.finished: Future[bool] = Future()
        settings = declare_settings(self)
        check_overrides(self)
        self._out = Path(settings.out)
        if not settings.contract:
            raise UserError(
                "no contract", self.get_name(), "give -p contract:=FILE or a shipped name"
            )
        self._contract = Contract.load(settings.contract)
        self._types: dict[str, str | None] = dict.fromkeys(settings.extra_topics)
        self._wanted = dict(self._contract.recorded_topics)
        if not settings.commands:
            self._wanted = {s.topic: s.type for s in self._contract.observations.values()}
        self._types |= self._wanted
        self._recording: EpisodeWriter | None = None
        self._failed = ""
        self._inputs: dict[str, tuple[Subscription, QoSProfile]] = {}
        self._latched: dict[str, deque[bytes]] = {}
        for verb in (self.start, self.stop, self.discard):
            self.create_service(
                Trigger, f"~/{verb.__name__}", functools.partial(_answer, self, verb)
            )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(ATTEND_S, self._attend, clock=steady)
        self._attend()
        where = self._out.resolve()
        self.get_logger().info(f"recorder of {self._contract.name} into {where}: call ~/start")

    # -------------------------------------------------------------------------------- services

    def start(self) -> str:
        """Begin an episode.

        Raises:
            UserError: one is being recorded, or a contracted topic is not published rightly.
        """
        if self._recording is not None:
            cure = "stop or discard it first"
            raise UserError("an episode is being recorded", str(self._recording.path), cure)
        deadline = time.monotonic() + DISCOVERY_S
        while (silent := self._silent()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if silent:
            raise UserError("; ".join(silent), "not recording", "start the robot's drivers")
        self._attend()
        self._failed = ""
        topics = {topic: name for topic, name in self._types.items() if name is not None}
        name_installed(topics.values())
        bag = new_episode(self._out, topics, {"contract": self._contract.text})
        self._skip_queued()
        self._clock_ns = time.time_ns() - time.monotonic_ns()  # a stepped clock must not reorder
        self._recording = EpisodeWriter(bag, [t for t, n in topics.items() if _is_stamped(n)])
        for topic, kept in self._latched.items():
            for data in kept:
                self._recording.put(topic, self._now_ns(), data)
        absent = ", ".join(topic for topic, name in self._types.items() if name is None)
        without = f" without {absent}: nobody publishes it yet" if absent else ""
        return f"recording {bag.path}{without}"

    def stop(self) -> str:
        """End the episode and keep it; says what came on each topic."""
        success = str(bool(self.get_parameter("success").value)).lower()
        report = self._ended().keep({"success": success})
        silent = [topic for topic, came in report.topics.items() if not came.times_ns]
        if report.fault or report.lost or silent:
            raise UserError(f"kept, but not whole: {report}", "episode", "look before you use it")
        return f"kept {report}"

    def discard(self) -> str:
        """End the episode and remove it."""
        recording = self._ended()
        recording.discard()
        return f"discarded {recording.path}"

    def close(self) -> None:
        """End and keep what is being recorded."""
        if self._recording is not None:
            report = self._ended().keep()
            self.get_logger().warning(f"interrupted; kept {report}")

    def _ended(self) -> EpisodeWriter:
        recording, self._recording = self._recording, None
        if recording is None and self._failed:
            raise UserError(self._failed, "the episode failed", "mend that, then call ~/start")
        if recording is None:
            raise UserError("nothing is being recorded", self.get_name(), "call ~/start first")
        return recording

    # ---------------------------------------------------------------------------------- topics

    def _silent(self) -> list[str]:
        """What is wrong with the publishers of the contract's topics."""
        found = []
        for topic, wanted in self._wanted.items():
            types = {info.topic_type for info in publishers(self, topic)}
            if not types and topic != TF_STATIC:  # a tree may only move
                found.append(f"nobody publishes {topic} ({wanted})")
            elif types and wanted not in types:
                found.append(f"{topic} is {', '.join(sorted(types))}, the contract says {wanted}")
        return found

    def _attend(self) -> None:
        """Subscribe to what has appeared, and anew where more is offered than was asked for."""
        for topic, name in list(self._types.items()):
            offers = publishers(self, topic)
            name = name or (offers[0].topic_type if offers else None)
            if name is not None and (offers or topic not in self._inputs):
                self._types[topic] = name
                self._subscribe(topic, name)
        if self._recording is not None and self._recording.fault:
            self._failed = f"kept what came before: {self._ended().keep()}"
            self.get_logger().error(f"the episode failed: {self._failed}")

    def _subscribe(self, topic: str, type_name: str) -> None:
        qos = subscription_qos(self, topic, DEPTH)
        if topic in self._inputs:
            subscription, before = self._inputs[topic]
            if (qos.reliability, qos.durability) == (before.reliability, before.durability):
                return
            self.destroy_subscription(subscription)
        if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
            self._latched[topic] = deque(maxlen=DEPTH)  # published once, wanted in every episode
        take = functools.partial(self._take, topic)
        made = self.create_subscription(message_class(type_name), topic, take, qos, raw=True)
        self._inputs[topic] = (made, qos)

    def _take(self, topic: str, data: bytes) -> None:
        if self._recording is not None:
            self._recording.put(topic, self._now_ns(), data)
        if topic in self._latched:
            self._latched[topic].append(data)

    def _skip_queued(self) -> None:
        """Pass over what came while this waited: it would be noted with the present time."""
        for topic, (subscription, _) in self._inputs.items():
            for _ in range(DEPTH):
                with subscription.handle:
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                if taken is None:
                    break
                self._take(topic, taken[0])

    def _now_ns(self) -> int:
        return time.monotonic_ns() + self._clock_ns


def _is_stamped(type_name: str) -> bool:
    return "header" in message_class(type_name).get_fields_and_field_types()


def _answer(node: Node, verb: Any, _: Trigger.Request, response: Trigger.Response) -> Any:
    """Call a service's method; a user's error is the answer."""
    try:
        response.message = verb()
        response.success = True
        node.get_logger().info(response.message)
    except UserError as error:
        response.message = str(error)
        node.get_logger().error(response.message)
    return response


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted."""
    return run(EpisodeRecorder, declare_settings, args)


if __name__ == "__main__":
    sys.exit(main())
