"""The whole contract: one YAML file a robot."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_policy_ros import strict_yaml
from diffusion_policy_ros.contract.action import ACTION_KINDS, ROTATION_KINDS, Action, ActionField
from diffusion_policy_ros.contract.meaning import CELL, cell, differing, meaning
from diffusion_policy_ros.contract.stream import Stream
from diffusion_policy_ros.errors import UserError, UserErrors, did_you_mean
from diffusion_policy_ros.shipped import read_config
from diffusion_policy_ros.strict_yaml import Problem


@dataclass(frozen=True)
class Contract:
    """One robot: observations, action, rate.

    Attributes:
        name: the robot's or task's name.
        rate_hz: frames and actions a second.
        anchor: the observation whose stamps are the frames' times.
        observations: key → stream, in the order of the condition vector.
        action: the action vector.
        settle_s: how long after the anchor's arrival a frame waits for the other streams.
        text: the YAML it was read from; filled in.
    """

    name: str
    rate_hz: float = dataclasses.field(metadata={"min": 0.1, "max": 1000.0})
    anchor: str = dataclasses.field(metadata=CELL)
    observations: dict[str, Stream]
    action: Action
    settle_s: float = cell(0.01, 0.0, 10.0)
    text: str = dataclasses.field(
        default="", compare=False, repr=False, metadata={"derived": True}
    )

    @classmethod
    def from_text(cls, text: str, where: str = "contract") -> Contract:
        """Read a contract.

        Raises:
            UserErrors: every mistake with key, line and cure.
        """
        raw = strict_yaml.parse(cls, text, where)
        action = raw.action
        record = action.record
        if not isinstance(record, str):
            record = tuple(s.resolved(f"action.record.{i}") for i, s in enumerate(record))
        fields = tuple(
            dataclasses.replace(f, size=f.size or ACTION_KINDS[f.kind]) for f in action.fields
        )
        return dataclasses.replace(
            raw,
            observations={key: stream.resolved(key) for key, stream in raw.observations.items()},
            action=dataclasses.replace(action, fields=fields, record=record),
            text=text,
        )

    @classmethod
    def load(cls, name: str | Path) -> Contract:
        """Read a contract from a file, or a shipped one by its name.

        Raises:
            UserError: there is no such file, or it has mistakes; also limits that cannot act,
                with which what was recorded and trained stays readable.
        """
        text, where = read_config("contracts", name)
        contract = cls.from_text(text, where)
        limits, idle = contract.action.limits, list[UserError]()
        for limit, value in vars(limits).items():
            cure = contract.action.cure_of_idle(limit)
            if cure and value not in (None, ()):
                what = f"action.limits.{limit}: the action commands nothing that it limits"
                idle.append(UserError(what, where, cure))
        if idle:
            raise UserErrors(idle)
        return contract

    @property
    def period_ns(self) -> int:
        """Time between frames, ns."""
        return round(1e9 / self.rate_hz)

    def sent_early_ns(self, part: ActionField) -> int:
        """How long before its time an action of this field is sent, ns.

        A recorded command is meant for when it took effect, so it is the whole latency. A state
        one frame later is commanded a frame before it is due, so it is what the latency is beyond
        one frame.
        """
        latency_ns = round(part.actuation_latency_s * 1e9)
        derived = self.action.record == "next_state"
        return max(0, latency_ns - self.period_ns) if derived else latency_ns

    @property
    def action_dim(self) -> int:
        """Da, the size of an action."""
        return sum(part.size for part in self.action.fields)

    @property
    def action_names(self) -> list[str]:
        """One name a component: the joint's, or ``translation.0``, or the field's own."""
        return [name for part in self.action.fields for name in self._component_names(part)]

    def _component_names(self, part: ActionField) -> list[str]:
        state = self.observations.get(part.state)
        if part.kind == "joint_position" and state is not None and state.names:
            return list(state.names)
        return [f"{part.name}.{i}" for i in range(part.size)] if part.size > 1 else [part.name]

    @functools.cached_property
    def topics(self) -> dict[str, list[Stream]]:
        """Observed topic → the arrays read from it."""
        found: dict[str, list[Stream]] = {}
        for stream in self.observations.values():
            found.setdefault(stream.topic, []).append(stream)
        return found

    @functools.cached_property
    def recorded_topics(self) -> dict[str, str]:
        """Every topic that a demonstration must hold → its message type."""
        streams = [*self.observations.values(), *self.action.commands]
        return {stream.topic: stream.type for stream in streams}

    @functools.cached_property
    def meaning(self) -> dict[str, Any]:
        """What its arrays mean, as nested plain values; see `contract.meaning`."""
        told: dict[str, Any] = meaning(self)
        told["action"]["record"] = "commands" if self.action.commands else "next_state"
        told["order of observations"] = list(self.observations)
        return told

    @functools.cached_property
    def hash(self) -> str:
        """A fingerprint of the meaning, beginning with an m; see `same_meaning`."""
        digest = hashlib.sha256(json.dumps(self.meaning, sort_keys=True).encode()).hexdigest()
        return f"m{digest[:16]}"

    def difference(self, other: Contract) -> str:
        """The first keys in which two meanings differ; empty when they are the same."""
        return ", ".join(differing(self.meaning, other.meaning)[:4])

    def cell_difference(self, other: Contract) -> str:
        """The first keys in which two robots of the same meaning say it differently."""
        ours, theirs = (dataclasses.asdict(dataclasses.replace(c, text="")) for c in (self, other))
        meant = differing(self.meaning, other.meaning)
        return ", ".join([key for key in differing(ours, theirs) if key not in meant][:4])

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        if self.anchor not in self.observations:
            yield Problem(
                "anchor",
                f"'{self.anchor}' is no observation",
                did_you_mean(self.anchor, self.observations),
            )
        elif self.observations[self.anchor].type.endswith("MultiArray"):
            yield Problem(
                "anchor", "its messages have no stamp", "anchor frames to a stamped stream"
            )
        types: dict[str, str] = {}
        for key, stream in [
            *self.observations.items(),
            *((c.topic, c) for c in self.action.commands),
        ]:
            if types.setdefault(stream.topic, stream.type) != stream.type:
                yield Problem(
                    f"observations.{key}.type",
                    f"{stream.topic} is {types[stream.topic]} elsewhere",
                    "",
                )
        for key, stream in self.observations.items():
            latency_s = self.topics[stream.topic][0].observation_latency_s
            if stream.observation_latency_s != latency_s:
                yield Problem(
                    f"observations.{key}.observation_latency_s",
                    f"{stream.topic} has {latency_s:g} elsewhere",
                    "a message has one age: give all its streams the same",
                )
        for i, part in enumerate(self.action.fields):
            yield from self._state_problems(i, part)

    def _state_problems(self, i: int, part: ActionField) -> Iterator[Problem]:
        key = f"action.fields.{i}.state"
        if not part.state:
            if self.action.record == "next_state":
                yield Problem(
                    key,
                    "is missing, and record is next_state",
                    "name the observation it is derived from",
                )
            return
        stream = self.observations.get(part.state)
        if stream is None:
            yield Problem(
                key,
                f"'{part.state}' is no observation",
                did_you_mean(part.state, self.observations),
            )
            return
        needed = 4 if part.kind in ROTATION_KINDS else part.size or 3
        needed = 3 if part.kind in ("delta_position", "position") else needed
        shape = stream.resolved("").shape
        if part.kind != "binary" and shape and shape != (needed,):
            yield _misfit(i, part, shape, needed)
        if part.kind == "binary" and part.threshold is None and self.action.record == "next_state":
            yield Problem(
                f"action.fields.{i}.threshold",
                "is missing",
                "say below which state the gripper is closed",
            )


def _misfit(i: int, part: ActionField, shape: tuple[int, ...], needed: int) -> Problem:
    """A state that does not have as many values as the action's field."""
    has = "is an image" if len(shape) > 1 else f"has {shape[0]} values"
    what = f"'{part.state}' {has}, {part.name} needs {needed}"
    if part.kind != "joint_position":
        return Problem(f"action.fields.{i}.state", what, "name a pose's position or orientation")
    if len(shape) > 1:
        return Problem(f"action.fields.{i}.state", what, "name the joints' positions")
    return Problem(f"action.fields.{i}.size", what, f"set size: {shape[0]}")
