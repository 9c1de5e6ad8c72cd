"""`diffusion-policy latency`: how late measurements, motions and chunks are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy_ros.cli.figures import check_json, check_picture, write_json
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.report.table import table

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.bags import Bag
    from diffusion_policy_ros.data.lags import Lag
    from diffusion_policy_ros.data.latency import Latencies
    from diffusion_policy_ros.runtime.trace import ChunkTimes

LAG_HEADS = ("", "compared with", "later by", "correlation", "prominence", "latency")
STAGE_HEADS = ("stage", "p50", "p99", "longest", "missed deadlines")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "latency",
        help="estimate a robot's latencies from bags; show where a run's time went",
        description="From bags with commands and states: how old each stream's measurements are "
        "and how long commands take to take effect, by cross-correlation, and what to write into "
        "the contract. From the policy node's trace (its parameter trace): where the time of each "
        "chunk went. Both with a picture",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="BAG|TRACE", help="bags, or a trace"
    )
    parser.add_argument("--contract", help="of the robot (default: the one in the bag)")
    parser.add_argument("--plot", type=Path, help="the picture, a PNG (default: in this folder)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is there.

    Raises:
        UserError: no bag, no trace, no contract, or a file that cannot be written.
    """
    check_json(args.json)
    traces = [path for path in args.paths if path.suffix == ".csv"]
    if traces and len(args.paths) > 1:
        raise UserError("a trace is shown alone", str(traces[0]), "give one trace, or bags")
    first = args.paths[0]
    plot = args.plot or Path(f"{first.absolute().stem}.latency.png")
    check_picture(plot)
    figures = _of_trace(first, plot) if traces else _of_bags(args.paths, args.contract, plot)
    print(f"picture   {plot}")
    write_json(args.json, figures)
    return 0


def _of_trace(path: Path, plot: Path) -> dict[str, Any]:
    from diffusion_policy_ros.bench.stages import read_trace
    from diffusion_policy_ros.report.latency import draw_trace

    trace = read_trace(path)
    figures = trace_figures(trace)
    rows = [
        (
            name,
            *(f"{stage[k]:.2f} ms" for k in ("p50_ms", "p99_ms", "max_ms")),
            str(stage["misses"]),
        )
        for name, stage in figures["stages"].items()
    ]
    print(
        f"trace     {path}: {len(trace)} chunks, {figures['deadline_misses']} missed deadlines\n"
    )
    print("\n".join(table(STAGE_HEADS, rows)) + "\n")
    draw_trace(trace, plot)
    return figures


def trace_figures(trace: list[ChunkTimes]) -> dict[str, Any]:
    """How long each stage took, and the misses that it is to blame for."""
    import numpy as np

    from diffusion_policy_ros.bench.stages import causes, stage_ms

    stages, blamed = stage_ms(trace), causes(trace)
    total = {"stamp to chunk": np.sum(list(stages.values()), axis=0)}
    return {
        "chunks": len(trace),
        "deadline_misses": sum(row.missed for row in trace),
        "stages": {
            name: {
                "p50_ms": round(float(np.percentile(took, 50)), 3),
                "p99_ms": round(float(np.percentile(took, 99)), 3),
                "max_ms": round(float(took.max()), 3),
                "misses": blamed.get(name, 0) if name in stages else sum(blamed.values()),
            }
            for name, took in {**stages, **total}.items()
        },
    }


def _of_bags(paths: list[Path], name: str | None, plot: Path) -> dict[str, Any]:
    from diffusion_policy_ros.data.bags import open_bag
    from diffusion_policy_ros.data.latency import estimate, node_figures
    from diffusion_policy_ros.report.latency import draw_lags

    bags = [open_bag(path) for path in paths]
    contract = _contract(bags[0], name)
    found = estimate(bags, contract)
    print("\n".join(describe(found, contract)))
    heard = node_figures(bags)
    if heard:
        print("a policy node said of itself in /diagnostics:")
        print("\n".join(f"  {key}: {value}" for key, value in heard.items()) + "\n")
    draw_lags(dict(_lags(found)), plot)
    return {**bag_figures(found), "diagnostics": heard}


def _contract(bag: Bag, name: str | None) -> Contract:
    from diffusion_policy_ros.contract import Contract

    if name:
        return Contract.load(name)
    if "contract" not in bag.metadata:
        raise UserError("no contract was recorded with it", str(bag.path), "give --contract FILE")
    return Contract.from_text(bag.metadata["contract"], f"the contract in {bag.path}")


def _lags(found: Latencies) -> Iterator[tuple[str, Lag]]:
    for field in found.fields:
        yield f"{field.field} command → {field.state}", field.lag
    for topic in found.topics:
        if topic.stream != found.reference:
            yield f"{found.reference} → {topic.stream}", topic.lag


def describe(found: Latencies, contract: Contract) -> Iterator[str]:
    """Yield what a person reads, and the lines for the contract."""
    rows = [
        _row(f"{f.field} (action)", f.state or "-", f.lag, f.actuation_s) for f in found.fields
    ]
    rows += [
        _row(
            t.topic,
            "itself" if t.stream == found.reference else found.reference,
            t.lag,
            t.observation_s,
        )
        for t in found.topics
    ]
    yield from table(LAG_HEADS, rows)
    yield ""
    unknown = [(f.field, f.lag.why) for f in found.fields if f.lag.seconds is None]
    unknown += [(t.topic, t.lag.why) for t in found.topics if t.lag.seconds is None]
    yield from (f"unknown   {what}: {why}" for what, why in unknown)
    for topic in found.topics:
        if topic.delivery_ms is not None:
            p50, p99 = topic.delivery_ms
            yield f"delivery  {topic.topic}: {p50:.1f} ms, p99 {p99:.1f} ms, stamp to recorder"
    yield ""
    yield f"write into the contract {contract.name}, if the correlations convince you:"
    yield from (f"  {line}" for line in _contract_lines(found, contract))
    yield ""


def _row(what: str, other: str, lag: Lag, own_s: float | None) -> tuple[str, ...]:
    told = "unknown" if lag.seconds is None else f"{lag.seconds * 1e3:.0f} ms"
    own = "-" if own_s is None else f"{own_s * 1e3:.0f} ms"
    return (what, other, told, f"{lag.correlation:.2f}", f"{lag.prominence:.2f}", own)


def _contract_lines(found: Latencies, contract: Contract) -> Iterator[str]:
    lines = [
        f"observations.{stream.name}: observation_latency_s: {_rounded(topic.observation_s)}"
        for topic in found.topics
        if topic.observation_s is not None
        # The reference's own zero is an assumption.
        and (topic.stream != found.reference or _rounded(topic.observation_s) > 0)
        for stream in contract.topics[topic.topic]
    ]
    lines += [
        f"action.fields, name {f.field}: actuation_latency_s: {_rounded(f.actuation_s)}"
        for f in found.fields
        if f.actuation_s is not None
    ]
    yield from lines or ["nothing: no latency could be told"]


def _rounded(seconds: float) -> float:
    return abs(round(seconds, 3))


def bag_figures(found: Latencies) -> dict[str, Any]:
    """The same for a program."""
    return {
        "reference": found.reference,
        "fields": {
            f.field: {
                "state": f.state,
                "actuation_latency_s": f.actuation_s,
                **_lag_figures(f.lag),
            }
            for f in found.fields
        },
        "topics": {
            t.topic: {
                "stream": t.stream,
                "observation_latency_s": t.observation_s,
                "delivery_ms": t.delivery_ms,
                **_lag_figures(t.lag),
            }
            for t in found.topics
        },
    }


def _lag_figures(lag: Lag) -> dict[str, Any]:
    return {
        "lag_s": lag.seconds,
        "correlation": round(lag.correlation, 4),
        "prominence": round(lag.prominence, 4),
        "unknown": lag.why,
    }
