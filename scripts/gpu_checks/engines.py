"""How fast a chunk is: eager, compiled and as a CUDA graph, in all precisions."""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_policy_ros.engine import cuda_graph
from diffusion_policy_ros.engine.cuda_graph import DTYPES, CudaGraphEngine, allow_tf32, lowered
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from gpu_checks.ceilings import read_bandwidth
from gpu_checks.policies import NETWORKS, TINY_NETWORKS, exact_chunk, make_policy, windows
from gpu_checks.run import Run, bounded

MANY, FEW = 10, 2
"""Denoising steps; the difference of their times is that of eight steps."""
MODES = ("reduce-overhead", "max-autotune-no-cudagraphs")
MAIN = "unet_256"
"""The network that the aims are of."""
PROFILE_S = 10.0
OF_EAGER, OF_COMPILED, OF_READING, OF_P50 = 3.4, 2.65, 3.0, 1.1
BYTES = {"f32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


class Variant(NamedTuple):
    """An engine and its precision; `mode` is torch.compile's."""

    engine: str
    dtype: str
    mode: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


PLAIN = [Variant("eager", dtype) for dtype in DTYPES]
GRAPHS = [Variant("cuda_graph", dtype) for dtype in DTYPES]
COMPILED = [Variant("compile", dtype, mode) for dtype in ("f32", "bf16") for mode in MODES]
MORE_COMPILED = [Variant("compile", dtype, mode) for dtype in ("tf32", "fp16") for mode in MODES]
BASE = [Variant("eager", "f32"), Variant("cuda_graph", "f32")]


class Plain:
    """The policy's modules as they are, or compiled; `sample` as an engine's."""

    def __init__(self, policy: DiffusionPolicy, variant: Variant, run: Run) -> None:
        self.dtype, self.device = variant.dtype, run.device
        moved = policy.to(run.device).eval().requires_grad_(False)
        self.policy = lowered(moved, DTYPES[variant.dtype])
        if variant.mode:
            if self.policy is moved:
                self.policy = copy.deepcopy(moved)
            kind: dict[str, Any] = {"mode": variant.mode}
            if run.device == "cpu":  # compiling takes as long as all else together
                kind = {"backend": "eager"} if run.tiny else {}
            self.policy.denoiser.compile(**kind)

    def sample(self, observation: Any, **options: Any) -> Tensor:
        """See DiffusionPolicy.sample."""
        lower = DTYPES[self.dtype]
        if self.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device, lower, enabled=lower != torch.float32):
            return self.policy.sample(observation, **options)


def stand_in(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph where there is no GPU: does it again, into the same memory."""
    out = run()

    @torch.inference_mode()
    def replay() -> Tensor:
        return out.copy_(run())

    return replay


def build(
    policy: DiffusionPolicy, variant: Variant, run: Run, say: Callable[[str], object] = print
) -> Any:
    """The engine; each sets TF32 as it needs it, for the process."""
    allow_tf32(variant.dtype == "tf32")
    if variant.engine != "cuda_graph":
        return Plain(policy, variant, run)
    if run.device == "cpu":
        cuda_graph.record = stand_in
    return CudaGraphEngine(policy, torch.device(run.device), variant.dtype, say)


def engines(run: Run, seconds: float) -> None:
    """All networks in the order of what they tell; what there is no time for is named."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(run.out / "inductor"))
    until = time.monotonic() + seconds - (0 if run.tiny else PROFILE_S)
    for name, work, longest in jobs(run):
        left = until - time.monotonic()
        if left < (0 if run.tiny else 4):
            run.row("engines", what=name, failed="no time was left for it; see --minutes")
            continue
        bounded(run, f"engines {name}", work, min(longest, left))
    if not aims(run):
        left = until + PROFILE_S - time.monotonic()
        bounded(run, "engines profile", partial(profile, run), left)


def jobs(run: Run) -> Iterator[tuple[str, Callable[[], None], float]]:
    """Name, work and longest time of each process."""
    if run.tiny:
        quick = [*BASE, Variant("cuda_graph", "bf16"), Variant("compile", "f32", MODES[0])]
        yield f"{MAIN} all", partial(measure, run, MAIN, quick), 60
        yield f"{MAIN} second start", partial(second_start, run, MAIN, quick[1:3]), 60
        for network in TINY_NETWORKS:
            if network != MAIN:
                yield f"{network} plain", partial(measure, run, network, BASE), 60
        return
    others = [network for network in NETWORKS if network != MAIN]
    yield f"{MAIN} plain", partial(measure, run, MAIN, PLAIN + GRAPHS), 25
    yield f"{MAIN} compiled", partial(measure, run, MAIN, COMPILED[:1]), 30
    for network in others:
        yield f"{network} plain", partial(measure, run, network, PLAIN + GRAPHS), 25
    yield f"{MAIN} compiled, more", partial(measure, run, MAIN, COMPILED[1:]), 200
    starts = [GRAPHS[0], GRAPHS[2], *COMPILED]
    yield f"{MAIN} second start", partial(second_start, run, MAIN, starts), 40
    for network, kinds in itertools.product(others, (COMPILED, MORE_COMPILED)):
        yield f"{network} compiled", partial(measure, run, network, kinds), 200
    yield f"{MAIN} compiled, tf32 and fp16", partial(measure, run, MAIN, MORE_COMPILED), 200


def noise() -> Tensor:
    """The start of all chunks that are compared."""
    return torch.randn(1, 16, 7, generator=torch.Generator().manual_seed(1))


def first_chunk_s(run: Run, policy: DiffusionPolicy, variant: Variant) -> tuple[Any, float]:
    """The engine, and the seconds from its making to the first chunk on the CPU."""
    begun = time.perf_counter()
    engine = build(policy, variant, run)
    engine.sample(windows(policy.contract, 1)[0], noise=noise(), steps=MANY).cpu()
    return engine, time.perf_counter() - begun


def second_start(run: Run, network: str, variants: list[Variant]) -> None:
    """The first chunk of another process, which finds what the first one kept."""
    for variant in variants:
        _, seconds = first_chunk_s(run, make_policy(network, run.tiny), variant)
        what = {"network": network, "engine": str(variant)}
        run.row("engines", **what, second_start_s=round(seconds, 3))


def measure(run: Run, network: str, variants: list[Variant]) -> None:
    """A row for each variant."""
    policy = make_policy(network, run.tiny)
    exact = exact_chunk(policy, windows(policy.contract, 1)[0], noise())
    policy.to(run.device)  # before the first is timed, so that none pays for the others
    bandwidth = read_bandwidth(run)
    for variant in variants:
        try:
            row = of_variant(run, policy, variant, exact, bandwidth)
            run.row("engines", network=network, engine=str(variant), **row)
        except Exception as error:  # one that fails here says nothing of the others
            line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            run.row("engines", network=network, engine=str(variant), failed=line)


def of_variant(
    run: Run, policy: DiffusionPolicy, variant: Variant, exact: Tensor, bandwidth: float
) -> dict[str, Any]:
    """All figures of one engine."""
    if run.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine, first_s = first_chunk_s(run, policy, variant)
    chunk_ms(run, engine, FEW, few=True)
    getattr(engine, "settle", lambda: None)()
    shown = windows(policy.contract, 1)[0]
    out = engine.sample(shown, noise=noise(), steps=MANY).cpu().double()
    many, few = (chunk_ms(run, engine, steps) for steps in (MANY, FEW))
    (p50, p99), (p50_few, p99_few) = (np.percentile(took, [50, 99]) for took in (many, few))
    weights = sum(weight.numel() for weight in policy.denoiser.parameters())
    return {
        f"p50_ms_{MANY}": round(p50, 3),
        f"p99_ms_{MANY}": round(p99, 3),
        f"p50_ms_{FEW}": round(p50_few, 3),
        f"p99_ms_{FEW}": round(p99_few, 3),
        "step_ms": round((p50 - p50_few) / (MANY - FEW), 4),
        "reading_ms": round(1e3 * weights * BYTES[variant.dtype] / bandwidth, 4),
        "rel_error": float((out - exact).norm() / exact.norm()),
        "first_chunk_s": round(first_s, 3),
        "memory_mib": run.memory_mib(),
    }


def chunk_ms(run: Run, engine: Any, steps: int, few: bool = False) -> list[float]:
    """Milliseconds from windows on the CPU to chunks on the CPU, of some tenths of a second."""
    shown, start, took = windows(engine.policy.contract, 8), noise(), []
    until = time.perf_counter() + (0.05 if run.tiny else 0.6)
    for window in itertools.cycle(shown):
        begun = time.perf_counter()
        engine.sample(window, noise=start, steps=steps).cpu()
        ended = time.perf_counter()
        took.append(1e3 * (ended - begun))
        if len(took) >= (3 if few or run.tiny else 30) and (few or ended > until):
            return took
    return took


def aims(run: Run) -> bool:
    """Whether the float32 graph of MAIN is what was aimed at, of what was measured."""
    rows = [row for row in run.rows() if row.get("network") == MAIN and "step_ms" in row]
    ms = {row["engine"]: row[f"p50_ms_{MANY}"] for row in rows}
    eager, graph = map(str, BASE)
    if eager not in ms or graph not in ms:
        return True
    met = [run.aim("engines", "graph / eager, f32", ms[eager] / ms[graph], OF_EAGER)]
    compiled = [took for engine, took in ms.items() if engine.startswith("compile f32")]
    if compiled:
        ratio = min(compiled) / ms[graph]
        met.append(run.aim("engines", "graph / best compiled, f32", ratio, OF_COMPILED))
    [row] = [row for row in rows if row["engine"] == graph]
    step = row["step_ms"] / row["reading_ms"]
    met.append(run.aim("engines", "step / reading the weights, f32", step, OF_READING, most=True))
    p99 = row[f"p99_ms_{MANY}"] / ms[graph]
    met.append(run.aim("engines", "graph p99 / p50, f32", p99, OF_P50, most=True))
    return all(met)


def profile(run: Run) -> None:
    """Where the time of a chunk goes, eager and by its graph."""
    policy = make_policy(MAIN, run.tiny)
    for variant in BASE:
        engine, _ = first_chunk_s(run, policy, variant)
        work = partial(chunk_ms, run, engine, FEW if run.tiny else MANY, few=True)
        run.profile(f"engines_{variant.engine}", work)
