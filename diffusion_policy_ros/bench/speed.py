"""How long chunks take, each engine and precision in a fresh process of its own.

So the time to load, the time to warm up and the memory are those of that engine alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_policy_ros.bench.verdict import EXACT, Timing
from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.data.workers import end_with_parent
from diffusion_policy_ros.engine import Engine, build_engine
from diffusion_policy_ros.errors import UserError, first_line
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.policy.checkpoint import find_checkpoint, load_policy
from diffusion_policy_ros.runtime.inference import make_chunk, warm_up
from diffusion_policy_ros.runtime.sampling import Sampling

MOST, FEWEST, BUDGET_S = 200, 5, 10.0
"""Chunks of each setting where no number is asked for: MOST, but no new one after BUDGET_S."""
END_S = 3.0
"""How long a process may take to end by itself."""
MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """What to measure with each engine.

    Attributes:
        checkpoint: a directory.
        samplers, steps: each is combined with each.
        replan_steps: new frames in the window from one chunk to the next.
        device, threads: as in `build_engine`.
        chunks: of each setting; None as many as fit into BUDGET_S.
    """

    checkpoint: Path
    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    replan_steps: int
    device: str = "auto"
    threads: int | None = None
    chunks: int | None = None


@dataclass(frozen=True)
class Start:
    """What an engine takes before its first chunk.

    Attributes:
        engine, dtype, device: names.
        threads: of the process.
        load_s: to read the policy and build the engine.
        convert_s: the same the first time, where something was kept for later; else None.
        warm_up_s: to warm up as the node does when it is configured.
        memory_mib: that the process has grown by from before loading to after the last chunk;
            None where the system does not tell.
        gpu_memory_mib: taken on the GPU; None without one.
    """

    engine: str
    dtype: str
    device: str
    threads: int
    load_s: float
    convert_s: float | None
    warm_up_s: float
    memory_mib: float | None
    gpu_memory_mib: float | None


@dataclass(frozen=True)
class Speed:
    """All that was measured of an engine in one precision."""

    start: Start
    timings: tuple[Timing, ...]


Tell = Callable[[Any], None]
"""Told in the measuring process: a number of rounds that are done, or a Speed, or an error."""


def precisions(engine: str) -> list[str]:
    """What an engine computes in here, the most exact first.

    Its module tells with `capabilities()`; without, it is f32.

    Raises:
        UserError: what it needs is not installed, or not in this machine.
    """
    try:
        module = importlib.import_module(f"diffusion_policy_ros.engine.{engine}")
    except ImportError as error:
        what = f"{error.name} is not installed"
        raise UserError(what, f"engine {engine}", f"pip install {error.name}") from None
    tell = getattr(module, "capabilities", lambda: {"f32"})
    return sorted(tell(), key=EXACT.index)


def measure(plan: Plan, engine: str, dtype: str, show: Callable[[int], None]) -> Speed:
    """Measure an engine in a process of its own.

    Args:
        plan: what.
        engine: a key of ENGINES.
        dtype: of the computation.
        show: called with the number of rounds that are done; a round is a chunk of each setting.

    Raises:
        UserError: it cannot run here.
    """
    first = _in_process(plan, engine, dtype, None, show)
    if isinstance(first, float):  # it kept what it converted: what counts are the next starts
        first = _in_process(plan, engine, dtype, first, show)
    assert isinstance(first, Speed)
    return first


def _in_process(
    plan: Plan, engine: str, dtype: str, convert_s: float | None, show: Callable[[int], None]
) -> Speed | float:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    work = (theirs, plan, engine, dtype, convert_s)
    process = context.Process(target=_work, args=work, daemon=True)
    # Ctrl-C reaches the whole group; the process ends with us, without a word of its own.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()
    try:
        return _listen(ours, engine, show)
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        process.join(END_S)
        process.kill()


def _listen(ours: Connection, engine: str, show: Callable[[int], None]) -> Speed | float:
    while True:
        try:
            message = ours.recv()
        except EOFError:
            cure = "check the memory, or leave it out with --engines"
            raise UserError("its process ended", f"engine {engine}", cure) from None
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, Speed | float):
            return message
        show(message)


def _work(
    connection: Connection, plan: Plan, engine: str, dtype: str, convert_s: float | None
) -> None:
    """The process: sends rounds, then a Speed, the seconds of a conversion, or an error."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that semaphores are put away
    warnings.simplefilter("ignore", FutureWarning)  # a library's, of another library
    end_with_parent()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
            result = _measured(plan, engine, dtype, convert_s, connection.send)
        connection.send(result)
    except BrokenPipeError:
        pass  # whoever asked is gone
    except UserError as error:
        connection.send(error)
    except RuntimeError as error:  # a library's: out of memory, not finite
        connection.send(UserError(first_line(error), f"engine {engine} {dtype}"))


def _measured(
    plan: Plan, engine: str, dtype: str, convert_s: float | None, tell: Tell
) -> Speed | float:
    empty, folder = _resident_mib(), find_checkpoint(plan.checkpoint)
    kept, begin = _kept(folder), time.perf_counter()
    policy = load_policy(folder)
    built = build_engine(policy, engine, plan.device, dtype, plan.threads, folder)
    load_s = time.perf_counter() - begin
    if convert_s is None and _kept(folder) != kept:
        return load_s
    if built.name != engine:
        raise UserError(f"fell back to {built.name}", f"engine {engine}")
    settings = policy.recipe.policy
    task = next(iter(settings.tasks), None)  # all are as fast
    own = Sampling.of(settings, replan_steps=plan.replan_steps, task=task)
    begin = time.perf_counter()
    warm_up(built, own)
    warm_up_s = time.perf_counter() - begin
    timings = tuple(_timings(built, dtype, own, plan, tell))
    memory = _grown_mib(empty)
    start = Start(
        engine,
        dtype,
        str(built.device),
        torch.get_num_threads(),
        load_s,
        convert_s,
        warm_up_s,
        memory,
        _gpu_mib(built.device),
    )
    return Speed(start, timings)


def _timings(
    engine: Engine, dtype: str, own: Sampling, plan: Plan, tell: Tell
) -> Iterator[Timing]:
    settings = [
        dataclasses.replace(own, sampler=sampler, num_inference_steps=steps)
        for sampler in plan.samplers
        for steps in plan.steps
    ]
    for how in settings:
        warm_up(engine, how)
    for how, took in zip(settings, _rounds(engine, settings, plan.chunks, tell), strict=True):
        quickest, p50, p99 = map(float, np.percentile(took, [0, 50, 99]))
        yield Timing(
            engine.name,
            dtype,
            how.sampler,
            how.num_inference_steps,
            len(took),
            quickest,
            p50,
            p99,
        )


def _rounds(
    engine: Engine, settings: Sequence[Sampling], chunks: int | None, tell: Tell
) -> list[list[float]]:
    """Milliseconds of each chunk of each setting; in turns, so that a disturbance meets all."""
    policy = engine.policy
    seen = windows(policy.contract, policy.recipe.policy.n_obs_steps, settings[0].replan_steps)
    noise = torch.Generator().manual_seed(0)
    took: list[list[float]] = [[] for _ in settings]
    end = time.perf_counter() + BUDGET_S
    for done in range(chunks or MOST):
        if chunks is None and done >= FEWEST and time.perf_counter() > end:
            break
        for how, times in zip(settings, took, strict=True):
            window = next(seen)
            begin = time.perf_counter()
            make_chunk(engine, policy.contract, window, 0, how, noise)
            times.append((time.perf_counter() - begin) * 1e3)
        tell(done + 1)
    return took


def windows(
    contract: Contract, n_obs_steps: int, replan_steps: int, seed: int = 0
) -> Iterator[dict[str, Array]]:
    """Yield the windows of one chunk after the other, as the node has them, of random frames.

    From one to the next `replan_steps` frames are new, so that with as many as a window has, or
    more, it is wholly new.
    """
    random = np.random.default_rng(seed)
    frames: deque[dict[str, Array]] = deque(maxlen=n_obs_steps)
    while True:
        for _ in range(replan_steps if frames else n_obs_steps):
            keys = contract.observations.items()
            frames.append({key: _any_array(stream, random) for key, stream in keys})
        yield {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}


def _any_array(stream: Stream, random: np.random.Generator) -> Array:
    if stream.is_image:
        return random.integers(0, 256, stream.shape, dtype=np.uint8)
    return random.standard_normal(stream.shape, dtype=np.float32)


def parts(timings: Sequence[Timing]) -> tuple[float, float] | None:
    """What a chunk takes once (encoders and the rest), and with each denoising step, in ms.

    From the line through the quickest chunks over K, which nothing else disturbed: its intercept
    and its slope.

    Args:
        timings: of one engine, precision and sampler.

    Returns:
        None for a single number of steps.
    """
    steps = [timing.steps for timing in timings]
    if len(set(steps)) < 2:
        return None
    slope, once = np.polyfit(steps, [timing.min_ms for timing in timings], 1)
    return max(0.0, float(once)), max(0.0, float(slope))


def _kept(checkpoint: Path) -> set[Path]:
    """What engines keep beside a checkpoint."""
    return set((checkpoint / "compiled").glob("*"))


def _resident_mib() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux
        return None
    return next((int(ln.split()[1]) / 1024 for ln in lines if ln.startswith("VmRSS:")), None)


def _grown_mib(before: float | None) -> float | None:
    now = _resident_mib()
    return None if now is None or before is None else now - before


def _gpu_mib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_reserved(device) / MIB if device.type == "cuda" else None
