"""What no action may exceed, whatever the network says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from diffusion_policy_ros.contract.meaning import cell
from diffusion_policy_ros.strict_yaml import Problem

JOINT_LIMITS = ("joint_lead", "joint_velocity", "joint_acceleration", "joint_jump")


def _limit() -> Any:
    return cell(None, 1e-6)


@dataclass(frozen=True)
class Limits:
    """What no action may exceed, whatever the network says. Unset means no limit.

    Attributes:
        translation: length of one action's translation, m.
        rotation: angle of one action's rotation, rad.
        lead: distance of the commanded from the measured position, m.
        lead_rotation: the same of orientations, rad.
        workspace_min: lowest commanded position (x, y, z), m.
        workspace_max: highest commanded position (x, y, z), m.
        joint_min: lowest joint positions, rad or m.
        joint_max: highest joint positions, rad or m.
        joint_lead: distance of commanded from measured joints, rad or m; one for all, or one each.
        velocity: of the commanded position, m/s.
        acceleration: of the commanded position, m/s^2.
        angular_velocity: of the commanded orientation, rad/s.
        angular_acceleration: of the commanded orientation, rad/s^2.
        joint_velocity: of commanded joints, rad/s or m/s; one for all, or one each.
        joint_acceleration: of commanded joints, rad/s^2 or m/s^2; one for all, or one each.
        jump: distance of a chunk's first action from the measured position, m; a chunk that begins
            farther away is rejected.
        jump_rotation: the same of orientations, rad.
        joint_jump: the same of joints, rad or m; one for all, or one each.
        chunk_timeout_s: hold when the newest chunk is older than this, s.
        observation_timeout_s: the player holds when the measured pose is older than this, s.
        on_stale: what these two time-outs do: ``hold`` goes on when news come, ``stop`` waits to
            be resumed.
    """

    translation: float | None = dataclasses.field(default=None, metadata={"min": 0.0})
    rotation: float | None = dataclasses.field(default=None, metadata={"min": 0.0})
    lead: float | None = dataclasses.field(default=None, metadata={"min": 0.0})
    lead_rotation: float | None = _limit()
    workspace_min: tuple[float, ...] = ()
    workspace_max: tuple[float, ...] = ()
    joint_min: tuple[float, ...] = ()
    joint_max: tuple[float, ...] = ()
    joint_lead: tuple[float, ...] = cell(())
    velocity: float | None = _limit()
    acceleration: float | None = _limit()
    angular_velocity: float | None = _limit()
    angular_acceleration: float | None = _limit()
    joint_velocity: tuple[float, ...] = cell(())
    joint_acceleration: tuple[float, ...] = cell(())
    jump: float | None = _limit()
    jump_rotation: float | None = _limit()
    joint_jump: tuple[float, ...] = cell(())
    chunk_timeout_s: float = dataclasses.field(default=1.0, metadata={"min": 0.01, "max": 60.0})
    observation_timeout_s: float = cell(0.5, 0.01, 60.0)
    on_stale: Literal["hold", "stop"] = cell("hold")

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        for name, size in (("workspace", 3), ("joint", 0)):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if len(low) != len(high) or (low and size and len(low) != size):
                yield Problem(
                    f"{name}_min", "minimum and maximum differ in size", "give both, equally long"
                )
            elif any(a > b for a, b in zip(low, high, strict=True)):
                yield Problem(f"{name}_min", "is above the maximum", "swap them")
        for name in JOINT_LIMITS:
            if min(getattr(self, name), default=1.0) <= 0:
                yield Problem(name, "is not above zero", "leave it out for no limit")

    def joint_problems(self, size: int) -> Iterator[Problem]:
        """What does not fit the number of joints."""
        for name in ("joint_min", "joint_max", *JOINT_LIMITS):
            if len(given := getattr(self, name)) not in (0, 1, size):
                what = f"{len(given)} numbers for {size} joints"
                yield Problem(f"limits.{name}", what, "give one, or one for each")
