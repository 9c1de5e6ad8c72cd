"""What in a contract contradicts itself: a recorded message that cannot be what its field is, a
limit that cannot act.

Sizes fit, so nothing else would notice: the robot would run wherever the numbers lead. It is
looked for when a contract is loaded by name; what was recorded and trained with such a one stays
readable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diffusion_policy_ros.contract.action import Action, ActionField, slices
from diffusion_policy_ros.contract.limits import FORMER
from diffusion_policy_ros.contract.outputs import SCALED
from diffusion_policy_ros.contract.stream import Stream
from diffusion_policy_ros.errors import did_you_mean
from diffusion_policy_ros.strict_yaml import Problem

if TYPE_CHECKING:
    from diffusion_policy_ros.contract.robot import Contract

RECORDED_AS: dict[str, tuple[str, ...]] = {
    "delta_position": ("linear_velocity", "position"),
    "position": ("position",),
    "delta_axis_angle": ("angular_velocity", "orientation"),
    "axis_angle": ("orientation",),
    "quaternion": ("orientation",),
    "rotation_6d": ("orientation",),
    "joint_position": ("joint_position",),
    "delta_joint_position": ("joint_velocity", "joint_position"),
    "joint_velocity": ("joint_velocity",),
    "twist": ("linear_velocity", "angular_velocity"),
}
"""Kind of an action field → what a command of it may say. A message that does not say what it
measures, such as a bare array, may be anything; so may what is recorded of grippers."""
MEASURED_AS: dict[str, tuple[str, ...]] = {
    "delta_position": ("position",),
    "position": ("position",),
    "delta_axis_angle": ("orientation",),
    "axis_angle": ("orientation",),
    "quaternion": ("orientation",),
    "rotation_6d": ("orientation",),
    "joint_position": ("joint_position",),
    "delta_joint_position": ("joint_position",),
}
"""Kind of an action field → what its state may measure."""

UNSAID = "base"
"""The frame of a field that says none, which robots call otherwise."""
FRAMED_ROLES = ("position", "rotation", "twist")
FRAMED = ("position", "orientation", "linear_velocity", "angular_velocity")
"""Quantities that depend on the frame that they are told in."""


TARGETS = ("position", "orientation", "joint_position")
"""Quantities of commands that say where to be."""


def contradictions(contract: Contract) -> Iterator[Problem]:
    """What of the action cannot be meant, with keys from the contract's top."""
    fields = contract.action.fields
    for i, part in enumerate(fields):
        state = contract.observations.get(part.state)
        wanted = MEASURED_AS.get(part.kind, ())
        if state is not None and wanted and state.quantity not in ("", *wanted):
            what = f"'{part.state}' measures {_said(state)}, not {wanted[0]}"
            yield Problem(
                f"action.fields.{i}.state", f"{what} as {part.kind} needs it", "name another"
            )
        for number, stream, place in recorded(contract, part):
            key = f"action.record.{number}"
            yield from _command_problems(key, part, stream)
            yield from _order_problems(key, part, stream.names[place], state)
            if part.is_delta and stream.quantity in TARGETS and state is None:
                what = f"{stream.topic} says where to be, and {part.name} how far to go"
                cure = "name the observation of where it is as the field's state"
                yield Problem(f"action.fields.{i}.state", f"{what} from there", cure)
    yield from sent_in_another_order(contract)
    yield from _idle_limits(contract.action)
    yield from lost_limits(contract.action)


def recorded(contract: Contract, part: ActionField) -> Iterator[tuple[int, Stream, slice]]:
    """The recorded streams that a field is read from: number, stream, and which of its values."""
    wanted, begin = slices(contract.action.recorded)[part.name], 0
    for number, stream in enumerate(contract.action.commands):
        first, last = max(wanted.start - begin, 0), min(wanted.stop - begin, stream.size)
        begin += stream.size
        if first < last:
            yield number, stream, slice(first, last)


def in_frames(contract: Contract) -> Contract:
    """The same with the tf frames that messages must be in, where the action's fields say them."""
    wanted: dict[str, str] = {}
    for part in contract.action.fields:
        if part.check_frame and part.frame != UNSAID and part.role in FRAMED_ROLES:
            keys = [part.state, *(stream.name for _, stream, _ in recorded(contract, part))]
            wanted.update(dict.fromkeys(keys, part.frame))

    def framed(stream: Stream) -> Stream:
        says = stream.message.stamped and stream.quantity in FRAMED and not stream.frame_id
        return (
            dataclasses.replace(stream, frame_id=wanted.get(stream.name, "")) if says else stream
        )

    action = contract.action
    if action.commands:
        action = dataclasses.replace(action, record=tuple(map(framed, action.commands)))
    observations = {key: framed(stream) for key, stream in contract.observations.items()}
    return dataclasses.replace(contract, observations=observations, action=action)


def _command_problems(key: str, part: ActionField, stream: Stream) -> Iterator[Problem]:
    wanted = RECORDED_AS.get(part.kind, ())
    if not wanted or stream.quantity in ("", *wanted):
        return
    fitting = [kind for kind, said in RECORDED_AS.items() if stream.quantity in said]
    cure = f"give {part.name} a kind that it is" + (f": {' or '.join(fitting)}" if fitting else "")
    what = f"{stream.topic} says {_said(stream)}, but {part.name} is {part.kind}"
    yield Problem(f"{key}.type", what, cure)


def sent_in_another_order(contract: Contract) -> Iterator[Problem]:
    """Joints that would be told each other's set-points: values are in the order of the state."""
    for i, part in enumerate(contract.action.fields):
        state = contract.observations.get(part.state)
        yield from _order_problems(f"action.fields.{i}.send", part, part.send.names, state)


def _order_problems(
    key: str, part: ActionField, told: tuple[str, ...], state: Stream | None
) -> Iterator[Problem]:
    """Joints in another order than in the state that names the components."""
    if state is not None and told != state.names and sorted(told) == sorted(state.names):
        what = f"{part.name} has its joints as {', '.join(told)}, but its state as"
        cure = "write both in the same order"
        yield Problem(f"{key}.names", f"{what} {', '.join(state.names)}", cure)


def sent_in_other_units(contract: Contract) -> Iterator[str]:
    """What goes out on a topic in other units than were recorded on it: rad to a driver that was
    told degrees; the recorder may have been another program, so that it can be meant.
    """
    for part in contract.action.fields:
        for _, stream, place in recorded(contract, part):
            if stream.topic == part.send.topic and part.role in SCALED:
                told = _each(stream.scale, stream.size)[place]
                ours = _each(part.send.scale, part.size)
                if told != ours:
                    what = f"recorded with scale {told}, sent with {ours}"
                    yield f"{part.name} on {stream.topic}: {what}: give send: {{scale: ...}}"


def _each(scale: tuple[float, ...], size: int) -> list[float]:
    """One for each component."""
    return [*(scale or (1.0,))] * (size if len(scale) < 2 else 1)


def _idle_limits(action: Action) -> Iterator[Problem]:
    """Limits of a role that no field has."""
    roles = {part.role for part in action.fields}
    acting = {name for role in roles for name in FORMER.get(role, {}).values()}
    idle = {name for names in FORMER.values() for name in names.values()} - acting
    for name, value in vars(action.limits).items():
        if name in idle and value not in (None, ()):
            cure = did_you_mean(name, acting) if acting else "remove it"
            what = "the action commands nothing that it limits"
            yield Problem(f"action.limits.{name}", what, cure)


def lost_limits(action: Action) -> Iterator[Problem]:
    """Limits that do not reach a field of joints."""
    joints = action.of_role("joints")
    for limit, name in FORMER["joints"].items():
        given = getattr(action.limits, name)
        for part in joints:
            if limit not in part.limits.given and len(given) not in (0, 1, part.size):
                what = f"{len(given)} numbers, but {part.name} has {part.size} joints"
                cure = f"give {part.name} limits of its own"
                yield Problem(f"action.limits.{name}", what, cure)
    if joints and action.limits.joint_min and all(part.wrap is True for part in joints):
        what, cure = "continuous joints have no range", "remove it, or wrap: [false, ...]"
        yield Problem("action.limits.joint_min", what, cure)


def _said(stream: Stream) -> str:
    return f"{stream.quantity} ({stream.field})"
