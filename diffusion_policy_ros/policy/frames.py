"""What the robot does, and how the network sees it: two things, and the way between them.

A contract says what the robot observes and takes, and a dataset keeps just that. Here it becomes
what the network learns, and what the network says becomes the robot's again:

    seen = frames.to_network(window)            # before the normaliser, which scales these
    actions = frames.to_robot(chunk, window)    # in the contract's own kinds, for the player

Both are pure, in NumPy and float64, and run outside of what engines compile. Training and every
engine call these two, so one dataset trains every action space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Action, ActionField, Contract
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.hands import (
    SIZES,
    Geometry,
    Hand,
    ObservedPoses,
    geometry_of,
    hands,
)
from diffusion_policy_ros.policy.poses import NEWEST, Pose, Space, turned
from diffusion_policy_ros.policy.rotations import (
    FROM_MATRIX,
    TO_MATRIX,
    Array,
    is_rotation,
)
from diffusion_policy_ros.policy.tasks import TASK, one_hot, with_tasks

ACTION = "action"


@dataclass(frozen=True)
class FrameSettings:
    """How the network sees poses, observed and commanded.

    Attributes:
        actions: what the network predicts of a commanded pose. "recorded": the contract's own
            kinds; "absolute": where to be; "delta": the way from the target before; "relative":
            the way from the newest observed pose, and all observed poses are told from there, too,
            as in UMI (Chi et al. 2024, https://arxiv.org/abs/2402.10329). Rotations are 6-D, those
            of deltas, which are small, axis-angle vectors.
        action_frame: the axes of "delta" and "relative": the "base"'s, or the "tool"'s own, of
            which nothing depends on where the base stands. Where not given, the tool's for
            "relative" and the base's for "delta".
        orientation: how observed quaternions are told. "rotation_6d" has no sign and no jump;
            "raw" are the robot's own numbers, of which each orientation has two.
        geometry: exceptions, observation key -> what it is in space: a "point", an "orientation",
            a "vector", which is turned but not moved (the offset from one thing to another is one,
            too), or "none" of what is not told in the action's frame. Otherwise positions,
            orientations and velocities are taken for what they are, unless a `frame_id` of the
            contract says that they are told in another one.
        tasks: the tasks that are learned, where they are several that what is observed does not
            tell apart; a window says which is meant.
    """

    actions: Literal["recorded", "absolute", "delta", "relative"] = "recorded"
    action_frame: Literal["base", "tool"] | None = None
    orientation: Literal["raw", "rotation_6d"] = "raw"
    geometry: dict[str, Geometry] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    @property
    def axes(self) -> str:
        """action_frame, or its default."""
        return self.action_frame or ("tool" if self.actions == "relative" else "base")


class Frames:
    """The way from a contract's robot to the network, and back.

    Args:
        contract: the robot.
        settings: how the network sees it.
        n_obs_steps: To; the newest observed frame is the last of these.

    Attributes:
        seen: the robot as the network sees it: a contract with its sizes and kinds.
        changed: the observations that `to_network` changes.
        changes_actions: whether the network's actions are others than the robot's.

    Raises:
        UserError: the contract does not tell what the settings need.
    """

    def __init__(self, contract: Contract, settings: FrameSettings, n_obs_steps: int) -> None:
        self._contract, self._settings, self._n_obs_steps = contract, settings, n_obs_steps
        self._hands = tuple(hands(contract))
        self._geometry = _geometry(contract, self._hands, settings.geometry)
        self._origins = self._find_origins() if settings.actions == "relative" else {}
        self.changed = [key for key in self._geometry if key in self._origins or self._is_6d(key)]
        self.changes_actions = any(self._space(hand) != hand.space for hand in self._hands)
        self._check_measured()
        streams = {
            key: dataclasses.replace(stream, shape=(6,)) if self._is_6d(key) else stream
            for key, stream in contract.observations.items()
        }
        fields = tuple(_field_seen(part, settings.actions) for part in contract.action.fields)
        action = dataclasses.replace(contract.action, fields=fields)
        streams = with_tasks(contract, streams, settings.tasks)
        self.seen = dataclasses.replace(contract, observations=streams, action=action)

    def _find_origins(self) -> dict[str, int]:
        """All observations told in the action's frame -> whose newest pose they are told from.

        What is no hand's own is told from the first.
        """
        frames = ("", self._contract.action.frame)
        own = {key: i for i, hand in enumerate(self._hands) for key in hand[2:]}
        return {
            key: own.get(key, 0)
            for key, stream in self._contract.observations.items()
            if self._geometry[key] != "none"
            and (key in own or key in self._settings.geometry or stream.frame_id in frames)
        }

    def _space(self, hand: Hand) -> Space:
        return hand.space_of(self._settings.actions, self._settings.axes)

    def _is_6d(self, key: str) -> bool:
        is_turn = self._geometry[key] == "orientation"
        return is_turn and self._settings.orientation == "rotation_6d"

    def _check_measured(self) -> None:
        """A way begins at a pose, and that must be observed."""
        told = self._settings.actions
        if told != "recorded" and not self._hands:
            what = f"'{self._contract.name}' commands no pose, so nothing is {told}"
            raise UserError(what, "policy.actions", "use recorded")
        for hand in self._hands:
            space, seen = hand.space, self._space(hand)
            if seen == space or (seen.is_absolute and space.is_absolute):
                continue
            turns = hand.rotation is not None or seen.axes == "tool"
            needed = {"position": hand.position is not None, "orientation": turns}
            for name, key in zip(needed, hand[2:], strict=True):
                if needed[name] and not key:
                    what = f"{told} needs the {name} of the tool, which no field names as state"
                    cure = "name that observation as state in the contract, or use recorded"
                    raise UserError(what, "policy.actions", cure)

    @property
    def changes_any(self) -> bool:
        """Whether the network sees anything otherwise than the robot tells it."""
        return bool(self.changed or self._settings.tasks) or self.changes_actions

    def warnings(self) -> Iterator[str]:
        """Rotations of which the network sees numbers that have two signs, or jump."""
        for key, kind in self._geometry.items():
            if kind == "orientation" and key not in self.changed:
                yield (
                    f"{key} is a raw quaternion: a robot that says -q for the same orientation is "
                    "another to this policy; set policy.orientation: rotation_6d"
                )
        for part in self.seen.action.of_role("rotation"):
            if part.kind in ("quaternion", "axis_angle"):
                yield (
                    f"{part.name} is learned as {part.kind}, which jumps where the arm does not; "
                    "set policy.actions: absolute or relative"
                )

    def blank(self) -> dict[str, NDArray[Any]]:
        """A window (To, ...) as a robot would be observed that is at zero, and does not turn."""
        streams = self._contract.observations
        window: dict[str, NDArray[Any]] = {
            key: np.zeros(
                (self._n_obs_steps, *stream.shape), np.uint8 if stream.is_image else np.float32
            )
            for key, stream in streams.items()
        }
        for key, kind in self._geometry.items():
            if kind == "orientation":
                window[key][..., 3] = 1.0
        return window

    # --- Observations ----------------------------------------------------------------------------

    def to_network(self, window: Mapping[str, Any]) -> dict[str, Any]:
        """A window as the network sees it; what does not change is passed on untouched.

        Args:
            window: observation key -> (B, T, ...), To frames or more; "action" (B, H, Da), where
                there is one, begins at its first frame; "task" (B,), where there are several.

        Raises:
            UserError: an observation is missing or of another shape, or a quaternion no rotation.
        """
        seen, out = self._poses(window), dict(window)
        newest = [seen.pose(hand).at(NEWEST) for hand in self._hands] if self._origins else []
        out |= {key: self._observed(key, seen, newest) for key in self.changed}
        out.pop(TASK, None)
        if self._settings.tasks:
            out[TASK] = one_hot(window, self._settings.tasks)
        if self.changes_actions and ACTION in window:
            out[ACTION] = self.actions_to_network(window[ACTION], window)
        return out

    def _poses(self, window: Mapping[str, Any]) -> ObservedPoses:
        return ObservedPoses(self._contract, window, self._n_obs_steps)

    def _observed(self, key: str, seen: ObservedPoses, newest: list[Pose]) -> NDArray[np.float32]:
        kind = self._geometry[key]
        value = seen.matrices(key) if kind == "orientation" else seen.vectors(key)
        if key in self._origins:
            value = _told_from(newest[self._origins[key]], kind, value, self._settings.axes)
        if kind == "orientation":
            value = FROM_MATRIX["rotation_6d" if self._is_6d(key) else "quaternion"](value)
        return value.astype(np.float32)

    # --- Actions ---------------------------------------------------------------------------------

    def actions_to_network(
        self, actions: Any, window: Mapping[str, Any], first: int = 0
    ) -> NDArray[np.float32]:
        """Actions as the robot takes them -> as the network tells them.

        Args:
            actions: (B, n, Da), of the contract's kinds.
            window: what was observed, as it was observed: key -> (B, To or more, ...).
            first: the observed frame that the first action belongs to.
        """
        return self._retold(actions, self._contract.action, self.seen.action, window, first)

    def to_robot(
        self, chunk: Any, window: Mapping[str, Any], first: int = 0
    ) -> NDArray[np.float32]:
        """The network's actions -> as the robot takes them; the inverse of `actions_to_network`.

        Args:
            chunk: (B, n, Da as the network tells it), physical units. What is no rotation, as two
                parallel vectors are none in 6-D, makes its chunk NaN.
            window: what was observed, as it was observed: key -> (B, To or more, ...).
            first: the observed frame that the first action belongs to.
        """
        return self._retold(chunk, self.seen.action, self._contract.action, window, first)

    def _retold(
        self, actions: Any, source: Action, goal: Action, window: Mapping[str, Any], first: int
    ) -> NDArray[np.float32]:
        given = np.asarray(actions, np.float64)
        parts = {name: given[..., where] for name, where in source.slices.items()}
        poses = self._poses(window)
        for hand in self._hands:
            spaces = self._space(hand), hand.space
            before, after = spaces if source is self.seen.action else spaces[::-1]
            seen = poses.pose(hand)
            targets = before.targets(_told(hand, before.kind, parts, seen), seen, first)
            told = after.told(targets, seen, first)
            if hand.position is not None:
                parts[hand.position.name] = told.position
            if hand.rotation is not None:
                parts[hand.rotation.name] = FROM_MATRIX[after.kind](told.rotation)
        out = np.concatenate([parts[part.name] for part in goal.fields], axis=-1)
        out[np.isnan(out).any(axis=(1, 2))] = np.nan
        return out.astype(np.float32)


def _geometry(
    contract: Contract, moved: tuple[Hand, ...], given: Mapping[str, Geometry]
) -> dict[str, Geometry]:
    """What each observation is in space; a hand's states are its pose, whatever tells them."""
    streams = contract.observations
    found = {key: geometry_of(stream) for key, stream in streams.items()}
    for hand in moved:
        found |= {hand.seen_position: "point", hand.seen_rotation: "orientation"}
    for key, kind in given.items():
        where = f"policy.geometry.{key}"
        if key not in streams:
            raise UserError(f"the contract has no '{key}'", where, did_you_mean(key, streams))
        if kind != "none" and streams[key].shape != (SIZES[kind],):
            what = f"'{key}' has {streams[key].size} values, {kind} has {SIZES[kind]}"
            raise UserError(what, where, "use none, or leave it out")
    return {key: given.get(key, found[key]) for key in streams}


def _field_seen(part: ActionField, told: str) -> ActionField:
    """An action's field as the network tells it."""
    if told != "recorded" and part.role == "position":
        return dataclasses.replace(part, kind="delta_position" if told == "delta" else "position")
    if told != "recorded" and part.role == "rotation":
        if told == "delta":
            return dataclasses.replace(part, kind="delta_axis_angle", size=3)
        return dataclasses.replace(part, kind="rotation_6d", size=6)
    return part


def _told_from(newest: Pose, kind: Geometry, value: Array, axes: str) -> Array:
    """Points and vectors (B, T, 3), or matrices (B, T, 3, 3), as told from a pose (B, 1)."""
    back = np.swapaxes(newest.rotation, -1, -2)
    if kind == "orientation":
        return np.asarray(back @ value if axes == "tool" else value @ back)
    moved = value - newest.position if kind == "point" else value
    return turned(back, moved) if axes == "tool" else moved


def _told(hand: Hand, kind: str, parts: Mapping[str, Array], seen: Pose) -> Pose:
    """What an action says of a hand (B, n); what is no rotation is NaN.

    What it does not command stays where it was seen last.
    """
    shape = (*next(iter(parts.values())).shape[:2], 3)
    if hand.position is None:
        position = np.broadcast_to(seen.position[NEWEST], shape)
    else:
        position = parts[hand.position.name]
    if hand.rotation is None:
        return Pose(position, np.broadcast_to(seen.rotation[NEWEST], (*shape, 3)))
    turn = parts[hand.rotation.name]
    turn = np.where(is_rotation(kind, turn)[..., None], turn, np.nan)
    return Pose(position, TO_MATRIX[kind](turn))
