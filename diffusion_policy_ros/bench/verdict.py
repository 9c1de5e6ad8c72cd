"""Whether a setting is fast enough for a rate: the rule, and which setting to take.

The rule: a setting holds a rate when the slowest of a hundred chunks (p99) is computed before the
next one is begun, ``replan_steps / rate``, and before the one that is executed has run out,
``(n_action_steps - replan_steps) / rate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

EXACT = ("f32", "tf32", "fp16", "bf16", "int8")
"""Precisions, the most exact first."""


@dataclass(frozen=True)
class Timing:
    """How long chunks take in one setting.

    Attributes:
        engine, dtype, sampler: names.
        steps: K, denoising steps.
        chunks: how many were measured.
        min_ms, p50_ms, p99_ms: of a chunk.
    """

    engine: str
    dtype: str
    sampler: str
    steps: int
    chunks: int
    min_ms: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        """The setting, as people say it."""
        return f"{self.engine} {self.dtype}, {self.sampler}, K={self.steps}"


@dataclass(frozen=True)
class Demand:
    """What a robot asks for.

    Attributes:
        rate_hz: of its frames.
        replan_steps: frames from one chunk to the next.
        n_action_steps: actions of a chunk.
        sampler, steps: the policy's own way of sampling.
    """

    rate_hz: float
    replan_steps: int
    n_action_steps: int
    sampler: str
    steps: int

    @property
    def spare_frames(self) -> int:
        """How many a chunk may take."""
        return min(self.replan_steps, self.n_action_steps - self.replan_steps)

    @property
    def budget_ms(self) -> float:
        """How long a chunk may take."""
        return 1e3 * self.spare_frames / self.rate_hz

    def holds(self, timing: Timing) -> bool:
        """The rule."""
        return timing.p99_ms <= self.budget_ms

    def highest_rate(self, timing: Timing) -> float:
        """Hz, at this number of frames between chunks."""
        return 1e3 * self.spare_frames / timing.p99_ms

    def fewest_frames(self, timing: Timing) -> int | None:
        """Frames between chunks that it holds at this rate; None where a chunk is too short."""
        others = (replace(self, replan_steps=frames) for frames in range(1, self.n_action_steps))
        return next((other.replan_steps for other in others if other.holds(timing)), None)


def best(timings: Sequence[Timing], demand: Demand) -> Timing | None:
    """The setting to take: of those that hold, the nearest to what the policy was judged with.

    Its own sampler and number of steps come before others, more steps up to its own before fewer,
    an exact precision before a rounded one, then the quickest. None where nothing holds.
    """

    def distance(timing: Timing) -> tuple[object, ...]:
        further = timing.steps > demand.steps
        return (
            timing.sampler != demand.sampler,
            further,
            abs(timing.steps - demand.steps),
            EXACT.index(timing.dtype),
            timing.p99_ms,
        )

    return min(filter(demand.holds, timings), key=distance, default=None)


def verdict(timings: Sequence[Timing], demand: Demand) -> str:
    """One sentence: whether the rate holds, with which setting, or else what would."""
    asked = f"{demand.rate_hz:g} Hz with a new chunk {every(demand.replan_steps)}"
    chosen = best(timings, demand)
    if chosen is not None:
        spent = f"{chosen.p99_ms:.1f} of {demand.budget_ms:.1f} ms"
        return f"{asked}: yes, with {chosen} (p99 {spent})"
    quickest = min(timings, key=lambda timing: timing.p99_ms)
    frames = demand.fewest_frames(quickest)
    holds = [hertz(demand.highest_rate(quickest))] if demand.spare_frames else []
    holds += [f"a new chunk {every(frames)}"] if frames is not None else []
    spent = f"{quickest.p99_ms:.1f} of {demand.budget_ms:.1f} ms"
    instead = f" and holds {', or '.join(holds)}" if holds else ""
    return f"{asked}: no; the quickest, {quickest}, takes {spent} (p99){instead}"


def hertz(rate: float) -> str:
    """'5.5 Hz', '1120 Hz'."""
    return f"{rate:.0f} Hz" if rate >= 10 else f"{rate:.1f} Hz"


def every(frames: int) -> str:
    """'every frame', 'every 4 frames'."""
    return "every frame" if frames == 1 else f"every {frames} frames"
