"""The poses that an action commands, and what observations are in space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from diffusion_policy_ros.contract import ActionField, Contract, Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.poses import Pose, Space
from diffusion_policy_ros.policy.rotations import Array, is_rotation, quaternion_to_matrix

Geometry = Literal["point", "orientation", "vector", "none"]
SIZES = {"point": 3, "orientation": 4, "vector": 3}
GEOMETRY: dict[str, Geometry] = {
    "position": "point",
    "orientation": "orientation",
    "linear_velocity": "vector",
    "angular_velocity": "vector",
}
"""What a stream measures -> what that is in space, where it is told in the action's frame."""


class Hand(NamedTuple):
    """A pose that the action commands, and the observations that measure it.

    Attributes:
        position: the action's field; None where only orientations are commanded.
        rotation: the same of its orientation.
        seen_position: observation key; empty where nothing measures it.
        seen_rotation: the same of its orientation.
    """

    position: ActionField | None
    rotation: ActionField | None
    seen_position: str
    seen_rotation: str

    @property
    def space(self) -> Space:
        """How the contract tells its targets."""
        kinds = ["" if part is None else part.kind for part in self[:2]]
        told = ["delta" if kind.startswith("delta") else "absolute" for kind in kinds]
        return Space(told[0], told[1], kinds[1].removeprefix("delta_"))

    def space_of(self, told: str, axes: str) -> Space:
        """How a network tells them.

        Args:
            told: "recorded", as the contract does; "absolute", "delta" or "relative".
            axes: those of ways, "base" or "tool".
        """
        if told == "recorded":
            return self.space
        parts = ["absolute" if part is None else told for part in self[:2]]
        kind = "axis_angle" if told == "delta" else "rotation_6d"
        own = "base" if told == "absolute" else axes
        return Space(parts[0], parts[1], kind if self.rotation is not None else "", own)


def hands(contract: Contract) -> Iterator[Hand]:
    """The poses of an action: each position with its rotation."""
    fields = contract.action.of_role("position", "rotation")
    while fields:
        first = fields.pop(0)
        position = first if first.role == "position" else None
        rotation = first if position is None else _rotation_of(contract, position, fields)
        if rotation in fields:
            fields.remove(rotation)
        yield Hand(position, rotation, *_measured(contract, position, rotation))


def _rotation_of(
    contract: Contract, position: ActionField, others: Sequence[ActionField]
) -> ActionField | None:
    """Of two arms' the one that is measured with it; where that does not tell, the next field."""
    if position.state:
        seen = contract.observations
        source = source_of(seen[position.state])
        for part in others:
            if part.role == "rotation" and part.state and source_of(seen[part.state]) == source:
                return part
    return others[0] if others and others[0].role == "rotation" else None


def _measured(
    contract: Contract, position: ActionField | None, rotation: ActionField | None
) -> tuple[str, str]:
    """The states of a hand's fields; one without is the other half of the other's pose."""
    keys = ["" if part is None else part.state for part in (position, rotation)]
    for mine, other, kind in ((0, 1, "point"), (1, 0, "orientation")):
        if keys[other] and not keys[mine]:
            source = source_of(contract.observations[keys[other]])
            streams = contract.observations.values()
            twins = (s for s in streams if source_of(s) == source and geometry_of(s) == kind)
            keys[mine] = next((stream.name for stream in twins), "")
    return keys[0], keys[1]


def source_of(stream: Stream) -> tuple[object, ...]:
    """What both halves of one pose share: a topic, the frames of a tf, a part of a message."""
    return stream.topic, stream.tf, stream.field.rpartition(".")[0]


def geometry_of(stream: Stream) -> Geometry:
    """What an observation is in space, by what it measures."""
    found = GEOMETRY.get(stream.quantity, "none")
    return found if stream.shape == (SIZES.get(found),) else "none"


class ObservedPoses:
    """What a window tells of places and turns.

    Args:
        contract: whose observations they are.
        window: key -> (B, T, ...), T at least To.
        n_obs_steps: To.
    """

    def __init__(self, contract: Contract, window: Mapping[str, Any], n_obs_steps: int) -> None:
        self._streams, self._window, self._n_obs_steps = contract.observations, window, n_obs_steps
        self._matrices: dict[str, Array] = {}

    def vectors(self, key: str) -> Array:
        """An observation (B, T, size)."""
        if key not in self._window:
            known = ", ".join(self._streams)
            raise UserError(f"no '{key}'", "observation", f"give all of: {known}")
        value, size = np.asarray(self._window[key], np.float64), self._streams[key].size
        if value.ndim != 3 or value.shape[1] < self._n_obs_steps or value.shape[2] != size:
            cure = f"give (batch, {self._n_obs_steps}, {size})"
            raise UserError(f"shape {value.shape}", key, cure)
        return value

    def matrices(self, key: str) -> Array:
        """Rotation matrices (B, T, 3, 3) of observed quaternions, whose sign ends here."""
        if key not in self._matrices:
            value = self.vectors(key)
            if not is_rotation("quaternion", value).all():
                cure = "see why the robot tells such a quaternion"
                raise UserError("is no rotation: its quaternion has no length", key, cure)
            self._matrices[key] = quaternion_to_matrix(value)
        return self._matrices[key]

    def pose(self, hand: Hand) -> Pose:
        """A hand's (B, To); where nothing measures a part, that of the base."""
        at, turn, observed = *hand[2:], np.s_[:, : self._n_obs_steps]
        position = self.vectors(at)[observed] if at else np.zeros((1, 1, 3))
        rotation = self.matrices(turn)[observed] if turn else np.eye(3)[None, None]
        if not (at and turn):
            shape = np.broadcast_shapes(position.shape, rotation.shape[:-1])
            position = np.broadcast_to(position, shape)
            rotation = np.broadcast_to(rotation, (*shape, 3))
        return Pose(position, rotation)
