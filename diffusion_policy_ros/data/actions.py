"""Which action belongs to which frame: recorded commands, or the states one frame later.

The frame at time t gets the first command with a stamp in [t, t + 1 / rate): what the operator
told the robot after seeing it; or the last, the mean or the sum of them (``combine``). Without one
it gets the one before for as long as that holds (``hold_s``); else it has no action, and the
episode ends there.

Whatever a gripper says, width, angle or 0 and 1, its ``binary`` field is −1 open and +1 closed.
A recorded target, a pose or joints, may feed a field of any form: rotations are written as the
field has them, and a delta is the way from the target before, or from what is measured.

An action is meant for the time at which it takes effect. A recorded command's stamp is moved by
the ``actuation_latency_s`` of its field to when it did, and the player sends the action that much
early: what was sent 0.1 s before its effect is sent so again. A state one frame later is an effect
already. See ``doc/adr/0005-latencies.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import ActionField, Contract, Stream, slices
from diffusion_policy_ros.contract.messages import TF, TF_STATIC
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array, DecodeError, decode, stamp_ns
from diffusion_policy_ros.observe.transforms import Transforms
from diffusion_policy_ros.policy.rotations import (
    TO_QUATERNION,
    angle_between,
    delta_between,
    is_rotation,
    quaternion_to_axis_angle,
    quaternion_to_rotation_6d,
)

FAR_RAD = 1.0
"""No arm turns as far within a frame, unless something is wrong."""


class Commands:
    """The recorded commands of one bag, decoded when a frame asks for them.

    Attributes:
        refused: why a frame has no action → how many.
        unstamped: topic → messages with a stamp of zero.
        counts: topic → messages.

    Raises:
        UserError: targets are to become deltas of what nothing measures.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._streams = contract.action.commands
        for part, source in zip(contract.action.fields, contract.action.recorded, strict=True):
            if part.is_delta and not source.is_delta and not part.state:
                what = f"targets are recorded, and {part.name} is how far to go from where it is"
                raise UserError(what, contract.name, "name what measures it as the field's state")
        self._has_tf = any(stream.tf is not None for stream in self._streams)
        self._trees: dict[int, Transforms] = {}
        self._static: list[Any] = []
        self._found: dict[tuple[int, str], list[tuple[int, Any]]] = {}
        self._by_receipt = {s.topic for s in self._streams if s.time == "receipt"}
        self.refused: Counter[str] = Counter()
        self.unstamped: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    @property
    def topics(self) -> set[str]:
        """The topics that commands are recorded on."""
        found = {stream.topic for stream in self._streams}
        return found | {TF_STATIC} if self._has_tf else found

    def push(self, topic: str, msg: Any, arrival_ns: int, life: int) -> None:
        """Take a message; ``life`` counts how often the robot's time has started anew.

        A stamp of zero is what publishers of commands leave in them: the time of receipt is taken.
        """
        if self._has_tf and topic in (TF, TF_STATIC):
            self._static += [msg] if topic == TF_STATIC else []
            self._tree(life).push(topic, msg)
            return
        stamp = None if topic in self._by_receipt else stamp_ns(msg)
        self.unstamped[topic] += stamp == 0
        self.counts[topic] += 1
        self._found.setdefault((life, topic), []).append((stamp or arrival_ns, msg))

    def _tree(self, life: int) -> Transforms:
        """The transforms of a life; what is static was so before."""
        if life not in self._trees:
            self._trees[life] = Transforms(kept_ns=1 << 62)
            for msg in self._static:
                self._trees[life].push(TF_STATIC, msg)
        return self._trees[life]

    def actions(
        self, times_ns: NDArray[np.int64], life: int, states: Mapping[str, Array] | None = None
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Actions of frames, and which frames have one.

        Args:
            times_ns: (n,) the frames' times.
            life: which life of the robot's time they belong to.
            states: observation key → (n, size), measured in these frames; needed where targets
                become deltas.

        Returns:
            float32 (n, Da), and bool (n,).
        """
        fields = self._contract.action.recorded
        latencies = np.repeat([f.latency_ns for f in fields], [f.size for f in fields])
        parts, start = [], 0
        for stream in self._streams:
            own = latencies[start : start + stream.size]
            parts.append(self._stream_actions(stream, times_ns, life, own))
            start += stream.size
        told = np.concatenate([p[0] for p in parts], axis=1)
        valid = np.logical_and.reduce([p[1] for p in parts])
        return as_fields(self._contract, told, valid, states or {}), valid

    def _stream_actions(
        self, stream: Stream, times_ns: Array, life: int, latencies: Array
    ) -> tuple[Array, Array]:
        """One stream's part of the actions; ``latencies`` (ns) are its components'."""
        if stream.tf is not None:
            sent_ns = times_ns - latencies[0] + stream.latency_ns
            return self._tf_actions(stream, sent_ns, life)
        found = sorted(self._found.get((life, stream.topic), []), key=lambda entry: entry[0])
        stamps = np.array([stamp for stamp, _ in found], dtype=np.int64)
        stamps -= stream.latency_ns
        values = np.zeros((len(times_ns), stream.size), np.float32)
        valid = np.ones(len(times_ns), bool)
        for latency in np.unique(latencies):
            columns, sent_ns = np.flatnonzero(latencies == latency), times_ns - latency
            begins = np.searchsorted(stamps, sent_ns).tolist()
            ends = np.searchsorted(stamps, sent_ns + self._contract.period_ns).tolist()
            for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                if (
                    begin == end
                    and begin
                    and sent_ns[i] - stamps[begin - 1] <= stream.hold_s * 1e9
                ):
                    begin -= 1
                if begin == end:
                    self.refused[f"no command on {stream.topic} within one frame"] += 1
                    valid[i] = False
                    continue
                try:
                    told = [entry[1] for entry in found[begin:end]]
                    values[i, columns] = _combined(stream, told)[columns]
                except DecodeError as error:
                    self.refused[str(error)] += 1
                    valid[i] = False
        return values, valid

    def _tf_actions(self, stream: Stream, times_ns: Array, life: int) -> tuple[Array, Array]:
        """Where one frame was in another at the frames' times."""
        values = np.zeros((len(times_ns), stream.size), np.float32)
        valid = np.zeros(len(times_ns), bool)
        for i, time_ns in enumerate(times_ns.tolist()):
            try:
                values[i], age_ns = self._tree(life).at(stream, time_ns)
                valid[i] = age_ns <= stream.max_age_s * 1e9
                self.refused[f"{stream.name}: its transforms are too old"] += not valid[i]
            except UserError as error:
                self.refused[f"{stream.name} ({stream.topic}): {error}"] += 1
        self.refused = +self.refused
        return values, valid


def _combined(stream: Stream, told: list[Any]) -> Array:
    """What the commands between two frames make together."""
    if stream.combine in ("first", "last"):
        return decode(stream, told[0 if stream.combine == "first" else -1])
    values = np.stack([decode(stream, msg) for msg in told])
    return np.asarray(values.sum(axis=0) if stream.combine == "sum" else values.mean(axis=0))


def as_fields(contract: Contract, told: Array, valid: Array, states: Mapping[str, Array]) -> Array:
    """Commands as they were recorded → actions as the contract's fields have them.

    Args:
        contract: the robot.
        told: (n, …) of frames that follow each other, see `Action.recorded`.
        valid: (n,) which of them there are.
        states: observation key → (n, size).

    Returns:
        float32 (n, Da); zeros where there is none.
    """
    action, places = contract.action, slices(contract.action.recorded)
    out = np.zeros((len(told), contract.action_dim), np.float32)
    follows = np.concatenate([[False], valid[:-1]])[valid]
    for part, source in zip(action.fields, action.recorded, strict=True):
        values = told[:, places[part.name]].astype(np.float64)
        here = values[valid]
        if part.kind == "binary":
            here = closed(part, here)
        elif part.kind != source.kind:
            start = here
            if part.is_delta:
                commanded = follows[:, None] & (part.deltas_from == "commanded")
                start = np.where(
                    commanded, np.roll(values, 1, axis=0)[valid], states[part.state][valid]
                )
            here = _PART[part.kind](part, start, here)
        out[valid, action.slices[part.name]] = here
    return out


def next_state_actions(contract: Contract, states: dict[str, Array]) -> Array:
    """Actions that lead from each frame to the next one.

    Args:
        contract: says which state each part of the action is derived from.
        states: observation key → (n, size), of frames without a gap.

    Returns:
        float32 (n - 1, Da).
    """
    parts = [followed(part, states[part.state]) for part in contract.action.fields]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _delta_position(_part: ActionField, before: Array, after: Array) -> Array:
    return after - before


def _delta_axis_angle(_part: ActionField, before: Array, after: Array) -> Array:
    """Rotation vectors in the base frame: R1 = exp(v) R0."""
    return delta_between(before, after)


def _delta_joints(part: ActionField, before: Array, after: Array) -> Array:
    """Of continuous joints the short way round."""
    return short_way(part.wrap, after - before)


def short_way(wrap: bool | tuple[bool, ...], way: Array) -> Array:
    """A way of joints; of those that are continuous the short one round."""
    return np.where(wrap, (way + np.pi) % (2 * np.pi) - np.pi, way)


def _axis_angle(_part: ActionField, _before: Array, after: Array) -> Array:
    return quaternion_to_axis_angle(after)


def _rotation_6d(_part: ActionField, _before: Array, after: Array) -> Array:
    return quaternion_to_rotation_6d(after)


def _next(_part: ActionField, _before: Array, after: Array) -> Array:
    return after


def _binary(part: ActionField, _before: Array, after: Array) -> Array:
    return closed(part, after[:, :1])


def closed(part: ActionField, values: Array) -> Array:
    """+1 for closed, -1 for open; closed above 0 where the contract says nothing."""
    threshold, above = part.closes or (0.0, True)
    return np.where(values > threshold if above else values < threshold, 1.0, -1.0)


_PART = {
    "delta_position": _delta_position,
    "delta_axis_angle": _delta_axis_angle,
    "position": _next,
    "axis_angle": _axis_angle,
    "quaternion": _next,
    "rotation_6d": _rotation_6d,
    "delta_joint_position": _delta_joints,
    "joint_position": _next,
    "joint_velocity": _next,
    "twist": _next,
    "scalar": _next,
    "binary": _binary,
}
"""Kind → what an action of it is that leads from a pose, or joints, to the next."""


COMPARABLE = frozenset(_PART) - {"binary"}
"""Kinds of which `followed` says what a command should have said."""


def followed(part: ActionField, state: Array) -> Array:
    """What a field's state says was done, as a command of it would have said it.

    Args:
        part: of one of the kinds `COMPARABLE`.
        state: (n, size) of frames that follow each other.

    Returns:
        (n - 1, size).
    """
    exact = state.astype(np.float64)
    return _PART[part.kind](part, exact[:-1], exact[1:])


def far_turns(name: str, kind: str, stretches: Iterable[Array]) -> Iterator[str]:
    """Rotations that jump by more than `FAR_RAD` between two frames, or only their numbers do.

    Args:
        name: of what turns.
        kind: how rotations are written, a key of TO_QUATERNION.
        stretches: each (n, size) of frames that follow each other.
    """
    angles, steps = [np.zeros(0)], [np.zeros(0)]
    for values in stretches:
        exact = values[is_rotation(kind, values)].astype(np.float64)
        turns = TO_QUATERNION[kind](exact)
        angles.append(angle_between(turns[:-1], turns[1:]))
        steps.append(np.linalg.norm(np.diff(exact, axis=0), axis=-1))
    turned, moved = np.concatenate(angles), np.concatenate(steps)
    far = turned > FAR_RAD
    jumps = (moved > FAR_RAD) & ~far
    if far.any():
        often = f"({far.sum()}x)"
        yield f"{name} turns by more than {FAR_RAD:g} rad between frames {often}: is that so?"
    if kind == "axis_angle" and jumps.any():
        yield (
            f"{name} as axis_angle jumps by {moved[jumps].max():.2f} rad between frames in which "
            f"it hardly turns ({jumps.sum()}x): learn it with policy.actions: absolute or relative"
        )
