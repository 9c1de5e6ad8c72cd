"""A contract's two halves, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator

from diffusion_policy_ros.contract import ActionField, Contract, Stream
from diffusion_policy_ros.contract.check import recorded, sent_in_other_units
from diffusion_policy_ros.report.limits import limit_lines
from diffusion_policy_ros.report.table import table

ARRAY_HEADS = ("key", "array", "measures", "joints")
ACTION_HEADS = ("component", "kind", "frame", "state")
STREAM_HEADS = ("key", "topic", "type", "field", "max age")
SOURCE_HEADS = ("component", "learned from")


def contract_lines(contract: Contract) -> Iterator[str]:
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
    yield from (f"note: {line}" for line in sent_in_other_units(contract))
    yield from (f"note: {line}" for line in contract.action.unlikely)
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
