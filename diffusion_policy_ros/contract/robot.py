"""The whole contract: one YAML file a robot."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_policy_ros import strict_yaml
from diffusion_policy_ros.contract.action import ACTION_KINDS, Action, ActionField, apart
from diffusion_policy_ros.contract.check import (
    contradictions,
    in_frames,
    lost_limits,
    sent_in_another_order,
)
from diffusion_policy_ros.contract.meaning import CELL, cell, differing, meaning
from diffusion_policy_ros.contract.messages import QUANTITIES, TF, TF_MESSAGE, TF_STATIC
from diffusion_policy_ros.contract.outputs import (
    DEFAULTS,
    OTHER_HALF,
    OUTPUTS,
    Output,
    grouped,
)
from diffusion_policy_ros.contract.stream import OF_A_TOPIC, Stream
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
        fields = tuple(map(_resolved, action.fields))
        whole = dataclasses.replace(
            raw,
            observations={key: stream.resolved(key) for key, stream in raw.observations.items()},
            action=dataclasses.replace(action, fields=fields, record=record),
            text=text,
        )
        return in_frames(whole)

    @classmethod
    def load(cls, name: str | Path) -> Contract:
        """Read a contract from a file, or a shipped one by its name.

        Raises:
            UserError: there is no such file, or it has mistakes; also such with which what was
                recorded and trained stays readable, see `refuse_contradictions`.
        """
        text, where = read_config("contracts", name)
        contract = cls.from_text(text, where)
        contract.refuse_contradictions(where)
        return contract

    def refuse_contradictions(self, where: str) -> None:
        """Refuse limits that cannot act, and recorded messages that are not what a field is.

        Raises:
            UserErrors: each with its key.
        """
        _raise([*contradictions(self)], where)

    def check_outputs(self) -> None:
        """Refuse what no player can play: every field has to be measured and sent.

        Raises:
            UserErrors: a field has no state that a player can read, or no message carries it.
        """
        problems = (p._replace(key=f"action.{p.key}") for p in self._output_problems())
        lost = lost_limits(self.action)
        _raise([*problems, *lost, *sent_in_another_order(self)], self.name)

    def _output_problems(self) -> Iterator[Problem]:
        for part in self.action.of_role("position", "rotation", "joints"):
            if not part.state:
                what = f"nothing measures {part.name}, so that a player cannot begin where it is"
                cure = "name the observation as its state; what needs none is of kind scalar"
                yield Problem(f"fields.{part.name}.state", what, cure)
            elif self.observations[part.state].tf is not None:
                what = f"'{part.state}' is from tf, which a player does not read"
                cure = "name an observation of a topic, as of the driver's PoseStamped"
                yield Problem(f"fields.{part.name}.state", what, cure)
        yield from self._unmeasured_halves()
        yield from grouped(self.commanded, self.observations)[1]

    def _unmeasured_halves(self) -> Iterator[Problem]:
        """Other halves of poses that the message of the state does not have."""
        for kept in self.commanded[len(self.action.fields) :]:
            name, _, half = kept.name.rpartition(".")
            part = next(part for part in self.action.fields if part.name == name)
            state, other = self.measured.get(part.state), self.measured.get(kept.state)
            if state is None or state.tf is not None or part.role not in ("position", "rotation"):
                continue
            fields = state.message.fields
            if other is None or (fields and other.field not in fields):
                what = f"{part.send.type} says the {half} too, which {state.type} does not measure"
                cure = "name a PoseStamped as the state, or send a geometry_msgs/msg/TwistStamped"
                yield Problem(f"fields.{name}.state", what, cure)

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
        derived = self.action.record == "next_state"
        return max(0, part.latency_ns - self.period_ns) if derived else part.latency_ns

    @property
    def action_dim(self) -> int:
        """Da, the size of an action."""
        return sum(part.size for part in self.action.fields)

    @property
    def action_names(self) -> list[str]:
        """One name a component: the joint's, or ``translation.0``, or the field's own; no name
        stands twice.
        """
        names = apart({part.name: self._component_names(part) for part in self.action.fields})
        return [name for own in names.values() for name in own]

    def _component_names(self, part: ActionField) -> list[str]:
        state = self.observations.get(part.state)
        if part.kind == "joint_position" and state is not None and state.names:
            return list(state.names)
        return [f"{part.name}.{i}" for i in range(part.size)] if part.size > 1 else [part.name]

    @functools.cached_property
    def commanded(self) -> tuple[ActionField, ...]:
        """The action's fields, then what is only kept: the other half of a pose of which the
        action has one half.
        """
        found = list(self.action.fields)
        for part in self.action.fields:
            there = [other.role for other in found if other.send.topic == part.send.topic]
            whole = part.send.type in OUTPUTS and OUTPUTS[part.send.type].whole
            if whole and not {"position", "rotation"} <= set(there):
                kind, half = ("position", "position")
                if part.role == "position":
                    kind, half = ("quaternion", "orientation")
                name = f"{part.name}.{half}"
                size = ACTION_KINDS[kind]
                kept = ActionField(name, kind, size, part.frame, name, send=part.send)  # type: ignore[arg-type]
                found.append(dataclasses.replace(kept, check_frame=part.check_frame))
        return tuple(found)

    @functools.cached_property
    def measured(self) -> dict[str, Stream]:
        """Key → stream of all that a player has to be shown: what measures its fields."""
        fields, found = {p.name: p for p in self.action.fields}, dict[str, Stream]()
        for part in self.commanded:
            if part.name in fields:
                if part.state:
                    found[part.state] = self.observations[part.state]
                continue
            half = self.observations.get(fields[part.name.rpartition(".")[0]].state)
            path, _, last = half.field.rpartition(".") if half is not None else ("", "", "")
            if half is not None and last in OTHER_HALF:
                other = OTHER_HALF[last]
                found[part.state] = dataclasses.replace(
                    half,
                    field=f"{path}.{other}" if path else other,
                    name=part.state,
                    shape=(part.size,),
                    quantity=QUANTITIES[other],
                    scale=(),
                )
        return found

    @functools.cached_property
    def frames(self) -> dict[str, str]:
        """Key of what is measured → the tf frame that its messages have to be in; none where that
        is not asked, or messages of the type have none.
        """
        return {
            part.state: part.frame
            for part in self.commanded
            if part.check_frame
            and part.role in ("position", "rotation")
            and part.state in self.measured
            and self.measured[part.state].message.stamped
        }

    @functools.cached_property
    def outputs(self) -> list[Output]:
        """The messages that set-points go out in."""
        return grouped(self.commanded, self.observations)[0]

    def action_difference(self, other: Contract) -> str:
        """The first thing in which two contracts' actions differ, in words; empty where chunks of
        the one are chunks of the other.
        """
        for what, ours, theirs in zip(
            ("rate_hz", *_ACTION_MEANING), self._action_meaning, other._action_meaning, strict=True
        ):
            if ours != theirs:
                return f"{what}: {ours} and {theirs}"
        return ""

    @property
    def _action_meaning(self) -> list[str]:
        parts = self.action.fields
        told = [[str(getattr(part, key)) for part in parts] for key in _ACTION_MEANING]
        return [f"{self.rate_hz:g}", *(", ".join(values) for values in told)]

    @property
    def has_images(self) -> bool:
        """Whether an observation is of a camera."""
        return any(stream.is_image for stream in self.observations.values())

    @functools.cached_property
    def topics(self) -> dict[str, list[Stream]]:
        """Observed topic → the arrays read from it."""
        found: dict[str, list[Stream]] = {}
        for stream in self.observations.values():
            found.setdefault(stream.topic, []).append(stream)
        for stream in found.get(TF, ()):
            latched = dataclasses.replace(stream, topic=TF_STATIC, static=True)
            found.setdefault(TF_STATIC, []).append(latched)
        return found

    @functools.cached_property
    def recorded_topics(self) -> dict[str, str]:
        """Every topic that a demonstration must hold → its message type."""
        streams = [*self.observations.values(), *self.action.commands]
        found = {stream.topic: stream.type for stream in streams}
        return {**found, TF_STATIC: TF_MESSAGE} if TF in found else found

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

    def cell_difference(self, other: Contract) -> list[str]:
        """The keys in which two robots of the same meaning say it differently."""
        ours, theirs = (dataclasses.asdict(dataclasses.replace(c, text="")) for c in (self, other))
        meant = differing(self.meaning, other.meaning)
        return [key for key in differing(ours, theirs) if key not in meant]

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it that types cannot show."""
        if self.anchor not in self.observations:
            yield Problem(
                "anchor",
                f"'{self.anchor}' is no observation",
                did_you_mean(self.anchor, self.observations),
            )
        elif not self.observations[self.anchor].message.stamped:
            yield Problem(
                "anchor", "its messages have no stamp", "anchor frames to a stamped stream"
            )
        elif self.observations[self.anchor].tf is not None:
            yield Problem("anchor", "tf has many stamps", "anchor frames to a stamped stream")
        elif self.observations[self.anchor].static:
            yield Problem("anchor", "it is static", "anchor frames to a stream that goes on")
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
            yield from self._topic_problems(f"observations.{key}", stream)
        for i, part in enumerate(self.action.fields):
            yield from self._state_problems(i, part)

    def _topic_problems(self, key: str, stream: Stream) -> Iterator[Problem]:
        """What does not fit the other streams of its topic, or an observation."""
        first = self.topics[stream.topic][0]
        for name in OF_A_TOPIC:
            ours, theirs = getattr(stream, name), getattr(first, name)
            if ours != theirs:
                what = f"{stream.topic} has {theirs} elsewhere"
                yield Problem(f"{key}.{name}", what, "give all streams of a topic the same")
        for name, usual in (("hold_s", 0.0), ("combine", "first")):
            if getattr(stream, name) != usual:
                yield Problem(f"{key}.{name}", "is of recorded commands", "move it to the action")

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
        needed = part.state_size or ACTION_KINDS[part.kind]
        shape = stream.resolved("").shape
        if part.kind != "binary" and shape and shape != (needed,):
            yield _misfit(i, part, shape, needed)
        if part.kind == "binary" and part.closes is None and self.action.record == "next_state":
            yield Problem(
                f"action.fields.{i}.threshold",
                "is missing",
                "say below which state the gripper is closed, or give open_value and closed_value",
            )


def _misfit(i: int, part: ActionField, shape: tuple[int, ...], needed: int) -> Problem:
    """A state that does not have as many values as the action's field."""
    has = "is an image" if len(shape) > 1 else f"has {shape[0]} values"
    what = f"'{part.state}' {has}, {part.name} needs {needed}"
    if part.role in ("position", "rotation"):
        return Problem(f"action.fields.{i}.state", what, "name a pose's position or orientation")
    if len(shape) > 1:
        return Problem(f"action.fields.{i}.state", what, "name the joints' positions")
    return Problem(f"action.fields.{i}.size", what, f"set size: {shape[0]}")


_ACTION_MEANING = ("name", "kind", "size", "frame", "deltas_from")
"""What chunks mean, field by field."""


def _resolved(part: ActionField) -> ActionField:
    """The same with size and output filled in."""
    topic, type_name = DEFAULTS[part.role]
    send = part.send
    send = dataclasses.replace(send, topic=send.topic or topic, type=send.type or type_name)
    return dataclasses.replace(part, size=part.size or ACTION_KINDS[part.kind], send=send)


def _raise(problems: Sequence[Problem], where: str) -> None:
    """Raise all problems at once, if there are any."""
    if problems:
        raise UserErrors([UserError(f"{p.key}: {p.what}", where, p.cure) for p in problems])
