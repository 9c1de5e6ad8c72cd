"""A policy at a fixed rate: chunks in time, and what a change of the denoising steps costs."""

from __future__ import annotations

import dataclasses
import itertools
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from diffusion_policy_ros.runtime.counts import Counts
from diffusion_policy_ros.runtime.inference import Request, infer, warm_up
from diffusion_policy_ros.runtime.joining import Joiner
from diffusion_policy_ros.runtime.sampling import Sampling
from gpu_checks.engines import Variant, build
from gpu_checks.policies import camera_policy, frames
from gpu_checks.run import Run

GRAPH = Variant("cuda_graph", "bf16")
STAND_IN = Variant("cuda_graph", "f32")
RATES = (20, 100)
SIDES = ((84, 84), (480, 640))
PATIENCE_S = 5.0
"""Until the first chunk of a stretch, or its failure, at most."""
SECONDS = 30.0
"""With each size of image: a minute at each rate."""
OTHER_STEPS, TINY_STEPS = (2, 3, 4, 5, 8), (1, 2, 3, 4, 5)
"""Each twice: ten changes."""


class Robot:
    """Frames at a rate, by the clock; a thread of its own makes chunks of them, as on a robot.

    Args:
        run: gives the device.
        side: height and width of both cameras' images.
        rate_hz: of the frames.
    """

    def __init__(self, run: Run, side: tuple[int, int], rate_hz: int) -> None:
        policy = camera_policy(side, rate_hz, run.tiny)
        self.engine = build(policy, GRAPH if run.device == "cuda" else STAND_IN, run)
        self.sampling = Sampling.of(policy.recipe.policy)
        self.counts, self.faults = Counts(), list[str]()
        self._contract, self._joiner = policy.contract, Joiner(policy.contract)
        self._period_s, self._frames = 1 / rate_hz, frames(policy.contract, 9)
        self._end_ns: int | None = None
        warm_up(self.engine, self.sampling)

    def play(self, seconds: float) -> list[float]:
        """Milliseconds of each chunk, of as many as are kept; a slow machine has more time."""
        self.counts.chunk_ms.clear()
        before = self._answers
        self._end_ns, making, due = None, Future[None](), time.monotonic()
        making.set_result(None)
        end, at_last = due + seconds, due + seconds + PATIENCE_S
        with ThreadPoolExecutor(1, "inference") as thread:
            for number in itertools.count():
                time.sleep(max(0.0, due - time.monotonic()))
                enough = due >= end and self._answers > before
                if enough or due > at_last:
                    break
                due += self._period_s
                self.counts.frames += 1
                if number % self.sampling.replan_steps:
                    continue
                if making.done():
                    seen = {key: rows[number % 8 :][:2] for key, rows in self._frames.items()}
                    making = thread.submit(self._infer, seen, time.monotonic_ns())
                else:
                    self.counts.replaced += 1
        return list(self.counts.chunk_ms)

    @property
    def _answers(self) -> int:
        return self.counts.chunks + self.counts.failures

    def _infer(self, window: dict[str, np.ndarray], now_ns: int) -> None:
        request = Request(now_ns, window, self.sampling, 0, self._joiner)
        made = infer(self.engine, self._contract, request)
        if made.chunk is None:
            self.counts.failures += 1
            self.faults.append(made.failure)
            return
        self.counts.chunks += 1
        self.counts.chunk_ms.append((made.ended_ns - made.begun_ns) / 1e6)
        missed = self._end_ns is not None and made.ended_ns > self._end_ns
        self.counts.deadline_misses += missed
        self._end_ns = made.chunk.end_ns

    def hitch_ms(self, steps: int, seconds: float) -> float:
        """The longest chunk after a change of the denoising steps."""
        self.sampling = dataclasses.replace(self.sampling, num_inference_steps=steps)
        return max(self.play(seconds), default=float("nan"))


def mission(run: Run) -> None:
    """The steps change; then a minute at each rate, half of it with each size of image."""
    changes(run, 0.05 if run.tiny else 0.6)
    seconds = 0.2 if run.tiny else SECONDS
    for rate_hz in RATES:
        for side in SIDES[:1] if run.tiny else SIDES:
            robot = Robot(run, side, rate_hz)
            took = robot.play(seconds)
            in_time(run, robot, rate_hz, side, took)


def in_time(
    run: Run, robot: Robot, rate_hz: int, side: tuple[int, int], took: list[float]
) -> None:
    """A row of one stretch."""
    counts = robot.counts
    p50, p99, longest = np.percentile(took or [float("nan")], [50, 99, 100])
    run.row(
        "mission",
        engine=f"cuda_graph {robot.engine.dtype}",
        rate_hz=rate_hz,
        cameras=f"2 x {side[1]}x{side[0]}",
        frames=counts.frames,
        chunks=counts.chunks,
        p50_ms=round(p50, 2),
        p99_ms=round(p99, 2),
        longest_ms=round(longest, 2),
        deadline_misses=counts.deadline_misses,
        replaced=counts.replaced,
        failures=counts.failures,
        faults=robot.faults[:3],
    )


def changes(run: Run, seconds: float) -> None:
    """Ten changes of the denoising steps at 100 Hz: each number for the first and second time."""
    robot = Robot(run, SIDES[0], RATES[-1])
    usual = float(np.median(robot.play(seconds)))
    others = TINY_STEPS if run.tiny else OTHER_STEPS
    first, second = ([robot.hitch_ms(k, seconds) for k in others] for _ in range(2))
    run.row(
        "mission",
        what="num_inference_steps changed ten times at 100 Hz",
        usual_ms=round(usual, 2),
        longest_at_first_use_ms=round(max(first), 2),
        longest_at_second_use_ms=round(max(second), 2),
        deadline_misses=robot.counts.deadline_misses,
        failures=robot.counts.failures,
    )
