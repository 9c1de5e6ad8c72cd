"""A policy at a fixed rate: chunks in time, and what a change of the denoising steps costs."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from diffusion_policy_ros.runtime.runner import Runner, Sampling, warm_up
from gpu_checks.engines import Variant, build
from gpu_checks.policies import camera_policy, frames
from gpu_checks.run import Run

GRAPH = Variant("cuda_graph", "bf16")
STAND_IN = Variant("cuda_graph", "f32")
RATES = (20, 100)
SIDES = ((84, 84), (480, 640))
PATIENCE_S = 5.0
"""Until the first chunk of a stretch, at most."""
SECONDS = 30.0
"""With each size of image: a minute at each rate."""
OTHER_STEPS, TINY_STEPS = (2, 3, 4, 5, 8), (1, 2, 3, 4, 5)
"""Each twice: ten changes."""


class Robot:
    """Frames at a rate into a runner, by the clock.

    Args:
        run: gives the device.
        side: height and width of both cameras' images.
        rate_hz: of the frames.
    """

    def __init__(self, run: Run, side: tuple[int, int], rate_hz: int) -> None:
        policy = camera_policy(side, rate_hz, run.tiny)
        engine = build(policy, GRAPH if run.device == "cuda" else STAND_IN, run)
        self.sampling = Sampling.of(policy.recipe.policy)
        self.faults: list[str] = []
        self.runner = Runner(
            engine,
            policy.contract,
            self.sampling,
            lambda chunk: None,
            self.faults.append,
            time.monotonic_ns,
            seed=0,
        )
        self._period_s, self._frames = 1 / rate_hz, frames(policy.contract, 9)
        warm_up(engine, self.sampling)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Its inference thread."""
        self.runner.start()
        try:
            yield
        finally:
            self.runner.stop()

    def play(self, seconds: float) -> list[float]:
        """Milliseconds of each chunk, of as many as are kept; a slow machine has more time."""
        self.runner.counts.chunk_ms.clear()
        due = time.monotonic()
        end, at_last = due + seconds, due + seconds + PATIENCE_S
        for number in itertools.count():
            time.sleep(max(0.0, due - time.monotonic()))
            enough = due >= end and bool(self.runner.counts.chunk_ms)
            if enough or due > at_last:
                break
            due += self._period_s
            i = number % 8
            now = time.monotonic_ns()
            oldest = now - round(1e9 * self._period_s)
            seen = {key: rows[i : i + 2] for key, rows in self._frames.items()}
            self.runner.offer(now, lambda seen=seen: seen, now, oldest)
        return list(self.runner.counts.chunk_ms)

    def hitch_ms(self, steps: int, seconds: float) -> float:
        """The longest chunk after a change of the denoising steps."""
        self.runner.sampling = dataclasses.replace(self.sampling, num_inference_steps=steps)
        return max(self.play(seconds), default=float("nan"))


def mission(run: Run) -> None:
    """The steps change; then a minute at each rate, half of it with each size of image."""
    changes(run, 0.05 if run.tiny else 0.6)
    seconds = 0.2 if run.tiny else SECONDS
    for rate_hz in RATES:
        for side in SIDES[:1] if run.tiny else SIDES:
            robot = Robot(run, side, rate_hz)
            with robot.running():
                took = robot.play(seconds)
            in_time(run, robot, rate_hz, side, took)


def in_time(
    run: Run, robot: Robot, rate_hz: int, side: tuple[int, int], took: list[float]
) -> None:
    """A row of one stretch."""
    counts = robot.runner.counts
    p50, p99, longest = np.percentile(took or [float("nan")], [50, 99, 100])
    run.row(
        "mission",
        engine=f"cuda_graph {robot.runner.engine.dtype}",
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
    with robot.running():
        usual = float(np.median(robot.play(seconds)))
        others = TINY_STEPS if run.tiny else OTHER_STEPS
        first, second = ([robot.hitch_ms(k, seconds) for k in others] for _ in range(2))
    run.row(
        "mission",
        what="num_inference_steps changed ten times at 100 Hz",
        usual_ms=round(usual, 2),
        longest_at_first_use_ms=round(max(first), 2),
        longest_at_second_use_ms=round(max(second), 2),
        deadline_misses=robot.runner.counts.deadline_misses,
        failures=robot.runner.counts.failures,
    )
