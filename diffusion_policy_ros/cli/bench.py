"""`diffusion-policy bench`: which setting is fast enough for a rate on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy_ros.cli.figures import (
    check_json,
    check_least,
    check_picture,
    check_threads,
    write_json,
)
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.report.table import table

if TYPE_CHECKING:
    from diffusion_policy_ros.bench.speed import Plan, Speed, Start
    from diffusion_policy_ros.bench.verdict import Demand, Timing

RULE = (
    "A rate holds when a chunk's p99 fits in the time until the next one is begun, "
    "replan_steps / rate, and until the one before has run out, "
    "(n_action_steps - replan_steps) / rate"
)
HEADS = ("engine", "dtype", "sampler", "K", "p50", "p99", "holds", "rate up to")
START_HEADS = (
    "engine",
    "dtype",
    "load",
    "warm-up",
    "memory",
    "sampler",
    "once a chunk",
    "each step",
)
STEPS = (1, 2, 4, 10)
BUSY = 0.3
"""Processes that wait for each core, from which on figures are those of a busy machine."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Tell argparse of the verb."""
    parser = subparsers.add_parser(
        "bench",
        help="which engine, precision and number of steps hold a rate on this machine",
        description="Measures a checkpoint on this machine: each engine and precision in a fresh "
        "process, each sampler and number of denoising steps, on random windows that slide as on "
        f"the robot. {RULE}. How well a setting does the task is not measured: that is "
        "`diffusion-policy eval`.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory, or a run")
    parser.add_argument("--rate", type=float, metavar="HZ", help="default: the contract's")
    parser.add_argument(
        "--replan-steps", type=int, help="frames between chunks (default: the checkpoint's)"
    )
    parser.add_argument(
        "--engines",
        metavar="A,B",
        help="default: every one that is installed; cuda_graph is experimental",
    )
    parser.add_argument("--samplers", metavar="A,B", help="default: the checkpoint's")
    parser.add_argument(
        "--steps",
        metavar="K,K",
        help="denoising steps (default: 1,2,4,10 and the checkpoint's own)",
    )
    parser.add_argument(
        "--chunks",
        type=int,
        metavar="N",
        help="of each setting (default: 200, but no more than fit into 10 s an engine)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: as many as there are cores)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture, a PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, draw.

    Raises:
        UserError: a mistake of the command line, or no engine runs here.
    """
    _check(args)
    plan, demand, engines, own_rate = _plan(args)
    _warn_if_busy()
    speeds, missing = _measure(plan, engines)
    if not speeds:
        raise UserError("; ".join(missing) or "none", "no engine to measure")
    print("\n".join(describe(speeds, missing, demand)))
    print("\n".join(advice(speeds, demand, args.checkpoint, own_rate)))
    figures = json_figures(speeds, missing, demand, args.checkpoint)
    if args.plot:
        from diffusion_policy_ros.report.speed import draw_speed

        draw_speed(_timings(speeds), demand, machine(), args.plot)
        print(f"picture   {args.plot}")
    write_json(args.json, figures)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail after a minute of measuring."""
    check_least(args, chunks=1, threads=0)
    check_threads(args.threads)
    if args.rate is not None and not 0 < args.rate < float("inf"):
        cure = "rate must be more than 0, in Hz"
        raise UserError("is out of range", f"--rate {args.rate:g}", cure)
    check_json(args.json)
    if args.plot is not None:
        from diffusion_policy_ros.report.speed import check_plot

        check_plot()
        check_picture(args.plot)


def _plan(args: argparse.Namespace) -> tuple[Plan, Demand, list[str], float]:
    """What to measure, what is asked for, with which engines, and the contract's rate.

    Raises:
        UserError: no checkpoint, or a setting that the policy cannot be sampled with.
    """
    from diffusion_policy_ros.bench.speed import Plan
    from diffusion_policy_ros.bench.verdict import Demand
    from diffusion_policy_ros.engine import ENGINES
    from diffusion_policy_ros.policy.checkpoint import choice_lines, find_checkpoint, load_policy
    from diffusion_policy_ros.policy.devices import pick_device
    from diffusion_policy_ros.runtime.sampling import Sampling

    policy, device = load_policy(args.checkpoint), str(pick_device(args.device))
    for line in choice_lines(args.checkpoint):
        print(line)
    settings = policy.recipe.policy
    task = next(iter(settings.tasks), None)  # all are as fast
    own = Sampling.of(settings, replan_steps=args.replan_steps, task=task)
    K = own.num_inference_steps
    usual = {k for k in STEPS if k <= settings.num_train_timesteps}
    steps = _steps(args.steps) or {*usual, K}
    samplers = _words("--samplers", args.samplers) or [own.sampler]
    for k in steps:
        for sampler in samplers:
            dataclasses.replace(own, num_inference_steps=k, sampler=sampler).checked(settings)
    engines = _words("--engines", args.engines) or list(ENGINES)
    for name in engines:
        if name not in ENGINES:
            raise UserError(f"unknown engine '{name}'", "--engines", did_you_mean(name, ENGINES))
    where, chosen = find_checkpoint(args.checkpoint), (tuple(samplers), tuple(sorted(steps)))
    plan = Plan(where, *chosen, own.replan_steps, device, args.threads, args.chunks)
    own_rate = policy.contract.rate_hz
    rate = args.rate or own_rate
    demand = Demand(rate, own.replan_steps, own.n_action_steps, own.sampler, K)
    return plan, demand, engines, own_rate


def _words(option: str, text: str | None) -> list[str]:
    """'a,b' -> a and b, each once; none where the option was not given."""
    if text is None:
        return []
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UserError("names nothing", f"{option} {text}", "leave it out, or name some: a,b")
    return words


def _steps(text: str | None) -> set[int]:
    try:
        return {int(word) for word in _words("--steps", text)}
    except ValueError:
        raise UserError("is no list of numbers", f"--steps {text}", "as in 1,2,8") from None


def _measure(plan: Plan, engines: Sequence[str]) -> tuple[list[Speed], list[str]]:
    """What was measured, and a line for each engine that does not run here."""
    from diffusion_policy_ros.bench.speed import precisions

    found: list[Speed] = []
    missing: list[str] = []
    for engine in engines:
        try:
            dtypes = precisions(engine)
        except UserError as error:
            missing.append(str(error))
            continue
        for dtype in dtypes:
            try:
                found.append(_measure_one(plan, engine, dtype))
            except UserError as error:
                missing.append(str(error))
    return found, list(dict.fromkeys(missing))


def _measure_one(plan: Plan, engine: str, dtype: str) -> Speed:
    from tqdm import tqdm

    from diffusion_policy_ros.bench import speed

    _say(f"{engine} {dtype}: loading")
    total, quiet = plan.chunks or speed.MOST, not sys.stderr.isatty()
    with tqdm(total=total, desc=f"{engine} {dtype}", leave=False, disable=quiet) as bar:
        return speed.measure(plan, engine, dtype, lambda done: bar.update(done - bar.n))


def _say(text: str) -> None:
    """On stderr, where figures are not looked for."""
    print(text, file=sys.stderr, flush=True)


def _warn_if_busy() -> None:
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    if waiting > BUSY:
        _say(f"warning: this machine is busy (load {waiting:.1f} a core): chunks take longer")


def _timings(speeds: Sequence[Speed]) -> list[Timing]:
    return [timing for speed in speeds for timing in speed.timings]


def machine() -> str:
    """The processor's name, and how many of its cores there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def describe(speeds: Sequence[Speed], missing: Sequence[str], demand: Demand) -> Iterator[str]:
    """Yield what a person reads before the verdict."""
    from diffusion_policy_ros.engine import EXPERIMENTAL

    start = speeds[0].start
    count = min(timing.chunks for timing in _timings(speeds))
    yield f"machine   {machine()}; {start.device}, {start.threads} threads"
    yield f"rule      p99 of {count} chunks <= {demand.budget_ms:.1f} ms = {_rule(demand)}"
    yield ""
    yield from table(HEADS, [_row(timing, demand) for timing in _timings(speeds)])
    yield ""
    yield from table(START_HEADS, [row for speed in speeds for row in _start_rows(speed)])
    yield ""
    yield "apart     a chunk = once (encoders and what is around) + K * each step (denoiser)"
    for start in (speed.start for speed in speeds):
        if start.convert_s is not None:
            told = f"{start.convert_s:.1f} s the first time; what was converted is kept"
            yield f"loading   {start.engine} {start.dtype}: {told}"
    for engine in sorted({speed.start.engine for speed in speeds} & EXPERIMENTAL):
        yield f"note      {engine} is experimental: no GPU of ours has run it yet"
    yield from (f"missing   {line}" for line in missing)


def _rule(demand: Demand) -> str:
    frames = "replan_steps"
    if demand.spare_frames < demand.replan_steps:  # else the old one has run out before it
        frames = "n_action_steps - replan_steps"
    return f"{demand.spare_frames} ({frames}) / {demand.rate_hz:g} Hz"


def _row(timing: Timing, demand: Demand) -> tuple[str, ...]:
    from diffusion_policy_ros.bench.verdict import hertz

    own = timing.sampler == demand.sampler and timing.steps == demand.steps
    return (
        timing.engine,
        timing.dtype,
        timing.sampler,
        f"{timing.steps}{' (own)' if own else ''}",
        f"{timing.p50_ms:.2f} ms",
        f"{timing.p99_ms:.2f} ms",
        "yes" if demand.holds(timing) else "no",
        hertz(demand.highest_rate(timing)),
    )


def _start_rows(speed: Speed) -> Iterator[tuple[str, ...]]:
    """A row for each sampler; what belongs to the engine stands in the first."""
    start, first = speed.start, True
    for sampler, parts in _parts(speed).items():
        told = _start_cells(start) if first else ("",) * 5
        apart = ("-", "-") if parts is None else tuple(f"{part:.2f} ms" for part in parts)
        yield (*told, sampler, *apart)
        first = False


def _start_cells(start: Start) -> tuple[str, ...]:
    memory = "-" if start.memory_mib is None else f"{start.memory_mib:.0f} MiB"
    if start.gpu_memory_mib is not None:
        memory += f" + {start.gpu_memory_mib:.0f} MiB GPU"
    seconds = f"{start.load_s:.2f} s", f"{start.warm_up_s:.2f} s"
    return (start.engine, start.dtype, *seconds, memory)


def _parts(speed: Speed) -> dict[str, tuple[float, float] | None]:
    """Sampler -> what a chunk takes once and with each step."""
    from diffusion_policy_ros.bench.speed import parts

    samplers = dict.fromkeys(timing.sampler for timing in speed.timings)
    return {s: parts([t for t in speed.timings if t.sampler == s]) for s in samplers}


def advice(
    speeds: Sequence[Speed], demand: Demand, checkpoint: Path, own_rate: float
) -> Iterator[str]:
    """Yield the verdict, what to mind with it, and the command that runs the setting.

    Args:
        speeds: what was measured.
        demand: what is asked for.
        checkpoint: as it was given.
        own_rate: of its contract, Hz: the only one that it runs at.
    """
    from diffusion_policy_ros.bench.verdict import best, verdict

    timings = _timings(speeds)
    yield f"verdict   {verdict(timings, demand)}"
    if demand.rate_hz != own_rate:
        yield (
            f"note      this checkpoint runs at {own_rate:g} Hz, its contract's; for "
            f"{demand.rate_hz:g} Hz change rate_hz there, convert and train anew"
        )
    chosen = best(timings, demand)
    if chosen is None:
        return
    where = shlex.quote(str(checkpoint))
    if chosen.dtype != "f32" or (chosen.sampler, chosen.steps) != (demand.sampler, demand.steps):
        yield (
            "note      not what the policy was judged with; judge it again, as with "
            f"diffusion-policy eval {where} {_eval_words(chosen)}"
        )
    if demand.rate_hz != own_rate:
        return
    yield (
        f"run       policy_node --ros-args -p checkpoint:={where} -p engine:={chosen.engine} "
        f"-p dtype:={chosen.dtype} -p sampler:={chosen.sampler} "
        f"-p num_inference_steps:={chosen.steps} -p replan_steps:={demand.replan_steps}"
    )


def _eval_words(chosen: Timing) -> str:
    how = f"--sampler {chosen.sampler} --steps {chosen.steps}"
    return f"--engine {chosen.engine} --dtype {chosen.dtype} {how}"


def json_figures(
    speeds: Sequence[Speed], missing: Sequence[str], demand: Demand, checkpoint: Path
) -> dict[str, Any]:
    """The same for a program."""
    from diffusion_policy_ros.bench.verdict import best, verdict

    timings = _timings(speeds)
    chosen = best(timings, demand)
    return {
        "checkpoint": str(checkpoint),
        "machine": machine(),
        "demand": {**dataclasses.asdict(demand), "budget_ms": demand.budget_ms},
        "verdict": {
            "text": verdict(timings, demand),
            "holds": chosen is not None,
            "setting": None if chosen is None else dataclasses.asdict(chosen),
        },
        "settings": [
            {
                **dataclasses.asdict(timing),
                "holds": demand.holds(timing),
                "highest_rate_hz": demand.highest_rate(timing),
            }
            for timing in timings
        ],
        "engines": [
            {
                **dataclasses.asdict(speed.start),
                "parts": [
                    {"sampler": sampler, "once_ms": part[0], "step_ms": part[1]}
                    for sampler, part in _parts(speed).items()
                    if part is not None
                ],
            }
            for speed in speeds
        ],
        "missing": list(missing),
    }
