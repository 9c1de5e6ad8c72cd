"""Simulator, policy node, player and recorder for a long time: `soak.py --minutes 60 --json`.

Real processes over DDS at 20 Hz, in real time. This process looks on: it counts what arrives,
reads the memory of the others, and lets the recorder record, whose bags it removes. It keeps to a
DDS domain of its own, and ends in order on Ctrl-C with what it has.

`p99_ms` is of the time from the anchor's stamp to the arrival of its chunk here, in the first and
in the last tenth of the run. `rss_growth_mb` is of the memory that belongs to a process alone
(without files and shared memory), from the end of the warm-up to the end: medians of a tenth each.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

EPISODE_S, BAGS_KEPT = 20.0, 3
"""How long the recorder records, and how many of its bags may lie on the disk."""
WARM_UP = 0.1
"""Share of the run whose memory is not looked at, and of whose latency one tenth is made."""
START_S, END_S = 90.0, 20.0
STAMP, STAMP_AT, HOLD_BYTES = struct.Struct("<iI"), 4, 400
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Died(Exception):
    """A process ended that should not have."""


@dataclass
class Process:
    """One node, its memory and its log.

    Attributes:
        memory_mb: one value a second.
    """

    name: str
    popen: subprocess.Popen
    log: Path
    memory_mb: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Note what it has.

        Raises:
            Died: it has ended.
        """
        if self.popen.poll() is not None:
            raise Died(f"{self.name} ended with {self.popen.returncode}; its log: {self.log}")
        _, resident, shared, *_ = Path(f"/proc/{self.popen.pid}/statm").read_text().split()
        self.memory_mb.append((int(resident) - int(shared)) * PAGE_MB)
        own = Path(f"/proc/{self.popen.pid}")
        self.threads.append(len(list((own / "task").iterdir())))
        self.files.append(len(list((own / "fd").iterdir())))

    def growth(self, values: list[float]) -> float:
        """From after the warm-up to the end."""
        tenth = max(1, round(len(values) * WARM_UP))
        after = values[tenth : 2 * tenth] or values
        return round(float(np.median(values[-tenth:]) - np.median(after)), 2) if values else 0.0

    def end(self) -> None:
        """Ask it to end, and make sure that it does."""
        self.popen.terminate()
        try:
            self.popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Nodes:
    """The processes, each with a log in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.all = folder, list[Process]()

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:
            process.end()

    def start(self, name: str, parameters: Mapping[str, object]) -> None:
        """Start a node; Ctrl-C here is not heard there."""
        command = [sys.executable, "-m", f"diffusion_policy_ros.ros.{name}", "--ros-args"]
        for key, value in parameters.items():
            command += ["-p", f"{key}:={str(value).lower() if value in (True, False) else value}"]
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            popen = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        self.all.append(Process(name, popen, log))


class Onlooker:
    """Listens to the policy, and has the recorder record.

    Attributes:
        latencies_ms: of every chunk, in order.
        values: the policy's newest diagnostics.
    """

    def __init__(self, bags: Path) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from std_srvs.srv import Trigger
        from trajectory_msgs.msg import JointTrajectory

        rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        self.node = rclpy.create_node("soak")
        self.latencies_ms: list[float] = []
        self.values: dict[str, str] = {}
        self.episodes = {"kept": 0, "discarded": 0, "refused": 0}
        self._bags, self._next = bags, "start"
        self._request, self._due = Trigger.Request(), 0.0
        self._calls = {
            verb: self.node.create_client(Trigger, f"/episode_recorder/{verb}")
            for verb in ("start", "stop", "discard")
        }
        chunks = "/policy_node/action_chunk"
        self.node.create_subscription(JointTrajectory, chunks, self._on_chunk, 20, raw=True)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_report, 20)

    def _on_chunk(self, data: bytes) -> None:
        now_ns = time.time_ns()
        if len(data) > HOLD_BYTES:
            sec, nanosec = STAMP.unpack_from(data, STAMP_AT)
            self.latencies_ms.append((now_ns - sec * 10**9 - nanosec) / 1e6)

    def _on_report(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith("policy"):
                self.values = {pair.key: pair.value for pair in status.values}

    def record(self, now: float) -> None:
        """Begin and end episodes; every other one is discarded, of the rest the oldest go."""
        if now < self._due or not self._calls["start"].service_is_ready():
            return
        verb, self._due = self._next, now + (EPISODE_S if self._next == "start" else 0.5)
        if verb == "start":
            self._next = (
                "stop" if self.episodes["kept"] <= self.episodes["discarded"] else "discard"
            )
        else:
            self._next = "start"
            for bag in sorted(self._bags.glob("episode_*"))[:-BAGS_KEPT]:
                shutil.rmtree(bag)
        future = self._calls[verb].call_async(self._request)
        future.add_done_callback(functools.partial(self._on_answer, verb))

    def _on_answer(self, verb: str, future: Any) -> None:
        answer = future.result()
        if not answer.success:
            say(f"{verb}: {answer.message[:300]}")
            self.episodes["refused"] += 1
        elif verb != "start":
            self.episodes["kept" if verb == "stop" else "discarded"] += 1

    def spin(self, seconds: float) -> None:
        """Serve callbacks for so long."""
        import rclpy

        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            rclpy.spin_once(self.node, timeout_sec=left)

    def close(self) -> None:
        """Leave the domain."""
        import rclpy

        self.node.destroy_node()
        rclpy.try_shutdown()


def soak(nodes: Nodes, onlooker: Onlooker, minutes: float) -> None:
    """Look on for so long.

    Raises:
        Died: a process ended, or no chunk comes.
        KeyboardInterrupt: somebody wants no more.
    """
    start_by = time.monotonic() + START_S
    while not onlooker.latencies_ms:
        onlooker.spin(0.5)
        for process in nodes.all:
            process.look()
        if time.monotonic() > start_by:
            raise Died(f"no chunk came; look into the logs in {nodes.folder}")
    for process in nodes.all:
        for noted in (process.memory_mb, process.threads, process.files):
            noted.clear()
    begun, told = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < minutes * 60:
        onlooker.record(time.monotonic())
        onlooker.spin(1.0)
        for process in nodes.all:
            process.look()
        if passed // 60 > told:
            told = int(passed // 60)
            say(f"minute {told}: {progress(nodes, onlooker)}")


def progress(nodes: Nodes, onlooker: Onlooker) -> str:
    """One line."""
    memory = ", ".join(
        f"{p.name} {p.memory_mb[-1]:.1f} MB {p.threads[-1]}/{p.files[-1]}" for p in nodes.all
    )
    values = onlooker.values
    counted = ", ".join(f"{values.get(k, '-')} {k}" for k in ("frames", "chunks", "holds"))
    recent = np.percentile(onlooker.latencies_ms[-600:], 99)
    misses = values.get("deadline_misses", "-")
    episodes = ", ".join(f"{n} {how}" for how, n in onlooker.episodes.items())
    return (
        f"{counted}, {misses} misses, p99 {recent:.1f} ms; {memory} (threads/files); "
        f"episodes: {episodes}"
    )


def say(text: str) -> None:
    """To the standard error: the standard output is for figures."""
    print(text, file=sys.stderr, flush=True)


def figures(nodes: Nodes, onlooker: Onlooker, trace: Path) -> dict[str, object]:
    """What is printed in the end."""
    values, times = onlooker.values, onlooker.latencies_ms
    tenth = max(1, len(times) // 10)
    return {
        "minutes": round(len(nodes.all[0].memory_mb) / 60, 1),
        **{k: int(values.get(k, 0)) for k in ("frames", "chunks", "holds", "rejected_frames")},
        "deadline_misses": {"total": int(values.get("deadline_misses", 0)), **causes(trace)},
        "rss_mb": {p.name: round(p.memory_mb[-1], 1) for p in nodes.all if p.memory_mb},
        "rss_growth_mb": {p.name: p.growth(p.memory_mb) for p in nodes.all},
        "p50_ms": percentile(times, 50),
        "p99_ms": {"first": percentile(times[:tenth], 99), "last": percentile(times[-tenth:], 99)},
        "threads_growth": {p.name: p.growth(p.threads) for p in nodes.all},
        "files_growth": {p.name: p.growth(p.files) for p in nodes.all},
        "episodes": onlooker.episodes,
    }


def percentile(times: list[float], q: float) -> float | None:
    """Rounded; None of nothing."""
    return round(float(np.percentile(times, q)), 2) if times else None


def causes(trace: Path) -> dict[str, int]:
    """Stage → how many missed deadlines it is to blame for; nothing where no chunk came."""
    from diffusion_policy_ros.bench import stages
    from diffusion_policy_ros.errors import UserError

    try:
        return stages.causes(stages.read_trace(trace))
    except UserError:
        return {}


def parameters(folder: Path, checkpoint: Path) -> dict[str, dict[str, object]]:
    """Node → its parameters."""
    from diffusion_policy_ros.contract import Contract

    contract = Contract.load(checkpoint / "contract.yaml")
    # Nobody gives commands here: the chunks are recorded in their place.
    recorded = contract.text.replace("/eef_command", "/policy_node/action_chunk")
    (folder / "recorded.yaml").write_text(recorded)
    policy = {"checkpoint": checkpoint, "threads": 1, "seed": 0, "trace": folder / "trace.csv"}
    return {
        "policy_node": policy,
        "sim_robot": {
            "auto_reset": True,
            "cameras": contract.has_images,
            "contract": checkpoint / "contract.yaml",
        },
        "action_player": {"contract": checkpoint / "contract.yaml", "armed": True},
        "episode_recorder": {
            "contract": folder / "recorded.yaml",
            "out": folder / "bags",
            "extra_topics": "[/diagnostics, /action_player/pose]",
        },
    }


def save_policy(folder: Path) -> Path:
    """An untrained policy of the demo's size, without cameras."""
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.policy.checkpoint import save_checkpoint
    from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
    from diffusion_policy_ros.policy.recipe import Recipe

    name = "mini_lift_state"
    return save_checkpoint(folder, DiffusionPolicy(Recipe.load(name), Contract.load(name)))


def main() -> int:
    """Run it in a DDS domain of its own and print the figures; 1 when a process died."""
    from diffusion_policy_ros.demo.domains import free_domain

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--checkpoint", type=Path, help="of the simulated arm (untrained)")
    args = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with free_domain() as domain:
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Start the nodes, look on, end them, and tell."""
    folder, ended = Path(tempfile.mkdtemp(prefix="soak_")), ""
    checkpoint = args.checkpoint or save_policy(folder / "policy")
    onlooker, nodes = Onlooker(folder / "bags"), Nodes(folder)
    try:
        with nodes:
            try:
                for name, given in parameters(folder, checkpoint).items():
                    nodes.start(name, given)
                soak(nodes, onlooker, args.minutes)
            except Died as error:
                ended = str(error)
            except KeyboardInterrupt:
                say("interrupted; so far:")
        found = figures(nodes, onlooker, folder / "trace.csv")
    finally:
        onlooker.close()
    if ended:
        say(f"error: {ended}")
    else:
        shutil.rmtree(folder)
    print(json.dumps(found) if args.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
    return 1 if ended else 0


if __name__ == "__main__":
    sys.exit(main())
