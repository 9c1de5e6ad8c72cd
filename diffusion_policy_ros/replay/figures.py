"""How far chunks are from what was done, from each other, and from the limits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import ROTATION_KINDS, ActionField, Contract
from diffusion_policy_ros.data.actions import short_way
from diffusion_policy_ros.policy.rotations import TO_QUATERNION, angle_between, is_rotation
from diffusion_policy_ros.replay.reading import Replayed
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.tail import Chunk

Actions = NDArray[np.float64]
Errors = dict[str, NDArray[np.float64]]
"""Measure → (chunks, steps), NaN where nothing is known."""

SAME = 1e-5
"""Largest difference of a component between a live chunk and the same one replayed."""
SHARE = "share different"
"""The unit of what is either open or closed."""
UNITS = {
    "joints": "rad or m",
    "joint_velocity": "rad/s or m/s",
    "twist": "m/s or rad/s",
    "scalar": "in its unit",
}
"""Role of a field whose largest component counts → its unit."""
LEAST_SHARE = 0.05
"""Of the chunks that a step's statistics must be of; the last steps are known of few."""
PATH = "way of "
"""Before a delta field's name: the deltas of the chunk so far, summed up."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """How two actions are compared in one field.

    Attributes:
        name: of the field, or `PATH` and the field.
        unit: of the distance.
        distance: (n, Da), (n, Da) → (n,).
    """

    name: str
    unit: str
    distance: Callable[[Actions, Actions], NDArray[np.float64]]


def measures(contract: Contract) -> list[Measure]:
    """What is compared for a contract's action."""
    found = []
    for part in contract.action.fields:
        place = contract.action.slices[part.name]
        found.append(_measure(part, place))
        if part.kind == "delta_position":
            found.append(Measure(PATH + part.name, "m", _of_part(place, _summed_up)))
    return found


def _measure(part: ActionField, place: slice) -> Measure:
    if part.kind == "binary":
        return Measure(part.name, SHARE, _of_part(place, _other_side))
    if part.kind in ROTATION_KINDS:
        kind = "axis_angle" if part.kind == "delta_axis_angle" else part.kind
        return Measure(part.name, "rad", _of_part(place, lambda a, b: _angle(kind, a, b)))
    if part.kind == "joint_position":
        return Measure(part.name, "rad or m", _of_part(place, lambda a, b: _apart(part, a, b)))
    if part.role != "position":
        return Measure(part.name, UNITS[part.role], _of_part(place, _largest))
    return Measure(part.name, "m", _of_part(place, _length))


def _of_part(
    place: slice, distance: Callable[[Actions, Actions], Any]
) -> Callable[[Actions, Actions], NDArray[np.float64]]:
    return lambda left, right: np.asarray(distance(left[:, place], right[:, place]), np.float64)


def _length(left: Actions, right: Actions) -> Any:
    return np.linalg.norm(left - right, axis=1)


def _summed_up(left: Actions, right: Actions) -> Any:
    return np.linalg.norm(np.cumsum(left - right, axis=0), axis=1)


def _largest(left: Actions, right: Actions) -> Any:
    return np.abs(left - right).max(axis=1)


def _apart(part: ActionField, left: Actions, right: Actions) -> Any:
    return np.abs(short_way(part.wrap, left - right)).max(axis=1)


def _other_side(left: Actions, right: Actions) -> Any:
    return np.where(np.isnan(left + right), np.nan, (left > 0) != (right > 0))[:, 0]


def _angle(kind: str, left: Actions, right: Actions) -> Any:
    found = np.full(len(left), np.nan)
    known = np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)
    known &= is_rotation(kind, left) & is_rotation(kind, right)
    if known.any():
        turn = TO_QUATERNION[kind]
        found[known] = angle_between(turn(left[known]), turn(right[known]))
    return found


# Over a recording


def errors(replayed: Replayed, contract: Contract) -> tuple[Errors, Errors]:
    """How far each chunk is from what was done, and how far repeating the action before would be.

    The second is what a policy must beat to be worth anything.

    Returns:
        Twice measure → (chunks, steps).
    """
    policy: list[tuple[Actions, Actions]] = []
    repeated: list[tuple[Actions, Actions]] = []
    for frame, chunk in replayed.chunks.items():
        done = done_from(replayed, frame, len(chunk.actions))
        policy.append((chunk.actions, done))
        before = np.full(contract.action_dim, np.nan)
        if frame > 0 and replayed.segment[frame - 1] == replayed.segment[frame]:
            before = replayed.done[frame - 1]
        repeated.append((np.tile(before, (len(done), 1)), done))
    return _compared(policy, contract), _compared(repeated, contract)


def disagreement(replayed: Replayed, contract: Contract) -> Errors:
    """How far each chunk is from the one before at the times that both are of.

    Returns:
        Measure → (pairs, steps of the newer chunk).
    """
    pairs = []
    for frame, later in zip(replayed.chunks, list(replayed.chunks)[1:], strict=False):
        old, new = replayed.chunks[frame].actions, replayed.chunks[later].actions
        passed = later - frame
        if replayed.segment[frame] == replayed.segment[later] and passed < len(old):
            rest = np.full_like(new, np.nan)
            rest[: len(old) - passed] = old[passed:]
            pairs.append((new, rest))
    return _compared(pairs, contract)


def done_from(replayed: Replayed, frame: int, steps: int) -> Actions:
    """What was done from a frame on, NaN beyond what follows it without a gap."""
    found = np.full((steps, replayed.done.shape[1]), np.nan)
    segment = np.array(replayed.segment[frame : frame + steps])
    count = int((segment == segment[0]).sum())
    found[:count] = replayed.done[frame : frame + count]
    return found


def _compared(pairs: Sequence[tuple[Actions, Actions]], contract: Contract) -> Errors:
    if not pairs:
        return {}
    return {m.name: np.stack([m.distance(a, b) for a, b in pairs]) for m in measures(contract)}


def by_step(found: Iterable[Errors]) -> dict[str, dict[str, list[float | None]]]:
    """Mean and 95 % of all recordings' errors: measure → name → one number a step."""
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for one in found:
        for name, values in one.items():
            rows.setdefault(name, []).append(values)
    return {name: _statistics(np.concatenate(parts)) for name, parts in rows.items()}


def _statistics(values: NDArray[np.float64]) -> dict[str, list[float | None]]:
    columns = [column[np.isfinite(column)] for column in values.T]
    enough = max(1, LEAST_SHARE * len(values))
    return {
        "mean": [_rounded(c.mean()) if len(c) >= enough else None for c in columns],
        "p95": [_rounded(np.quantile(c, 0.95)) if len(c) >= enough else None for c in columns],
    }


def _rounded(value: Any) -> float:
    """Six digits: what JSON shall show."""
    return float(f"{float(value):.6g}")


# Limits, streams, the live run


def saturation(replayed: Iterable[Replayed], contract: Contract, executed: int) -> dict[str, Any]:
    """What the player says of the chunks: how many it rejects, and actions that it clamps.

    Each chunk is played from the measured pose of its frame, without the limit on the lead: what
    the arm would have done is not known.
    """
    actions, clamped, rejected = 0, Counter[str](), Counter[str]()
    for one in replayed:
        for frame, chunk in one.chunks.items():
            player = Player(contract, interpolate=False)
            player.release(chunk.stamp_ns)
            part = Chunk(chunk.stamp_ns, chunk.actions[:executed], chunk.period_ns)
            if player.offer(part):
                rejected += player.rejected
                continue
            measured = {key: values[frame] for key, values in one.states.items()}
            for i in range(len(part.actions)):
                player.tick(part.stamp_ns + i * part.period_ns, {} if i else measured)
            clamped += player.clamped
            rejected += player.rejected
            actions += len(part.actions)
    shares = {name: _rounded(count / max(actions, 1)) for name, count in sorted(clamped.items())}
    return {
        "actions": actions,
        "clamped": shares,
        "rejected_chunks": dict(sorted(rejected.items())),
    }


def streams(replayed: Sequence[Replayed], contract: Contract) -> dict[str, dict[str, float]]:
    """How old each stream's message is when a frame is made, ms, and what the contract allows."""
    found = {}
    for key, stream in contract.observations.items():
        ages = [age / 1e6 for one in replayed for age in one.ages_ns.get(key, [])]
        if ages:
            p50, p99 = (_rounded(q) for q in np.quantile(ages, (0.5, 0.99)))
            allowed = _rounded(stream.max_age_s * 1e3)
            found[key] = {"p50": p50, "p99": p99, "max": _rounded(max(ages)), "allowed": allowed}
    return found


def frames(replayed: Sequence[Replayed]) -> dict[str, Any]:
    """Frames that were made and refused, and where they do not follow each other."""
    refused = sum((one.refused for one in replayed), Counter[str]())
    gaps = [gap for one in replayed for gap in _gaps(one)]
    return {
        "made": sum(len(one.times_ns) for one in replayed),
        "refused": dict(refused.most_common()),
        "gaps": len(gaps),
        "longest_gap_s": _rounded(max(gaps, default=0.0)),
        "resets": sum(len(one.resets) for one in replayed),
    }


def _gaps(replayed: Replayed) -> list[float]:
    steps, changes = np.diff(replayed.times_ns) / 1e9, np.diff(replayed.segment)
    return [float(s) for s, c in zip(steps, changes, strict=True) if c and s > 0]


def against_live(replayed: Sequence[Replayed]) -> dict[str, Any] | None:
    """How far the chunks are from those that the node published; None where none was recorded.

    Chunks are not compared that follow from something before the recording (its first frames, or
    all of a run whose beginning is not in it where chunks join), nor those of its last half
    second, for which no report tells how they were made.
    """
    live = [one for one in replayed if one.live is not None]
    if not live:
        return None
    differences = [d for one in live for d in _differences(one)]
    recorded = sum(len(one.live.chunks) for one in live if one.live)
    delays = [d * 1e3 for one in live if one.live for d in one.live.delays_s]
    told = live[-1].live.values if live[-1].live else {}
    return {
        "chunks": recorded,
        "compared": len(differences),
        "same": sum(d <= SAME for d in differences),
        "largest_difference": _rounded(max(differences, default=0.0)),
        "holds": sum(one.live.holds for one in live if one.live),
        "delay_ms_p50": _rounded(np.quantile(delays, 0.5)),
        "delay_ms_p99": _rounded(np.quantile(delays, 0.99)),
        "engine": " ".join(told[key] for key in ("engine", "dtype") if key in told),
        "player": live[-1].live.player if live[-1].live else {},
        "said": dict(sum((one.live.said for one in live if one.live), Counter[str]())),
    }


def _differences(replayed: Replayed) -> list[float]:
    assert replayed.live is not None
    found = []
    for frame, chunk in replayed.chunks.items():
        published = replayed.live.chunks.get(chunk.stamp_ns)
        if published is not None and frame in replayed.whole:
            ours = chunk.actions[: len(published)]
            found.append(float(np.abs(ours - published[: len(ours)]).max()))
    return found
