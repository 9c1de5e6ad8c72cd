"""What no action may exceed, whatever the network says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from diffusion_policy_ros.contract.meaning import cell
from diffusion_policy_ros.errors import did_you_mean
from diffusion_policy_ros.strict_yaml import Problem

Numbers = float | tuple[float, ...] | None
"""One number, one for each component, or no limit."""

JOINT_LIMITS = ("joint_lead", "joint_velocity", "joint_acceleration", "joint_jump")
_POSE = ("velocity", "acceleration", "step", "lead", "jump", "following_error")
_VELOCITY = ("velocity", "acceleration", "min", "max")
LIMITS_OF: dict[str, tuple[str, ...]] = {
    "position": (*_POSE, "min", "max"),
    "rotation": _POSE,
    "joints": (*_POSE, "min", "max"),
    "scalar": (*_POSE, "min", "max"),
    "joint_velocity": _VELOCITY,
    "twist": _VELOCITY,
    "binary": (),
}
"""Role of a field → the limits that act on it."""
FARTHEST = {
    "position": (20.0, "m", "mm"),
    "rotation": (8 * math.pi, "rad", "degrees"),
    "joints": (8 * math.pi, "rad", "degrees"),
    "joint_velocity": (8 * math.pi, "rad/s", "degrees a second"),
}
"""Role of a field → what no limit of it reaches, its unit, and the one that it then looks like."""
OF_MEASURED = ("lead", "following_error")
"""Limits that need to know where the robot is."""
FORMER: dict[str, dict[str, str]] = {
    "position": {
        "velocity": "velocity",
        "step": "translation",
        "acceleration": "acceleration",
        "lead": "lead",
        "jump": "jump",
        "min": "workspace_min",
        "max": "workspace_max",
    },
    "rotation": {
        "velocity": "angular_velocity",
        "step": "rotation",
        "acceleration": "angular_acceleration",
        "lead": "lead_rotation",
        "jump": "jump_rotation",
    },
    "joints": {
        "velocity": "joint_velocity",
        "acceleration": "joint_acceleration",
        "lead": "joint_lead",
        "jump": "joint_jump",
        "min": "joint_min",
        "max": "joint_max",
    },
}
"""Role of a field → its limits → what they are called in `Limits`, which acts on all of a role."""


@dataclass(frozen=True)
class FieldLimits:
    """What one field of the action may not exceed. Unset means no limit.

    One number is of a position's length and of a rotation's angle, and of every component of
    joints, scalars and twists; a list has one for each component, of a rotation for each axis of
    the base frame. In m and rad, or in whatever the field is in.

    Attributes:
        velocity: of the set-point, a second; of fields that are velocities, the velocity itself.
        acceleration: of the set-point, a second squared.
        step: of one action.
        lead: distance of the set-point from what is measured; steps that would exceed it are
            shortened.
        jump: distance of a chunk's first action from where the robot is and from what it is told;
            a chunk that begins farther away is rejected. Of deltas, the delta's own size.
        following_error: distance of what is measured from the set-point at which the player stops
            with a fault.
        min: lowest value of each component.
        max: highest value of each component.
    """

    velocity: Numbers = None
    acceleration: Numbers = None
    step: Numbers = None
    lead: Numbers = None
    jump: Numbers = None
    following_error: Numbers = None
    min: Numbers = None
    max: Numbers = None

    @property
    def given(self) -> dict[str, float | tuple[float, ...]]:
        """Name → value of those that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def misfits(self, role: str, size: int, measured: bool) -> Iterator[Problem]:
        """What is wrong with them for a field.

        Args:
            role: of the field, a key of `LIMITS_OF`.
            size: its number of components.
            measured: whether it has a state.
        """
        acting, size = LIMITS_OF[role], 3 if role == "rotation" else size
        for name, value in self.given.items():
            numbers = value if isinstance(value, tuple) else (value,)
            if name not in acting:
                cure = did_you_mean(name, acting) if acting else "remove it"
                yield Problem(name, f"a field of {role} has no such limit", cure)
            elif not numbers or (size and len(numbers) not in (1, size)):
                what = f"{len(numbers)} numbers for {size} components"
                yield Problem(name, what, "give one, or one for each")
            elif name not in ("min", "max") and min(numbers) <= 0:
                yield Problem(name, "is not above zero", "leave it out for no limit")
            elif name in OF_MEASURED and not measured:
                yield Problem(
                    name, "nothing measures the field", "name the observation as its state"
                )
        low, high = self.min, self.max
        if (low is None) != (high is None):
            yield Problem("min", "minimum and maximum belong together", "give both")
        elif low is not None and high is not None and not _is_range(low, high):
            yield Problem("min", "is above the maximum", "swap them")


def _is_range(low: Any, high: Any) -> bool:
    lows, highs = (v if isinstance(v, tuple) else (v,) for v in (low, high))
    n = max(len(lows), len(highs))
    lows, highs = (v * n if len(v) == 1 else v for v in (lows, highs))
    return all(a <= b for a, b in zip(lows, highs, strict=False))


def is_tighter(name: str, new: Any, old: Any) -> bool:
    """Whether a limit allows no more than another.

    Args:
        name: of the limit, which says what more is.
        new: its value.
        old: the value to compare with; None or empty where there was no limit.
    """
    if name == "on_stale":
        return bool(new == old or new == "stop")
    if old in (None, ()):
        return True
    news, olds = (v if isinstance(v, tuple) else (v,) for v in (new, old))
    n = max(len(news), len(olds))
    pairs = list(zip(*(v * n if len(v) == 1 else v for v in (news, olds)), strict=False))
    return all(a >= b if name == "min" else a <= b for a, b in pairs)


def _limit() -> Any:
    return cell(None, 1e-6)


@dataclass(frozen=True)
class Limits:
    """Time-outs; and limits of all fields of a role, as contracts had them before fields had
    their own. A field's own limit wins. Unset means no limit.

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
        jump: see `FieldLimits`, of positions, m.
        jump_rotation: the same of orientations, rad.
        joint_jump: the same of joints, rad or m; one for all, or one each.
        chunk_timeout_s: hold when the newest chunk is older than this, s.
        observation_timeout_s: the player holds when what a field's state measures is older than
            this, or than the observation's own ``max_age_s`` where that is more, s.
        on_stale: what these two time-outs do: ``hold`` goes on when news come, ``stop`` is a
            fault, which an operator clears.
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

    def of(self, role: str, size: int) -> dict[str, Any]:
        """Name → value of the limits that act on every field of a role and a size."""
        named = {name: getattr(self, former) for name, former in FORMER.get(role, {}).items()}
        return {
            name: value
            for name, value in named.items()
            if value is not None and (not isinstance(value, tuple) or len(value) in (1, size))
        }

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
