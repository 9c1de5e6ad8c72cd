"""Records demonstrations: `episode_recorder --ros-args -p contract:=my_arm.yaml -p out:=bags`.

Services `~/start`, `~/stop` (keep) and `~/discard`, all `std_srvs/Trigger`; one rosbag2 (MCAP) an
episode, with the contract's text in it; `/diagnostics` say how every topic is. The messages are
written as they came, never decoded. A recording that is interrupted keeps what came until then.
Before there is a contract, `all:=true` records all that is published, or `topics:=['/a', '/b']`
these; `diffusion-policy record` is all of it in a terminal. A run of the policy is recorded with
`commands:=false` and `extra_topics:=['/policy_node/action_chunk', '/diagnostics']`.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from std_srvs.srv import Trigger

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.messages import TF_STATIC
from diffusion_policy_ros.data.definitions import name_types_of
from diffusion_policy_ros.data.draft import is_command
from diffusion_policy_ros.data.episode_writer import EpisodeReport, EpisodeWriter, new_episode
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.definitions import name_installed
from diffusion_policy_ros.ros.diagnostics import message
from diffusion_policy_ros.ros.message_types import has_header
from diffusion_policy_ros.ros.parameters import check_overrides, declare, declare_described
from diffusion_policy_ros.ros.processes import run
from diffusion_policy_ros.ros.recorded_topics import RecordedTopics, alone_of, wanted_of

ATTEND_S = 0.5
DISCOVERY_S = 2.0  # what has just been started may not have been heard of yet


@dataclass(frozen=True)
class Settings:
    """The node's parameters that do not change; `declare_settings` has their descriptions."""

    contract: str
    out: str
    commands: bool
    all: bool
    topics: tuple[str, ...]
    extra_topics: tuple[str, ...]


def declare_settings(node: Node) -> Settings:
    """Declare the node's parameters.

    Raises:
        UserError: one was set to another type.
    """
    declare(node, "success", True, "noted with an episode when it is kept", live=True)
    declare(node, "task", "", "what is done, in words; noted when an episode begins", live=True)

    def listed(name: str, description: str) -> tuple[str, ...]:
        about = ParameterDescriptor(description=description)
        declare_described(node, name, Parameter.Type.STRING_ARRAY, about)
        return tuple(filter(None, node.get_parameter_or(name).value or ()))

    return Settings(
        contract=declare(node, "contract", "", "contract of the robot: a file or a shipped name"),
        out=declare(node, "out", "bags", "folder for the episodes"),
        commands=declare(node, "commands", True, "false: a run of the policy, nobody commands"),
        all=declare(node, "all", False, "record all that is published, with or without contract"),
        topics=listed("topics", "topics to record where there is no contract yet: [/a, /b]"),
        extra_topics=listed("extra_topics", "topics to record beside the contract's: [/a, /b]"),
    )


class EpisodeRecorder(Node):
    """Subscribes to what the contract names, or to what is there; writes one bag an episode.

    Args:
        options: of the node.

    Attributes:
        figures: of the newest report, see `_report`.

    Raises:
        UserError: nothing to record was named, or a contract with mistakes; a message type is
            neither installed nor known.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("episode_recorder", **options)
        self.finished: Future[bool] = Future()
        self._settings = declare_settings(self)
        check_overrides(self)
        self._contract = self._load()
        needed, static = dict.fromkeys(self._settings.topics, ""), set[str]()
        if self._contract is not None:
            needed |= wanted_of(self._contract, self._settings.commands)
            static = {t for t, streams in self._contract.topics.items() if streams[0].static}
        self._recording: EpisodeWriter | None = None
        self.figures: dict[str, object] = {}
        self._begun_s, self._built_s, self._failed = 0.0, time.monotonic(), ""
        self._crowds: dict[str, str] = {}
        self._ends = dict.fromkeys(("success", "failure", "discarded"), 0)
        self.topics = RecordedTopics(
            self, needed, self._settings.extra_topics, self._settings.all, self._take, static
        )
        for verb in (self.start, self.stop, self.discard):
            self.create_service(
                Trigger, f"~/{verb.__name__}", functools.partial(answer, self, verb)
            )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(ATTEND_S, self._attend, clock=steady)
        of = self._contract.name if self._contract is not None else "whatever is there"
        where = Path(self._settings.out).resolve()
        self.get_logger().info(f"recorder of {of} into {where}: call ~/start")

    def _load(self) -> Contract | None:
        settings = self._settings
        if settings.contract:
            contract = Contract.load(settings.contract)
            name_types_of(contract)
            return contract
        if settings.all or settings.topics:
            return None
        cure = "give -p contract:=FILE or a shipped name; before there is one, -p all:=true"
        raise UserError("no contract", self.get_name(), cure)

    @property
    def text(self) -> str:
        """How it is: idle, recording where, failed why."""
        recording = self._recording
        return self._failed or (f"recording {recording.path}" if recording else "idle")

    # -------------------------------------------------------------------------------- services

    def start(self) -> str:
        """Begin an episode.

        Raises:
            UserError: one is being recorded, or a needed topic is not published rightly.
        """
        if self._recording is not None:
            cure = "stop or discard it first"
            raise UserError("an episode is being recorded", str(self._recording.path), cure)
        if missing := self._until_there():
            raise UserError("; ".join(missing), "not recording", "start the robot's drivers")
        self._failed, self._crowds = "", {}
        topics = dict(self.topics.types)
        name_installed(topics.values())
        noted = {"contract": self._contract.text} if self._contract is not None else {}
        if task := str(self.get_parameter("task").value).strip():
            noted["task"] = task
        bag = new_episode(Path(self._settings.out), topics, noted)
        self.topics.take_queued()
        self._clock_ns = time.time_ns() - time.monotonic_ns()  # a stepped clock must not reorder
        self._recording = EpisodeWriter(bag, [t for t, n in topics.items() if has_header(n)])
        self._begun_s = time.monotonic()
        for topic, data in self.topics.latched:
            self._recording.put(topic, self._now_ns(), data)
        absent = ", ".join(self.topics.absent)
        unread = "".join(f"; without {t} ({why})" for t, why in self.topics.unreadable.items())
        without = f" without {absent}: nobody publishes it yet" if absent else ""
        return f"recording {bag.path}{without}{unread}"

    def stop(self) -> str:
        """End the episode and keep it; says what came on each topic."""
        success = bool(self.get_parameter("success").value)
        report, remarks = self._keep({"success": str(success).lower()})
        self._ends["success" if success else "failure"] += 1
        wrong = [*self._dead(report), *remarks]
        if report.fault or report.lost or wrong:
            what = "; ".join(["kept, but not whole", *wrong, str(report)])
            raise UserError(what, "episode", "look before you use it")
        return f"kept {report}"

    def discard(self) -> str:
        """End the episode and remove it."""
        recording = self._ended()
        recording.discard()
        self._ends["discarded"] += 1
        return f"discarded {recording.path}"

    def close(self) -> str:
        """End and keep what is being recorded; says what came, nothing where nothing was."""
        if self._recording is None:
            return ""
        report, remarks = self._keep({})
        said = "; ".join([str(report), *remarks])
        self.get_logger().warning(f"interrupted; kept {said}")
        return said

    def _keep(self, metadata: dict[str, str]) -> tuple[EpisodeReport, list[str]]:
        """The bag, finished, and what is odd about who published what."""
        self.topics.take_queued()
        recording = self._ended()
        remarks = [f"{topic}: {who}" for topic, who in self._crowds.items()]
        late = ", ".join(topic for topic in self.topics.types if topic not in recording.topics)
        remarks += [f"not recorded, for it came later: {late}"] if late else []
        noted = {"remarks": "; ".join(remarks)} if remarks else {}
        return recording.keep(metadata | noted), remarks

    def _dead(self, report: EpisodeReport) -> list[str]:
        """What should have gone on, and what nothing came of though it was asked for."""
        asked = {*self.topics.needed, *self._settings.extra_topics} - {TF_STATIC}
        nothing = [t for t, came in report.topics.items() if t in asked and not came.times_ns]
        died = [topic for topic in report.died if not is_command(topic)]
        if self._contract is not None:
            died = [topic for topic in report.died if topic in self._contract.topics]
        return [f"{t}: NOTHING" for t in nothing] + [f"{topic} DIED" for topic in died]

    def _ended(self) -> EpisodeWriter:
        recording, self._recording = self._recording, None
        if recording is None and self._failed:
            raise UserError(self._failed, "the episode failed", "mend that, then call ~/start")
        if recording is None:
            raise UserError("nothing is being recorded", self.get_name(), "call ~/start first")
        return recording

    # ---------------------------------------------------------------------------------- topics

    def _until_there(self) -> list[str]:
        """Wait until all that is needed is published; what is missing in the end."""
        now_s = time.monotonic()
        heard_s = self._built_s + DISCOVERY_S if self._settings.all else now_s
        deadline_s = now_s + DISCOVERY_S
        while True:
            self.topics.attend()
            missing, now_s = self.topics.missing(), time.monotonic()
            if now_s > deadline_s or not (missing or now_s < heard_s):
                return missing
            time.sleep(0.02)

    def _attend(self) -> None:
        self.topics.attend()
        if self._recording is not None and self._recording.fault:
            report, _ = self._keep({})
            self._failed = f"kept what came before: {report}"
            self.get_logger().error(f"the episode failed: {self._failed}")
        if self._recording is not None:
            alone = alone_of(self._contract) if self._contract is not None else None
            for topic, who in self.topics.crowds(alone).items():
                if topic not in self._crowds:
                    self.get_logger().warning(f"{topic}: {who}")
                self._crowds[topic] = who
        self._report()

    def _take(self, topic: str, data: bytes) -> None:
        if self._recording is not None and topic in self._recording.topics:
            self._recording.put(topic, self._now_ns(), data)

    def _now_ns(self) -> int:
        return time.monotonic_ns() + self._clock_ns

    def _report(self) -> None:
        """Say on /diagnostics how the episode and every topic is."""
        recording = self._recording
        values: dict[str, object] = {f"kept as {end}": n for end, n in self._ends.items()}
        values["discarded"] = values.pop("kept as discarded")
        if recording is not None:
            values["recorded_s"] = f"{time.monotonic() - self._begun_s:.1f}"
        problems = self.topics.problems() | self._crowds
        values |= self.topics.figures(problems)
        self.figures = values
        level = DiagnosticStatus.WARN if problems or self._failed else DiagnosticStatus.OK
        of = self._contract.name if self._contract is not None else ""
        now = self.get_clock().now().to_msg()
        name = f"{self.get_fully_qualified_name()}: recorder"
        self._diagnostics.publish(message(name, of, level, self.text, values, now))


def answer(
    node: Node, verb: Callable[[], str], _: object, response: Trigger.Response
) -> Trigger.Response:
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
