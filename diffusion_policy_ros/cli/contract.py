"""`diffusion-policy contract check FILE`: what a contract means, or all that is wrong in it.

With `--live`: also whether the robot that runs is what it says.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diffusion_policy_ros.contract.check import recorded
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.report.limits import limit_lines

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import ActionField, Contract, Stream
    from diffusion_policy_ros.ros.live_check import Seen

ARRAY_HEADS = ("key", "array", "measures", "joints")
STREAM_HEADS = ("key", "topic", "type", "field", "max age")
ACTION_HEADS = ("component", "kind", "frame", "state")
LIVE_HEADS = ("topic", "type", "from", "rate", "age", "frame", "")
SOURCE_HEADS = ("component", "learned from")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its one action, `check`."""
    parser = subparsers.add_parser(
        "contract", help="check a robot's contract and print what it means", description=__doc__
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="print the contract as a table, or its mistakes")
    check.add_argument("file", metavar="FILE", help="a YAML file, or a shipped contract's name")
    check.add_argument("--live", action="store_true", help="compare it with the running robot")
    check.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="how long to listen (default 3)"
    )
    check.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="…",
        help="what follows is ROS's, as -r __ns:=/left",
    )
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the contract's table, or that of the robot.

    Raises:
        UserError: the contract's mistakes, all at once; the robot is not what it says.
    """
    from diffusion_policy_ros.contract import Contract

    contract = Contract.load(args.file)
    contract.check_outputs()
    if args.live:
        check_live(contract, args)
        return 0
    unknown = check_definitions(contract, args.file)
    print("\n".join([*describe(contract), *unknown]))
    return 0


def check_live(contract: Contract, args: argparse.Namespace) -> None:
    """Print how the running robot is beside its contract.

    Raises:
        UserError: there is no ROS, or they do not fit.
    """
    need_ros("contract check --live")
    from diffusion_policy_ros.ros.live_check import look

    seen = look(contract, args.seconds, args.ros_args)
    print("\n".join(live_lines(seen)), flush=True)
    wrong = [finding for finding in seen.findings if finding.wrong]
    if wrong:
        what = f"{len(wrong)} things are not what the contract says"
        raise UserError(what, args.file, "the table has a cure for each")


def live_lines(seen: Seen) -> Iterator[str]:
    """Yield one line for each topic, and behind it or below what does not fit."""
    rows = []
    for topic in dict.fromkeys((*seen.rows, *(finding.topic for finding in seen.findings))):
        head = (topic or "all", *seen.rows.get(topic, ("-",) * 5))
        said = [finding for finding in seen.findings if finding.topic == topic]
        told = [f"{'' if f.wrong else 'note: '}{f.what}; {f.cure}" for f in said] or ["ok"]
        rows += [(*(head if i == 0 else ("",) * 6), text) for i, text in enumerate(told)]
    yield from table(LIVE_HEADS, rows)
    yield f"frames  {seen.frames}"


def need_ros(where: str) -> None:
    """Refuse what cannot be done without ROS.

    Raises:
        UserError: there is no rclpy.
    """
    if importlib.util.find_spec("rclpy") is None:
        cure = "source /opt/ros/<release>/setup.bash, or pip install -e '.[ros]' (x86-64)"
        raise UserError("there is no rclpy", where, cure)


def check_definitions(contract: Contract, where: str) -> list[str]:
    """Return what cannot be checked here, for its definition is not known.

    Raises:
        UserErrors: a path is not in the message's definition.
    """
    from diffusion_policy_ros.data.definitions import problems
    from diffusion_policy_ros.errors import UserErrors

    found = list(problems(contract))
    wrong = [p for p in found if not p.key.endswith(".type")]
    if wrong:
        raise UserErrors([UserError(f"{p.key}: {p.what}", where, p.cure) for p in wrong])
    return [f"note: {p.key}: {p.what}; {p.cure}" for p in found]


def describe(contract: Contract) -> Iterator[str]:
    """Yield the lines that tell a person what the contract means, and how this robot says it."""
    yield f"contract  {contract.name}"
    yield f"hash      {contract.hash}"
    yield ""
    yield "MEANING: travels with bags, datasets and checkpoints, which are of this alone"
    yield f"rate      {contract.rate_hz:g} Hz"
    yield "observations, in the order of the condition vector"
    yield from table(ARRAY_HEADS, [array_row(s) for s in contract.observations.values()])
    recorded = "recorded commands" if contract.action.commands else "the state one frame later"
    yield f"action, {contract.action_dim} components, learned from {recorded}"
    yield from table(ACTION_HEADS, list(component_rows(contract)))
    yield ""
    yield "CELL: how this robot says it; may differ between robots and change after training"
    yield f"frames    at the stamps of {contract.anchor}, {contract.settle_s * 1e3:g} ms to settle"
    yield "observations"
    yield from table(STREAM_HEADS, [stream_row(s) for s in contract.observations.values()])
    yield "action"
    yield from table(SOURCE_HEADS, list(source_rows(contract)))
    yield from (f"limit {line}" for line in limit_lines(contract.action))
    for output in contract.outputs:
        fields = ", ".join(part.name for part in output.fields)
        yield f"the action player sends {fields} to {output.topic} ({output.type})"
    for name in contract.action.unlimited:
        yield f"note: no {name}.velocity limit: set-points go as fast as the policy says"


def array_row(stream: Stream) -> tuple[str, ...]:
    """Return one array's line of the meaning: its type, size and what it measures."""
    dtype = "uint8" if stream.is_image else "float32"
    shape = "x".join(str(size) for size in stream.shape)
    quantity = "image" if stream.is_image else stream.quantity or "-"
    return (stream.name, f"{dtype} {shape}", quantity, ", ".join(stream.names) or "-")


def stream_row(stream: Stream) -> tuple[str, ...]:
    """Return one array's line of the cell: where it comes from and how old it may be."""
    stamp = "" if stream.message.stamped else " (no stamp: time of receipt)"
    return (
        stream.name,
        stream.topic,
        stream.type + stamp,
        stream.field or "-",
        f"{stream.max_age_s:g} s",
    )


def component_rows(contract: Contract) -> Iterator[tuple[str, ...]]:
    """Yield one line for each component of the action vector."""
    names = contract.action_names
    for part in contract.action.fields:
        for name in names[contract.action.slices[part.name]]:
            yield (name, part.kind, part.frame, part.state or "-")


def source_rows(contract: Contract) -> Iterator[tuple[str, ...]]:
    """Yield which recorded value feeds which component of the action."""
    names = contract.action_names
    for part in contract.action.fields:
        found = [
            f"{stream.topic} {stream.field}{value_name(stream, i)}"
            for _, stream, place in recorded(contract, part)
            for i in range(place.start, place.stop)
        ]
        later = contract.observations.get(part.state) if not found else None
        told = contract.action.recorded[contract.action.fields.index(part)]
        if told.kind != part.kind:
            stream = next(stream for _, stream, _ in recorded(contract, part))
            found = [f"{stream.topic} {stream.field}, as {part.kind}"] * part.size
        for i, name in enumerate(names[contract.action.slices[part.name]]):
            source = found[i] if found else f"{part.state} one frame later"
            if later is not None and later.size == part.size:
                source = f"{part.state}{value_name(later, i)} one frame later"
            yield (name, source + cut(part))


def value_name(stream: Stream, i: int) -> str:
    """Return which of a stream's values: by the joint's name where it has one."""
    scale = stream.scale[i if len(stream.scale) > 1 else 0] if stream.scale else 1.0
    times = f" * {scale:g}" if scale != 1.0 else ""
    return f"[{stream.names[i] if stream.names else i}]{times}"


def cut(part: ActionField) -> str:
    """Return where a gripper's value is closed; nothing for other fields."""
    if part.kind != "binary":
        return ""
    threshold, above = part.closes or (0.0, True)
    return f", closed {'above' if above else 'below'} {threshold:g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows aligned in columns below their heads."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(cells).rstrip()
