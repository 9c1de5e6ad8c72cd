"""Actions become poses: integration from the commanded pose, within the contract's limits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import ROTATION_KINDS, ActionField, Contract
from diffusion_policy_ros.policy.rotations import TO_QUATERNION

Vector = NDArray[np.float64]

SLOTS = ("position", "quaternion", "gripper", "joints")
"""The parts of a set-point that an action's fields command."""


@dataclass(frozen=True)
class SetPoint:
    """What the robot is told at one instant; None for what the contract's action does not command.

    Attributes:
        position: of the end effector in the base frame, m.
        quaternion: its orientation, x y z w.
        gripper: as the action's ``binary`` field gives it, > 0 for closed.
        joints: joint positions, rad or m.
        holding: why the arm holds; empty while it moves.
    """

    position: Vector | None = None
    quaternion: Vector | None = None
    gripper: float | None = None
    joints: Vector | None = None
    holding: str = ""


@dataclass
class Commander:
    """Integrates actions from the commanded pose, within the contract's limits.

    Args:
        contract: the robot.

    Attributes:
        clamped: limit → how many actions it clamped.
        fields: slot of the set-point → the action's field that commands it.
        set_point: what is commanded; None before `anchor`.
    """

    contract: Contract
    clamped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        found = {
            "position": self.contract.action.of_kind("delta_position", "position"),
            "quaternion": self.contract.action.of_kind(*ROTATION_KINDS),
            "gripper": self.contract.action.of_kind("binary"),
            "joints": self.contract.action.of_kind("joint_position"),
        }
        self.fields = {slot: part for slot, part in found.items() if part is not None}
        self.set_point: SetPoint | None = None

    def anchor(self, measured: Mapping[str, Any]) -> SetPoint:
        """Command what is measured: where integration starts, and starts again after a break.

        Args:
            measured: observation key → newest array; the keys that the action's fields name as
                ``state``.
        """
        previous = self.set_point
        self.set_point = SetPoint(
            position=self._state("position", measured, np.zeros(3)),
            quaternion=self._state("quaternion", measured, np.array([0.0, 0.0, 0.0, 1.0])),
            gripper=previous.gripper if previous else None,
            joints=self._state("joints", measured, None),
        )
        return self.set_point

    def apply(
        self, action: Vector, measured: Mapping[str, Any], slots: Collection[str] = SLOTS
    ) -> SetPoint:
        """The set-point after one more action.

        Args:
            action: (Da,), physical units, finite.
            measured: observation key → newest array, for the limits on the lead.
            slots: the parts of the set-point that are commanded; the others stay.
        """
        before = self.set_point or self.anchor(measured)
        move: dict[str, Callable[..., Any]] = {
            "position": self._moved,
            "quaternion": self._turned,
            "gripper": self._gripped,
            "joints": self._bent,
        }
        self.set_point = dataclasses.replace(
            before,
            **{
                slot: move[slot](
                    part,
                    getattr(before, slot),
                    action[self.contract.action.slices[part.name]],
                    measured,
                )
                for slot, part in self.fields.items()
                if slot in slots
            },
        )
        return self.set_point

    def jump(self, action: Vector, measured: Mapping[str, Any]) -> str:
        """Why an action may not be a chunk's first: how far it leads from what is measured.

        Args:
            action: (Da,), physical units, finite.
            measured: observation key → newest array.

        Returns:
            In words, with the limit; empty when it may.
        """
        limits, here = self.contract.action.limits, self.set_point or self.anchor(measured)
        for slot, (limit, key) in {
            "position": (limits.jump, "jump"),
            "quaternion": (limits.jump_rotation, "jump_rotation"),
            "joints": (limits.joint_jump, "joint_jump"),
        }.items():
            part = self.fields.get(slot)
            if part is None or not limit or part.state not in measured:
                continue
            value = action[self.contract.action.slices[part.name]]
            target = _aimed(part, getattr(here, slot), value)
            distance = _distance(slot, np.asarray(measured[part.state], dtype=float), target)
            if (distance > limit).any():
                return f"begins {np.max(distance):.3f} from the measured {slot}, beyond {key}"
        return ""

    def _state(
        self, slot: str, measured: Mapping[str, Any], default: Vector | None
    ) -> Vector | None:
        """What is measured of a slot's state; the default where the contract names none."""
        part = self.fields.get(slot)
        if part is None:
            return None
        return np.array(measured[part.state], dtype=float) if part.state in measured else default

    def _moved(
        self, part: ActionField, position: Vector, value: Vector, measured: Mapping[str, Any]
    ) -> Vector:
        limits = self.contract.action.limits
        step = value if part.kind == "delta_position" else value - position
        target = position + self._shortened("translation", step, limits.translation)
        if limits.workspace_min:
            target = self._boxed("workspace", target, limits.workspace_min, limits.workspace_max)
        if limits.lead is not None and part.state in measured:
            here = np.asarray(measured[part.state], dtype=float)
            target = here + self._shortened("lead", target - here, limits.lead)
        return target

    def _turned(
        self, part: ActionField, quaternion: Vector, value: Vector, measured: Mapping[str, Any]
    ) -> Vector:
        limits, before = self.contract.action.limits, Rotation.from_quat(quaternion)
        if part.kind == "delta_axis_angle":
            turn = Rotation.from_rotvec(value)
        else:
            turn = Rotation.from_quat(TO_QUATERNION[part.kind](value)) * before.inv()
        limited = self._shortened("rotation", turn.as_rotvec(), limits.rotation)
        target = Rotation.from_rotvec(limited) * before
        if limits.lead_rotation is not None and part.state in measured:
            here = Rotation.from_quat(np.asarray(measured[part.state], dtype=float))
            ahead = (target * here.inv()).as_rotvec()
            ahead = self._shortened("lead_rotation", ahead, limits.lead_rotation)
            target = Rotation.from_rotvec(ahead) * here
        return np.asarray(target.as_quat())

    def _gripped(
        self, part: ActionField, before: float | None, value: Vector, measured: Mapping[str, Any]
    ) -> float:
        return float(value[0])

    def _bent(
        self, part: ActionField, joints: Vector, value: Vector, measured: Mapping[str, Any]
    ) -> Vector:
        limits = self.contract.action.limits
        if limits.joint_min:
            value = self._boxed("joints", value, limits.joint_min, limits.joint_max)
        if limits.joint_lead and part.state in measured:
            here, lead = np.asarray(measured[part.state], dtype=float), np.array(limits.joint_lead)
            value = self._boxed("joint_lead", value, here - lead, here + lead)
        return value

    def _shortened(self, name: str, vector: Vector, limit: float | None) -> Vector:
        length = float(np.linalg.norm(vector))
        if limit is None or length <= limit:
            return vector
        self.clamped[name] += 1
        return vector * (limit / length)

    def _boxed(self, name: str, value: Vector, low: Any, high: Any) -> Vector:
        inside = np.clip(value, low, high)
        self.clamped[name] += int((inside != value).any())
        return inside


def _aimed(part: ActionField, before: Vector | None, value: Vector) -> Vector:
    """Where an action leads without any limit."""
    if part.kind == "delta_position":
        return value + (0.0 if before is None else before)
    if part.kind == "delta_axis_angle":
        return np.asarray((Rotation.from_rotvec(value) * Rotation.from_quat(before)).as_quat())
    return TO_QUATERNION[part.kind](value) if part.kind in TO_QUATERNION else value


def _distance(slot: str, one: Vector, other: Vector) -> Vector:
    """m, rad, or one a joint."""
    if slot == "quaternion":
        return np.asarray((Rotation.from_quat(other) * Rotation.from_quat(one).inv()).magnitude())
    return np.abs(other - one) if slot == "joints" else np.asarray(np.linalg.norm(other - one))
