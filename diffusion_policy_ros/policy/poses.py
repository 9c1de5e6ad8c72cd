"""Poses in NumPy, the ways between them, and the spaces in which a chunk of them is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.policy.rotations import Array

NEWEST = np.s_[:, -1:]
"""Of observed frames (B, To), the last."""


class Pose(NamedTuple):
    """Positions (..., 3) and rotation matrices (..., 3, 3); or the way from one to another."""

    position: Array
    rotation: Array

    def at(self, where: Any) -> Pose:
        """Those at an index of the leading axes."""
        return Pose(self.position[where], self.rotation[where])


def way(start: Pose, end: Pose, axes: str) -> Pose:
    """What leads from one pose to another, in the "base"'s axes or in the start's own ("tool")."""
    moved, back = end.position - start.position, np.swapaxes(start.rotation, -1, -2)
    if axes == "tool":
        return Pose(turned(back, moved), back @ end.rotation)
    return Pose(moved, end.rotation @ back)


def follow(start: Pose, step: Pose, axes: str) -> Pose:
    """Where a way leads: `follow(start, way(start, end, axes), axes)` is `end`."""
    if axes == "tool":
        moved = turned(start.rotation, step.position)
        return Pose(start.position + moved, start.rotation @ step.rotation)
    return Pose(start.position + step.position, step.rotation @ start.rotation)


def turned(rotation: Array, vector: Array) -> Array:
    """Matrices (..., 3, 3) times vectors (..., 3)."""
    return np.asarray((rotation @ vector[..., None])[..., 0])


class Space(NamedTuple):
    """How the targets of a chunk are told.

    A *target* is the pose that an action leads to. "absolute" tells it itself, "relative" the way
    from the newest observed pose, "delta" the way from where the action starts: an action of an
    observed frame where the robot was seen then, a later one at the target before it. So deltas
    have targets, targets deltas, and who adds them up arrives where they were meant to lead.

    Attributes:
        position: "absolute", "relative" or "delta".
        rotation: the same of its rotation.
        kind: how rotations are written, a key of TO_QUATERNION.
        axes: those of the ways, "base" or "tool".
    """

    position: str
    rotation: str
    kind: str
    axes: str = "base"

    @property
    def is_absolute(self) -> bool:
        """Whether it tells targets themselves."""
        return self.position == self.rotation == "absolute"

    def told(self, targets: Pose, seen: Pose, first: int) -> Pose:
        """Targets as this space tells them.

        Args:
            targets: (B, n), of the actions from `first` on.
            seen: (B, To), observed, the newest last.
            first: the observed frame that the first action belongs to.
        """
        ways = {"absolute": targets}
        for how in {self.position, self.rotation} - {"absolute"}:
            start = seen.at(NEWEST) if how == "relative" else _starts(targets, seen, first)
            ways[how] = way(start, targets, self.axes)
        return self._mixed(ways)

    def targets(self, told: Pose, seen: Pose, first: int) -> Pose:
        """The inverse of `told`, with its arguments."""
        led = {"absolute": told}
        if "relative" in (self.position, self.rotation):
            led["relative"] = follow(seen.at(NEWEST), told, self.axes)
        if "delta" not in (self.position, self.rotation):
            return self._mixed(led)
        out = Pose(np.empty_like(told.position), np.empty_like(told.rotation))
        for i in range(told.position.shape[1]):
            now, frame = np.s_[:, i], first + i
            start = seen.at(np.s_[:, frame]) if frame < _frames(seen) else out.at(np.s_[:, i - 1])
            here = {how: pose.at(now) for how, pose in led.items()}
            here["delta"] = follow(start, told.at(now), self.axes)
            out.position[now], out.rotation[now] = self._mixed(here)
        return out

    def _mixed(self, poses: Mapping[str, Pose]) -> Pose:
        return Pose(poses[self.position].position, poses[self.rotation].rotation)


def _frames(pose: Pose) -> int:
    return int(pose.position.shape[1])


def _starts(targets: Pose, seen: Pose, first: int) -> Pose:
    """Where each action starts: (B, n)."""
    count, observed = _frames(targets), _frames(seen) - first

    def joined(was: NDArray[Any], will_be: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([was[:, first:], will_be[:, observed - 1 : -1]], axis=1)[:, :count]

    return Pose(joined(seen.position, targets.position), joined(seen.rotation, targets.rotation))
