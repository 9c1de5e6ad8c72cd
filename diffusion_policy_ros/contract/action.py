"""The action vector: its fields, their limits, and where training finds it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from diffusion_policy_ros.contract.limits import JOINT_LIMITS, Limits
from diffusion_policy_ros.contract.meaning import CELL, cell
from diffusion_policy_ros.contract.stream import MESSAGE_TYPES, Stream
from diffusion_policy_ros.errors import did_you_mean
from diffusion_policy_ros.strict_yaml import Problem

ACTION_KINDS: dict[str, int] = {
    "delta_position": 3,
    "delta_axis_angle": 3,
    "position": 3,
    "axis_angle": 3,
    "quaternion": 4,
    "rotation_6d": 6,
    "joint_position": 0,
    "binary": 1,
}
"""Kind of an action field → its size, 0 where the contract gives it.

Deltas are per action, in the base frame, rotations multiplied from the left; ``rotation_6d`` is
the first two rows of the rotation's matrix; ``binary`` is > 0 for closed.
"""
ROTATION_KINDS = ("delta_axis_angle", "axis_angle", "quaternion", "rotation_6d")
LIMITS_OF: dict[tuple[str, ...], tuple[str, ...]] = {
    ("delta_position", "position"): (
        "velocity",
        "translation",
        "acceleration",
        "lead",
        "jump",
        "workspace_min",
        "workspace_max",
    ),
    ROTATION_KINDS: (
        "angular_velocity",
        "rotation",
        "angular_acceleration",
        "lead_rotation",
        "jump_rotation",
    ),
    ("joint_position",): ("joint_velocity", *JOINT_LIMITS, "joint_min", "joint_max"),
}
"""Kinds of action fields → the limits that act on them, that of their speed first."""
SPEED_LIMITS = ("velocity", "translation", "angular_velocity", "rotation", "joint_velocity")
"""Limits of speed: a step of one action takes as long as an action."""


@dataclass(frozen=True)
class ActionField:
    """One named part of the action vector.

    Attributes:
        name: its name, the prefix of its components' names.
        kind: one of `ACTION_KINDS`.
        size: number of components; given by the kind, but for joints.
        frame: the tf frame that it is expressed in.
        state: the observation that measures the same thing: where the arm is now, and what actions
            are derived from when ``record`` is ``next_state``.
        threshold: for ``binary`` from ``next_state``: closed where the state's first component is
            below it.
        actuation_latency_s: how long a command of this field takes to take effect; it is sent that
            much early, see `Contract.sent_early_ns`.
    """

    name: str
    kind: Literal[
        "delta_position",
        "delta_axis_angle",
        "position",
        "axis_angle",
        "quaternion",
        "rotation_6d",
        "joint_position",
        "binary",
    ]
    size: int = dataclasses.field(default=0, metadata={"min": 0, "max": 1000})
    frame: str = "base"
    state: str = ""
    threshold: float | None = cell(None)
    actuation_latency_s: float = cell(0.0, 0.0, 10.0)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        size = ACTION_KINDS[self.kind]
        if size and self.size not in (0, size):
            yield Problem("size", f"{self.size}, but {self.kind} has {size}", "leave it out")
        if not size and not self.size:
            yield Problem("size", "is missing", "give the number of joints")


@dataclass(frozen=True)
class Action:
    """The action vector and where training finds it.

    Attributes:
        fields: its parts in order.
        record: recorded command streams, concatenated; or ``next_state``: derived from the states
            one frame later.
        limits: what no action may exceed.
    """

    fields: tuple[ActionField, ...]
    record: Literal["next_state"] | tuple[Stream, ...] = dataclasses.field(metadata=CELL)
    limits: Limits = cell(Limits())

    @functools.cached_property
    def slices(self) -> dict[str, slice]:
        """Field name → its place in the action vector."""
        ends = [0]
        for part in self.fields:
            ends.append(ends[-1] + part.size)
        return {
            part.name: slice(a, b) for part, a, b in zip(self.fields, ends, ends[1:], strict=False)
        }

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

    @property
    def acting_limits(self) -> list[str]:
        """Names of the limits that there is something for in this action; time-outs aside."""
        acting = [names for kinds, names in LIMITS_OF.items() if self.of_kind(*kinds)]
        return list(dict.fromkeys(name for names in acting for name in names))

    @property
    def unlimited(self) -> list[str]:
        """The limits that would keep slow what is now as fast as the policy says."""
        given = [name for name in SPEED_LIMITS if getattr(self.limits, name) not in (None, ())]
        return [
            names[0]
            for kinds, names in LIMITS_OF.items()
            if self.of_kind(*kinds) and not set(names) & set(given)
        ]

    def cure_of_idle(self, limit: str) -> str:
        """What to do about a limit of what this action does not command; empty if it acts.

        Args:
            limit: its name.
        """
        acting = self.acting_limits
        if limit in acting or not any(limit in names for names in LIMITS_OF.values()):
            return ""
        return did_you_mean(limit, acting) if acting else "remove it"

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        names = [part.name for part in self.fields]
        if not names:
            yield Problem("fields", "the action is empty", "list at least one field")
        if len(set(names)) != len(names):
            yield Problem("fields", "two fields have the same name", "rename one")
        size, recorded = sum(f.size or ACTION_KINDS[f.kind] for f in self.fields), 0
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
        joints = self.of_kind("joint_position")
        yield from self.limits.joint_problems(joints.size if joints else 0)
