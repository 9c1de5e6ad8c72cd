"""The action vector: its fields, each an axis with limits and an output, and where training finds
it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffusion_policy_ros.contract.limits import (
    FARTHEST,
    FORMER,
    LIMITS_OF,
    FieldLimits,
    Limits,
    is_tighter,
)
from diffusion_policy_ros.contract.meaning import CELL, cell
from diffusion_policy_ros.contract.messages import MESSAGE_TYPES
from diffusion_policy_ros.contract.outputs import Send
from diffusion_policy_ros.contract.stream import Stream
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.strict_yaml import Problem

Kind = Literal[
    "delta_position",
    "delta_axis_angle",
    "delta_joint_position",
    "position",
    "axis_angle",
    "quaternion",
    "rotation_6d",
    "joint_position",
    "joint_velocity",
    "twist",
    "scalar",
    "binary",
]
ACTION_KINDS: dict[str, int] = {
    "delta_position": 3,
    "delta_axis_angle": 3,
    "delta_joint_position": 0,
    "position": 3,
    "axis_angle": 3,
    "quaternion": 4,
    "rotation_6d": 6,
    "joint_position": 0,
    "joint_velocity": 0,
    "twist": 6,
    "scalar": 1,
    "binary": 1,
}
"""Kind of an action field → its size, 0 where the contract gives it.

Deltas are per action, in the base frame, rotations multiplied from the left; ``rotation_6d`` is
the first two rows of the rotation's matrix; ``twist`` is linear, then angular velocity; ``scalar``
is a gripper's width or any other number; ``binary`` is −1 open and +1 closed.
"""
ROLES: dict[str, str] = {
    "delta_position": "position",
    "position": "position",
    "delta_axis_angle": "rotation",
    "axis_angle": "rotation",
    "quaternion": "rotation",
    "rotation_6d": "rotation",
    "delta_joint_position": "joints",
    "joint_position": "joints",
    "joint_velocity": "joint_velocity",
    "twist": "twist",
    "scalar": "scalar",
    "binary": "binary",
}
"""Kind of an action field → what a set-point has of it, which says what limits act on it."""
ROTATION_KINDS = tuple(kind for kind, role in ROLES.items() if role == "rotation")
TOLD_AS: dict[tuple[str, str], Kind] = {
    ("position", "position"): "position",
    ("rotation", "orientation"): "quaternion",
    ("joints", "joint_position"): "joint_position",
}
"""Role of a field, and what a recorded command says → the kind that this is."""
STATE_SIZES = {"position": 3, "rotation": 4}
"""Role → values of the state that measures it, where these are not the field's own."""


@dataclass(frozen=True)
class ActionField:
    """One named part of the action vector: an axis.

    Attributes:
        name: its name, the prefix of its components' names.
        kind: one of `ACTION_KINDS`.
        size: number of components; given by the kind, but for joints.
        frame: the tf frame that it is expressed in.
        state: the observation that measures the same thing: where the arm is now, and what actions
            are derived from when ``record`` is ``next_state``.
        threshold: for ``binary``: where the recorded command, or the state, is open on one side
            and closed on the other; half way between ``open_value`` and ``closed_value`` if these
            are given. Needed with ``next_state``; 0 for commands.
        closed: the side of ``threshold`` that is closed; below a given one, and above 0.
        open_value: what is recorded when the gripper is open; what it is sent is in ``send``.
        closed_value: what is recorded when it is closed.
        actuation_latency_s: how long a command of this field takes to take effect; it is sent that
            much early, see `Contract.sent_early_ns`.
        check_frame: whether messages that measure its state must be in ``frame``.
        deltas_from: what a delta is added to: the set-point before, or what is measured when the
            delta is due, as robomimic, robosuite and many controllers have it.
        wrap: which joints are continuous, so that they go the short way round; one for all, or
            one each.
        limits: what it may not exceed.
        send: as what, and where to, its set-points are sent; by its kind where nothing is said.
    """

    name: str
    kind: Kind
    size: int = dataclasses.field(default=0, metadata={"min": 0, "max": 1000})
    frame: str = "base"
    state: str = ""
    threshold: float | None = cell(None)
    closed: Literal["", "above", "below"] = cell("")
    open_value: float | None = cell(None)
    closed_value: float | None = cell(None)
    actuation_latency_s: float = cell(0.0, 0.0, 10.0)
    check_frame: bool = cell(True)
    deltas_from: Literal["commanded", "measured"] = "commanded"
    wrap: bool | tuple[bool, ...] = False
    limits: FieldLimits = cell(FieldLimits())
    send: Send = cell(Send())

    @property
    def role(self) -> str:
        """What a set-point has of it."""
        return ROLES[self.kind]

    @property
    def is_delta(self) -> bool:
        """Whether an action says how far, rather than where to."""
        return self.kind.startswith("delta_")

    @property
    def moves_arm(self) -> bool:
        """Whether it is a motion, in m and rad; a scalar, as a gripper of 0 to 100, may be of any
        unit.
        """
        return self.role not in ("scalar", "binary")

    @property
    def latency_ns(self) -> int:
        """``actuation_latency_s`` in whole ns."""
        return round(self.actuation_latency_s * 1e9)

    @property
    def state_size(self) -> int:
        """Values of the state that measures it; 0 where any number will do."""
        return 0 if self.role == "binary" else STATE_SIZES.get(self.role, self.size)

    @property
    def closes(self) -> tuple[float, bool] | None:
        """Where a ``binary`` is cut, and whether it is closed above; None where nothing says."""
        threshold, above = self.threshold, self.closed == "above"
        if self.open_value is not None and self.closed_value is not None:
            above = self.closed_value > self.open_value
            middle = (self.open_value + self.closed_value) / 2
            threshold = middle if threshold is None else threshold
        return None if threshold is None else (threshold, above)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        size = ACTION_KINDS[self.kind]
        if size and self.size not in (0, size):
            yield Problem("size", f"{self.size}, but {self.kind} has {size}", "leave it out")
        if not size and not self.size:
            yield Problem("size", "is missing", "give the number of joints")
        if self.deltas_from == "measured" and not self.is_delta:
            yield Problem("deltas_from", f"{self.kind} is no delta", "leave it out")
        elif self.deltas_from == "measured" and not self.state:
            cure = "name the observation that measures it as its state"
            yield Problem("deltas_from", "nothing measures the field", cure)
        if self.wrap and self.role != "joints":
            yield Problem("wrap", f"{self.kind} has no joints", "leave it out")
        elif isinstance(self.wrap, tuple) and len(self.wrap) != self.size:
            yield Problem("wrap", f"{len(self.wrap)} of {self.size} joints", "give one for each")
        elif self.wrap is True and self.limits.min is not None:
            yield Problem("limits.min", "a continuous joint has no range", "remove it, or wrap")
        for problem in self.limits.misfits(self.role, size or self.size, bool(self.state)):
            yield problem._replace(key=f"limits.{problem.key}")
        yield from self._gripper_problems()

    def _gripper_problems(self) -> Iterator[Problem]:
        low, high = self.open_value, self.closed_value
        told = {"closed": self.closed, "open_value": low, "closed_value": high}
        given = [name for name, value in told.items() if value not in ("", None)]
        if given and self.kind != "binary":
            yield Problem(given[0], f"{self.kind} is neither open nor closed", "remove it")
        elif (low is None) != (high is None):
            yield Problem(given[-1], "is one of two", "give both open_value and closed_value")
        elif self.closed and self.closes is None:
            yield Problem("closed", "of what?", "give threshold:, or open_value and closed_value")
        elif low is None or high is None or self.closes is None:
            return
        elif low == high:
            yield Problem("closed_value", "is that of open, too", "give what is said of each")
        elif self.closed and (self.closed == "above") != (high > low):
            yield Problem("closed", "contradicts open_value and closed_value", "remove it")
        elif not min(low, high) < self.closes[0] < max(low, high):
            yield Problem("threshold", "is not between open_value and closed_value", "remove it")


def slices(fields: Iterable[ActionField]) -> dict[str, slice]:
    """Field name → its place in the vector of all fields."""
    found, end = {}, 0
    for part in fields:
        found[part.name] = slice(end, end + part.size)
        end += part.size
    return found


def apart(names: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The same, with the key before what stands under another key, too."""
    often = Counter(name for own in names.values() for name in own)
    return {
        key: [name if often[name] == 1 else f"{key}.{name}" for name in own]
        for key, own in names.items()
    }


def as_recorded(
    fields: Iterable[ActionField], streams: Iterable[Stream]
) -> tuple[ActionField, ...]:
    """The fields as recorded commands tell them, in order: a target's pose is one of any form.

    A stream of positions, orientations or joint positions may feed any field of that sort, deltas
    too: it is converted. All others tell a field's own values.

    Args:
        fields: with their sizes.
        streams: of the commands, resolved.
    """
    # Of each value: a stream may tell several fields, as the joints of two arms.
    told = [stream.quantity for stream in streams for _ in range(stream.size)]
    found, end = [], 0
    for part in fields:
        kind = TOLD_AS.get((part.role, told[end] if end < len(told) else ""))
        if kind is not None:
            part = dataclasses.replace(part, kind=kind, size=ACTION_KINDS[kind] or part.size)
        found.append(part)
        end += part.size
    return tuple(found)


@dataclass(frozen=True)
class Action:
    """The action vector and where training finds it.

    Attributes:
        fields: its parts in order.
        record: recorded command streams, concatenated; or ``next_state``: derived from the states
            one frame later.
        limits: time-outs, and limits of all fields of a role.
    """

    fields: tuple[ActionField, ...]
    record: Literal["next_state"] | tuple[Stream, ...] = dataclasses.field(metadata=CELL)
    limits: Limits = cell(Limits())

    @functools.cached_property
    def slices(self) -> dict[str, slice]:
        """Field name → its place in the action vector."""
        return slices(self.fields)

    @functools.cached_property
    def recorded(self) -> tuple[ActionField, ...]:
        """The fields as the recorded commands tell them; as they are with ``next_state``."""
        return as_recorded(self.fields, self.commands)

    @property
    def commands(self) -> tuple[Stream, ...]:
        """The recorded command streams; none with ``next_state``."""
        return () if isinstance(self.record, str) else self.record

    @property
    def frame(self) -> str:
        """The base frame, which chunks are stamped with."""
        return self.fields[0].frame

    def of_kind(self, *kinds: str) -> ActionField | None:
        """The first field of one of these kinds."""
        return next((part for part in self.fields if part.kind in kinds), None)

    def of_role(self, *roles: str) -> list[ActionField]:
        """The fields of these roles, in order."""
        return [part for part in self.fields if part.role in roles]

    def limits_of(self, part: ActionField) -> FieldLimits:
        """What acts on a field: its own limits, and those of all fields of its role."""
        common = self.limits.of(part.role, part.size)
        return dataclasses.replace(part.limits, **common | part.limits.given)

    @property
    def unlimited(self) -> list[str]:
        """The fields whose set-points go as fast as the policy says."""
        return [
            part.name
            for part in self.fields
            if part.role != "binary" and not {"velocity", "step"} & {*self.limits_of(part).given}
        ]

    @property
    def unlikely(self) -> Iterator[str]:
        """Limits that no arm would reach, as of degrees for rad or of mm for m."""
        for part in self.fields:
            farthest, unit, other = FARTHEST.get(part.role, (math.inf, "", ""))
            for name, value in self.limits_of(part).given.items():
                reach = max(map(abs, value if isinstance(value, tuple) else (value,)))
                if reach > farthest and name != "acceleration":
                    yield f"{part.name}.{name} {reach:g}: is this in {other}? give {unit}"

    def tightened(self, changes: Mapping[str, Any], loosen: bool = False) -> Action:
        """The same with other limits.

        Args:
            changes: limit → value: ``FIELD.LIMIT``, or one of `Limits`, which then is that of
                every field of its role.
            loosen: whether a limit may allow more than it did.

        Raises:
            UserError: there is no such limit, it does not fit the field, or it allows more.
        """
        action = self
        for key, value in changes.items():
            action = action._with_limit(key, value, loosen)
        return action

    def _with_limit(self, key: str, value: Any, loosen: bool) -> Action:
        found = [(part, name) for part, name in self._limits_named(key)]
        common = dict[str, Any]()
        if not found:
            _refuse_looser(key, key, value, getattr(self.limits, key), loosen)
            common[key] = value
        changed = {
            part.name: self._limited(part, name, key, value, loosen) for part, name in found
        }
        fields = tuple(changed.get(part.name, part) for part in self.fields)
        limits = dataclasses.replace(self.limits, **common)
        return dataclasses.replace(self, fields=fields, limits=limits)

    def _limits_named(self, key: str) -> Iterator[tuple[ActionField, str]]:
        """The fields, and the limits of theirs, that a name means; none for a time-out."""
        if key in ("chunk_timeout_s", "observation_timeout_s", "on_stale"):
            return
        names = [
            (part, name)
            for part in self.fields
            for name in LIMITS_OF[part.role]
            if key in (f"{part.name}.{name}", FORMER.get(part.role, {}).get(name))
        ]
        if not names:
            known = [f"{p.name}.{name}" for p in self.fields for name in LIMITS_OF[p.role]]
            what = "the action commands nothing that it limits"
            raise UserError(what, f"limit {key}", did_you_mean(key, known))
        yield from names

    def _limited(
        self, part: ActionField, name: str, key: str, value: Any, loosen: bool
    ) -> ActionField:
        value = tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)
        _refuse_looser(key, name, value, getattr(self.limits_of(part), name), loosen)
        limits = dataclasses.replace(part.limits, **{name: value})
        limited = dataclasses.replace(part, limits=limits)
        whole = self.limits_of(limited)
        for problem in whole.misfits(part.role, part.size, bool(part.state)):
            raise UserError(problem.what, f"limit {key}", problem.cure)
        return limited

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        names = [part.name for part in self.fields]
        if not names:
            yield Problem("fields", "the action is empty", "list at least one field")
        if len(set(names)) != len(names):
            yield Problem("fields", "two fields have the same name", "rename one")
        recorded, streams = 0, [stream.resolved("") for stream in self.commands]
        sized = [dataclasses.replace(f, size=f.size or ACTION_KINDS[f.kind]) for f in self.fields]
        size = sum(part.size for part in as_recorded(sized, streams))
        for i, stream in enumerate(self.commands):
            if stream.type in MESSAGE_TYPES and stream.message.image:
                yield Problem(
                    f"record.{i}.type", "an image is no command", "name a command's topic"
                )
            recorded += sum(stream.resolved("").shape)
        if self.commands and recorded != size:
            yield Problem(
                "record", f"gives {recorded} values, the fields need {size}", "make them equal"
            )
        joints = self.of_role("joints")
        yield from self.limits.joint_problems(joints[0].size if joints else 0)


def _refuse_looser(key: str, name: str, new: Any, old: Any, loosen: bool) -> None:
    """Raise what says that a limit would allow more than before, and that this was not asked."""
    if not loosen and not is_tighter(name, new, old):
        what = f"{new} allows more than the contract's {old}"
        raise UserError(what, f"limit {key}", "give less, or loosen_limits:=true")
