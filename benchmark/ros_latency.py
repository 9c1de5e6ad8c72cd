"""Time from an image's stamp to the chunk that follows from it, over DDS: `ros_latency.py --json`.

This process publishes two 84x84 cameras, a pose and a gripper at 20 Hz and receives the chunks;
the policy node runs in another one and replans at every frame. Once `policy.sample` is replaced
by one that does nothing, once it is the demo's, untrained. `outside_share` is the part of the
second's time that is not spent in `policy.sample`. With `--load` a busy process runs on each core,
with `--inference process` the policy samples in a process of its own instead of a thread. With
`--only echo` a node answers that looks at nothing but the stamps: what DDS and rclpy take.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 20.0
WARM_UP = 40
"""Chunks that are not counted: discovery, first inference, cold caches."""
START_S = 60.0
CONTRACT = RECIPE = "mini_lift"
STAMP, STAMP_AT = struct.Struct("<iI"), 4
"""A header's stamp in a serialized message."""
THREADS = "ROS_LATENCY_THREADS"
HOLD_BYTES = 400
"""A chunk of eight actions has 916, a hold 152."""


def serve(kind: str, inference: str, checkpoint: Path, times: Path) -> int:
    """The policy node, whose `policy.sample` is replaced or timed; writes the seconds it took."""
    import torch

    from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
    from diffusion_policy_ros.ros import policy_node

    sample, took = DiffusionPolicy.sample, []

    def timed(policy: DiffusionPolicy, *args: object, **options: object) -> torch.Tensor:
        begun = time.perf_counter()
        actions = nothing if kind == "noop" else sample(policy, *args, **options)
        took.append(time.perf_counter() - begun)
        return actions

    nothing = torch.zeros(1, 16, 7)
    DiffusionPolicy.sample = timed
    if inference == "process":
        from own_process import OwnProcessEngine

        build = policy_node.build_engine

        def build_elsewhere(*args: Any, **options: Any) -> OwnProcessEngine:
            engine, threads = build(*args, **options), torch.get_num_threads()
            return OwnProcessEngine(engine, str(checkpoint), threads, kind == "noop")

        policy_node.build_engine = build_elsewhere
    arguments = ["-p", f"checkpoint:={checkpoint}", "-p", "replan_steps:=1", "-p", "seed:=0"]
    arguments += ["-p", f"threads:={os.environ.get(THREADS, 0)}"]
    if kind == "noop" or inference == "process":
        arguments += ["-p", "engine:=eager"]
    code = policy_node.main([sys.argv[0], "--ros-args", *arguments])
    times.write_text(json.dumps(took))
    return code


def serve_echo() -> int:
    """A node without policy: the same answer as soon as every topic has shown something."""
    import rclpy
    from trajectory_msgs.msg import JointTrajectory

    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.observe.codecs import stamp_ns
    from diffusion_policy_ros.ros.chunks import ChunkBytes
    from diffusion_policy_ros.ros.streams_thread import FOREVER_NS, StreamsThread
    from diffusion_policy_ros.runtime.tail import Chunk

    def on_message(topic: str, message: Any) -> None:
        seen.add(topic)
        if len(seen) == len(contract.topics):
            seen.clear()
            answers.publish(chunks.of(Chunk(stamp_ns(message), actions, contract.period_ns)))

    contract, seen = Contract.load(CONTRACT), set[str]()
    chunks, actions = ChunkBytes(contract), np.zeros((8, contract.action_dim))
    rclpy.init()
    node = rclpy.create_node("policy_node")
    answers = node.create_publisher(JointTrajectory, "~/action_chunk", 5)
    StreamsThread(node, contract, on_message, lambda: FOREVER_NS).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rclpy.spin(node)
    return 0


class Robot:
    """Publishes frames by a timer and notes when their chunks come.

    Messages are written and read as bytes, so that it is as quick as drivers and controllers are.

    Attributes:
        latencies_ms: of each chunk, in order.
        frames_without_chunk: since the warm-up.
    """

    def __init__(self) -> None:
        import rclpy
        from rclpy.serialization import serialize_message
        from trajectory_msgs.msg import JointTrajectory

        from diffusion_policy_ros.ros.message_types import message_class
        from diffusion_policy_ros.sim.messages import messages, ros_array

        rclpy.init()
        self.node = rclpy.create_node("robot")
        self.latencies_ms: list[float] = []
        self._frames = self._frames_at_start = 0
        image = np.random.default_rng(0).integers(0, 256, (84, 84, 3), dtype=np.uint8)
        up = np.array([0.0, 0.0, 0.0, 1.0])
        observation = {
            "agentview_image": image,
            "robot0_eye_in_hand_image": image,
            "robot0_eef_pos": np.zeros(3),
            "robot0_eef_quat": up,
            "robot0_gripper_qpos": np.zeros(2),
            "object_pos": np.zeros(3),
            "object_quat": up,
            "gripper_to_object_pos": np.zeros(3),
        }
        sent = messages(observation, 0, message_class, ros_array)
        self._streams = [
            (
                self.node.create_publisher(message_class(kind), topic, 5),
                bytearray(serialize_message(message)),
            )
            for topic, kind, message in sent
            if "object" not in topic
        ]
        chunks = "/policy_node/action_chunk"
        self.node.create_subscription(JointTrajectory, chunks, self._on_chunk, 5, raw=True)
        self.node.create_timer(1 / RATE_HZ, self._tick)

    def _tick(self) -> None:
        self._frames += 1
        stamp = divmod(time.time_ns(), 10**9)
        for publisher, data in self._streams:
            STAMP.pack_into(data, STAMP_AT, *stamp)
            publisher.publish(bytes(data))

    def _on_chunk(self, data: bytes) -> None:
        now_ns = time.time_ns()
        if len(data) > HOLD_BYTES:
            sec, nanosec = STAMP.unpack_from(data, STAMP_AT)
            self.latencies_ms.append((now_ns - sec * 10**9 - nanosec) / 1e6)
            if len(self.latencies_ms) == WARM_UP:
                self._frames_at_start = self._frames

    def run(self, chunks: int, alive: Callable[[], bool]) -> list[float]:
        """The latencies of so many chunks after the warm-up."""
        import rclpy

        gc.collect()
        gc.freeze()
        wanted, deadline = WARM_UP + chunks, time.monotonic() + START_S + 2 * chunks / RATE_HZ
        while len(self.latencies_ms) < wanted:
            if time.monotonic() > deadline or not alive():
                sys.exit(f"only {len(self.latencies_ms)} of {wanted} chunks came")
            rclpy.spin_once(self.node, timeout_sec=1.0)
        self.frames_without_chunk = self._frames - self._frames_at_start - chunks
        return self.latencies_ms[WARM_UP:wanted]


def measure(kind: str, inference: str, chunks: int, folder: Path) -> dict[str, float]:
    """Run the node in another process and the robot in this one."""
    import rclpy

    times = folder / f"{kind}_{inference}.json"
    command = [sys.executable, __file__, "--serve", kind, inference]
    robot = Robot()
    with subprocess.Popen([*command, folder / "policy", times], stdout=subprocess.DEVNULL) as node:
        try:
            latencies = robot.run(chunks, lambda: node.poll() is None)
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(30)
            rclpy.shutdown()
    result = {
        "p50_ms": round(float(np.percentile(latencies, 50)), 2),
        "p99_ms": round(float(np.percentile(latencies, 99)), 2),
        "deadline_misses": sum(latency > 1e3 / RATE_HZ for latency in latencies),
        "frames_without_chunk": robot.frames_without_chunk,
        "chunks": len(latencies),
    }
    if kind == "policy" and inference == "thread":
        inside_s = json.loads(times.read_text())[-chunks:]
        share = 1 - float(np.mean(inside_s)) * 1e3 / float(np.mean(latencies))
        result["outside_share"] = round(share, 3)
    return result


@contextlib.contextmanager
def busy_cores(wanted: bool) -> Iterator[None]:
    """One process a core that does nothing but count."""
    count = len(os.sched_getaffinity(0)) if wanted else 0
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def save_policy(folder: Path) -> None:
    """An untrained policy of the demo's size."""
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.policy.checkpoint import save_checkpoint
    from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
    from diffusion_policy_ros.policy.recipe import Recipe

    save_checkpoint(folder, DiffusionPolicy(Recipe.load(RECIPE), Contract.load(CONTRACT)))


def main() -> int:
    """Measure both and print them."""
    from diffusion_policy_ros.demo.domains import free_domain

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--chunks", type=int, default=1000, help="of each measurement (1000)")
    parser.add_argument("--only", choices=["noop", "policy", "echo"], help="one of them")
    parser.add_argument("--load", action="store_true", help="one busy process a core beside it")
    parser.add_argument("--threads", type=int, default=0, help="of the computation (all cores)")
    where = ["thread", "process"]
    parser.add_argument(
        "--inference",
        choices=where,
        nargs="+",
        default=where[:1],
        help="where it samples (thread)",
    )
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        kind, inference, checkpoint, times = args.serve
        if kind == "echo":
            return serve_echo()
        return serve(kind, inference, Path(checkpoint), Path(times))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ[THREADS] = str(args.threads)
    with free_domain() as domain, tempfile.TemporaryDirectory() as folder:
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        save_policy(Path(folder) / "policy")
        kinds = [args.only] if args.only else ["noop", "policy"]
        with busy_cores(args.load):
            results = {
                kind if where == "thread" else f"{kind} in a process": measure(
                    kind, where, args.chunks, Path(folder)
                )
                for kind in kinds
                for where in args.inference
            }
    if args.json:
        print(json.dumps(results))
    else:
        for kind, result in results.items():
            print(f"{kind}: {', '.join(f'{name} {value}' for name, value in result.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
