"""`diffusion-policy contract check FILE`: what a contract means, or all that is wrong in it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diffusion_policy_ros.report.limits import limit_lines

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import Contract, Stream

STREAM_HEADS = ("key", "array", "topic", "type", "field", "max age")
ACTION_HEADS = ("component", "kind", "frame", "state")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its one action, `check`."""
    parser = subparsers.add_parser(
        "contract", help="check a robot's contract and print what it means", description=__doc__
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="print the contract as a table, or its mistakes")
    check.add_argument("file", metavar="FILE", help="a YAML file, or a shipped contract's name")
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the contract's table.

    Raises:
        UserError: the contract's mistakes, all at once.
    """
    from diffusion_policy_ros.contract import Contract

    print("\n".join(describe(Contract.load(args.file))))
    return 0


def describe(contract: Contract) -> Iterator[str]:
    """Yield the lines that tell a person what the contract means."""
    yield f"contract  {contract.name}"
    yield f"hash      {contract.hash}"
    yield f"rate      {contract.rate_hz:g} Hz, frames at the stamps of {contract.anchor}"
    yield f"settle    {contract.settle_s * 1e3:g} ms"
    yield ""
    yield "observations, in the order of the condition vector"
    yield from table(STREAM_HEADS, [stream_row(s) for s in contract.observations.values()])
    yield ""
    yield f"action, {contract.action_dim} components"
    yield from table(ACTION_HEADS, list(component_rows(contract)))
    yield ""
    yield from describe_record(contract)
    yield from (f"limit {line}" for line in limit_lines(contract.action.limits))
    for name in contract.action.unlimited:
        yield (
            f"note: no {name} limit: set-points go as fast as the policy says; give limits.{name}"
        )


def stream_row(stream: Stream) -> tuple[str, ...]:
    """Return one array's line: where it comes from and how old it may be."""
    dtype = "uint8" if stream.is_image else "float32"
    shape = "x".join(str(size) for size in stream.shape)
    field = stream.field + (f" [{', '.join(stream.names)}]" if stream.names else "")
    stamp = "" if stream.message.stamped else " (no stamp: time of receipt)"
    return (
        stream.name,
        f"{dtype} {shape}",
        stream.topic,
        stream.type + stamp,
        field or "-",
        f"{stream.max_age_s:g} s",
    )


def component_rows(contract: Contract) -> Iterator[tuple[str, ...]]:
    """Yield one line for each component of the action vector."""
    names = contract.action_names
    for part in contract.action.fields:
        for name in names[contract.action.slices[part.name]]:
            yield (name, part.kind, part.frame, part.state or "-")


def describe_record(contract: Contract) -> Iterator[str]:
    """Yield where training finds the actions."""
    commands = contract.action.commands
    if not commands:
        yield "training derives actions from the state one frame later"
    for stream in commands:
        yield f"training takes actions from {stream.topic} ({stream.type}, {stream.field})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows aligned in columns below their heads."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(cells).rstrip()
