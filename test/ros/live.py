"""Nodes as processes of their own, and one node here that listens and calls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rcl_interfaces.srv import ListParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import Trigger

from diffusion_policy_ros.demo.domains import free_domain

LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""For topics whose messages wait for who finds them late."""
POLICIES = ("policy_node", "faulty_policy")
"""The processes that have an engine."""
ANSWER_S = 1.0
"""After so long it is asked again."""
START_S = 180.0
"""Nobody waits so long but for what never comes: a busy machine imports torch and rclpy slowly."""


class Process:
    """A node's process, its output in a file."""

    def __init__(self, popen: subprocess.Popen, log: Path, until: Callable[..., Any]) -> None:
        self._popen, self._log, self._until = popen, log, until

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def wait(self, seconds: float = START_S) -> int:
        """Its exit code; others here go on meanwhile, so that no robot falls silent."""
        self._until(lambda: self._popen.poll() is not None, seconds, "the process ends")
        return self._popen.returncode

    def end(self) -> None:
        """Ask it to end, and make sure that it does."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGINT)
            try:
                self._popen.wait(20)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()


class Live:
    """A private DDS domain with processes in it."""

    def __init__(self, folder: Path, domain: int) -> None:
        self.folder, self.domain = folder, domain
        self._stack = ExitStack()
        self._context = Context()
        rclpy.init(context=self._context, domain_id=self.domain)
        self.node = rclpy.create_node("test", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)

    def another(self, name: str) -> Any:
        """One more node here."""
        node = rclpy.create_node(name, context=self._context)
        self._executor.add_node(node)
        self._stack.callback(node.destroy_node)
        return node

    def start(self, node: str | Path, *words: Any, **parameters: Any) -> Process:
        """Start a node of the package, or a script, with these words and parameters.

        Words come before ``--ros-args``; what follows one of their own is up to the caller.
        """
        module = ["-m", f"diffusion_policy_ros.ros.{node}"] if isinstance(node, str) else [node]
        command = [sys.executable, *module, *map(str, words), "--ros-args"]
        if Path(node).stem in POLICIES:  # compiling takes long; engines are tested elsewhere
            parameters = {"engine": "eager", **parameters}
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else value
            command += ["-p", f"{name}:={text}"]
        log = self.folder / f"{Path(node).stem}_{len(list(self.folder.glob('*.log')))}.log"
        environment = {**os.environ, "ROS_DOMAIN_ID": str(self.domain), "PYTHONUNBUFFERED": "1"}
        with log.open("w") as file:
            popen = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        process = Process(popen, log, self.until)
        self._stack.callback(process.end)
        return process

    def listen(self, type_: Any, topic: str, qos: Any = 100) -> list[Any]:
        """The messages of a topic, as they come."""
        heard: list[Any] = []
        self.node.create_subscription(type_, topic, heard.append, qos)
        return heard

    def until(
        self, done: Callable[[], Any], seconds: float = START_S, why: str | Callable[[], str] = ""
    ) -> Any:
        """Serve callbacks until `done()` is true, and return what it says."""
        deadline = time.monotonic() + seconds
        while not (found := done()):
            assert time.monotonic() < deadline, self._late(why, seconds)
            self._executor.spin_once(timeout_sec=0.02)
        return found

    def _late(self, why: str | Callable[[], str], seconds: float) -> str:
        why = why if isinstance(why, str) else why()
        logs = [f"{log.name}:\n{log.read_text()}" for log in sorted(self.folder.glob("*.log"))]
        return "\n".join([f"not within {seconds} s: {why}", *logs])

    def call(self, service: str, seconds: float = START_S) -> Trigger.Response:
        """Call a Trigger service."""
        return self.ask(Trigger, service, Trigger.Request(), seconds)

    def ask(self, kind: Any, service: str, request: Any, seconds: float = START_S) -> Any:
        """Call any service of a node."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready, seconds, f"{service} is there")
        self._met(service.rpartition("/")[0], seconds)
        future = client.call_async(request)
        self.until(future.done, seconds, f"{service} answers")
        self.node.destroy_client(client)
        return future.result()

    def set(self, node: str, name: str, value: Any) -> Any:
        """Set a parameter of another node."""
        client = AsyncParameterClient(self.node, node)
        self.until(client.services_are_ready, why=f"{node} has parameters")
        self._met(node)
        future = client.set_parameters([Parameter(name, value=value)])
        self.until(future.done, why=f"{node} takes {name}")
        return future.result().results[0]

    def _met(self, node: str, seconds: float = START_S) -> None:
        """Wait until a node has discovered the clients here.

        ROS drops an answer whose client it has not heard of yet, on a busy machine. Endpoints are
        discovered in the order in which they were made: who answers the newest knows the others.
        """
        client = self.node.create_client(ListParameters, f"{node}/list_parameters")
        asked: list[tuple[float, Any]] = []

        def answered() -> bool:
            late = not asked or time.monotonic() - asked[-1][0] > ANSWER_S
            if late and client.service_is_ready():
                asked.append((time.monotonic(), client.call_async(ListParameters.Request())))
            return any(future.done() for _, future in asked)

        self.until(answered, seconds, f"{node} answers")
        self.node.destroy_client(client)

    def close(self) -> None:
        """End everything."""
        self._stack.close()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


@contextmanager
def live(folder: Path):
    """A private domain for the time of a test."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    with free_domain() as number, closing(Live(folder, number)) as domain:
        yield domain
