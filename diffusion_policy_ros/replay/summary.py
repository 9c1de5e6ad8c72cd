"""The figures of a replay as JSON, and two of them compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import same_meaning
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.replay import figures
from diffusion_policy_ros.replay.policy import Policy
from diffusion_policy_ros.replay.reading import Replayed

FORMAT = 1
TOLERANCES = {"actions": 1e-4, "worse": 0.05, "age_ms": 1.0}
"""What may differ: components of actions, the share that errors may grow by, and ages.

They stand in the file, where whoever keeps it may change them.
"""
DIGITS = 8


def summary(
    replayed: Sequence[Replayed], policy: Policy, executed: int, checkpoint: str
) -> dict[str, Any]:
    """All figures of a replay.

    Args:
        replayed: the recordings.
        policy: what made the chunks.
        executed: Ta, how many actions of a chunk are executed.
        checkpoint: its hash.
    """
    contract = policy.contract
    found = [figures.errors(one, contract) for one in replayed]
    return {
        "format": FORMAT,
        "tolerances": TOLERANCES,
        "checkpoint": checkpoint,
        "contract": contract.hash,
        "recordings": [one.name for one in replayed],
        "roles": [one.role for one in replayed],
        "engine": f"{policy.engine.name} {policy.engine.dtype} on {policy.engine.device}",
        "sampler": policy.sampling.sampler,
        "num_inference_steps": policy.sampling.num_inference_steps,
        "chunk_join": policy.sampling.chunk_join,
        "seed": policy.seed,
        "chunks": sum(len(one.chunks) for one in replayed),
        "executed_steps": executed,
        "units": {measure.name: measure.unit for measure in figures.measures(contract)},
        "error": figures.by_step(policy_errors for policy_errors, _ in found),
        "error_of_repeating": figures.by_step(repeated for _, repeated in found),
        "disagreement": figures.by_step(figures.disagreement(one, contract) for one in replayed),
        "limits": figures.saturation(replayed, contract, executed),
        "frames": figures.frames(replayed),
        "age_ms": figures.streams(replayed, contract),
        "live": figures.against_live(replayed),
        "first_actions": [_first_actions(one) for one in replayed],
    }


def _first_actions(replayed: Replayed) -> list[list[float]]:
    """Of each chunk the action that is executed first."""
    first = [chunk.actions[0].round(DIGITS).tolist() for chunk in replayed.chunks.values()]
    return [list(action) for action in first]


def overall(
    by_step: Mapping[str, Mapping[str, list[float | None]]], steps: int
) -> dict[str, float]:
    """Measure → mean over the first `steps` steps; measures without any number are left out."""
    found = {}
    for name, rows in by_step.items():
        known = [value for value in rows["mean"][:steps] if value is not None]
        if known:
            found[name] = float(np.mean(known))
    return found


# Comparing


def load_expected(path: Path) -> dict[str, Any]:
    """Read the figures of an earlier replay.

    Raises:
        UserError: it is none.
    """
    cure = "give the replay.json of an earlier replay"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot be read ({type(error).__name__})", str(path), cure) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"is no replay of format {FORMAT}", str(path), cure)
    lost = [key for key in ("tolerances", "error", "frames", "first_actions") if key not in found]
    if lost:
        raise UserError(f"has no '{lost[0]}'", str(path), cure)
    return found


def differences(ours: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    """One line for each thing that is not as it was expected.

    Errors may be smaller than expected; actions of another checkpoint are not compared.
    """
    allowed = {**TOLERANCES, **expected["tolerances"]}
    others = [key for key in ALIKE if ours[key] != expected.get(key)]
    if not same_meaning(ours["contract"], str(expected.get("contract"))):
        others.insert(0, "contract")
    for key in others:
        yield f"{key}: {_short(ours[key])}, expected {_short(expected.get(key))}"
    if not others and ours["checkpoint"] == expected.get("checkpoint"):
        yield from _other_actions(ours, expected, allowed["actions"])
    for key in ("error", "disagreement"):
        yield from _worse(key, ours, expected, allowed["worse"])
    yield from _worse_limits(ours["limits"], expected.get("limits", {}), allowed["worse"])
    for name, value in ours["frames"].items():
        if value != expected["frames"].get(name):
            was = expected["frames"].get(name)
            yield f"frames, {name}: {_short(value)}, expected {_short(was)}"
    yield from _older(ours["age_ms"], expected.get("age_ms", {}), allowed["age_ms"])


ALIKE = (
    "recordings",
    "chunks",
    "seed",
    "sampler",
    "num_inference_steps",
    "chunk_join",
)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _other_actions(
    ours: Mapping[str, Any], expected: Mapping[str, Any], allowed: float
) -> Iterator[str]:
    pairs = zip(ours["recordings"], ours["first_actions"], expected["first_actions"], strict=True)
    for name, here, there in pairs:
        if np.shape(here) != np.shape(there):
            yield f"actions of {name}: {np.shape(here)} values, expected {np.shape(there)}"
            continue
        gaps = np.abs(np.subtract(here, there)).max(axis=1, initial=0.0)
        if gaps.max(initial=0.0) > allowed:
            worst = int(gaps.argmax())
            yield (
                f"actions of {name}: {int((gaps > allowed).sum())} of {len(gaps)} chunks differ, "
                f"chunk {worst} by {gaps[worst]:.3g}; allowed is {allowed:g}"
            )


def _worse(
    key: str, ours: Mapping[str, Any], expected: Mapping[str, Any], allowed: float
) -> Iterator[str]:
    steps = ours["executed_steps"]
    here, there = overall(ours[key], steps), overall(expected.get(key, {}), steps)
    for name, value in here.items():
        if name not in there:
            yield f"{key}, {name}: {value:.4g}, expected none"
        elif value > there[name] * (1 + allowed) + 1e-6:
            more = f"{allowed:.0%} more is allowed"
            yield f"{key}, {name}: {value:.4g}, expected {there[name]:.4g}; {more}"


def _worse_limits(
    ours: Mapping[str, Any], expected: Mapping[str, Any], allowed: float
) -> Iterator[str]:
    before = expected.get("clamped", {})
    for name, share in ours["clamped"].items():
        if share > before.get(name, 0.0) + allowed:
            yield (
                f"limits, {name}: clamps {share:.1%} of the actions, "
                f"expected {before.get(name, 0.0):.1%}; {allowed:.0%} more is allowed"
            )
    if ours["rejected_chunks"] != expected.get("rejected_chunks", {}):
        was = _short(expected.get("rejected_chunks", {}))
        yield f"limits, rejected chunks: {_short(ours['rejected_chunks'])}, expected {was}"


def _older(ours: Mapping[str, Any], expected: Mapping[str, Any], allowed: float) -> Iterator[str]:
    for name, ages in ours.items():
        before = expected.get(name, {}).get("p99", 0.0)
        if ages["p99"] > before + allowed:
            yield (
                f"age of {name}: 99 % within {ages['p99']:.4g} ms, expected {before:.4g} ms; "
                f"{allowed:g} ms more is allowed"
            )
