"""Chunks become set-points.

A chunk says when each of its actions is meant, so what is late is dropped *by time*, never by
index. The simulator, the demo and any robot's controller use these classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import ROTATION_KINDS, ActionField, Contract
from diffusion_policy_ros.policy.rotations import TO_QUATERNION, is_rotation

Vector = NDArray[np.float64]

EARLY_NS = 1_000
"""Slack for times that were rounded to whole ns on their way."""


@dataclass(frozen=True)
class Chunk:
    """The actions of one inference; without any it means hold.

    Attributes:
        stamp_ns: time of the newest observed frame, and of the first action.
        actions: (n, Da), physical units.
        period_ns: time between actions.
    """

    stamp_ns: int
    actions: Vector
    period_ns: int

    @property
    def end_ns(self) -> int:
        """When the last action has been executed."""
        return self.stamp_ns + len(self.actions) * self.period_ns


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
    """

    contract: Contract
    clamped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._position = self.contract.action.of_kind("delta_position", "position")
        self._rotation = self.contract.action.of_kind(*ROTATION_KINDS)
        self._gripper = self.contract.action.of_kind("binary")
        self._joints = self.contract.action.of_kind("joint_position")
        self.set_point: SetPoint | None = None

    def anchor(self, measured: Mapping[str, Any]) -> SetPoint:
        """Command what is measured: where integration starts, and starts again after a break.

        Args:
            measured: observation key → newest array; the keys that the action's fields name as
                ``state``.
        """
        previous = self.set_point
        self.set_point = SetPoint(
            position=_state(self._position, measured, np.zeros(3)),
            quaternion=_state(self._rotation, measured, np.array([0.0, 0.0, 0.0, 1.0])),
            gripper=previous.gripper if previous else None,
            joints=_state(self._joints, measured, None),
        )
        return self.set_point

    def apply(self, action: Vector, measured: Mapping[str, Any]) -> SetPoint:
        """The set-point after one more action.

        Args:
            action: (Da,), physical units, finite.
            measured: observation key → newest array, for the limit on the lead.
        """
        before = self.set_point or self.anchor(measured)
        self.set_point = SetPoint(
            position=self._moved(before.position, action, measured),
            quaternion=self._turned(before.quaternion, action),
            gripper=before.gripper
            if self._gripper is None
            else float(self._part(self._gripper, action)[0]),
            joints=None
            if self._joints is None
            else self._limited_joints(self._part(self._joints, action)),
        )
        return self.set_point

    def _part(self, part: ActionField, action: Vector) -> Vector:
        return action[self.contract.action.slices[part.name]]

    def _moved(
        self, position: Vector | None, action: Vector, measured: Mapping[str, Any]
    ) -> Vector | None:
        part, limits = self._position, self.contract.action.limits
        if part is None or position is None:
            return position
        value = self._part(part, action)
        step = value if part.kind == "delta_position" else value - position
        target = position + self._shortened("translation", step, limits.translation)
        if limits.workspace_min:
            target = self._boxed("workspace", target, limits.workspace_min, limits.workspace_max)
        if limits.lead is not None and part.state in measured:
            here = np.asarray(measured[part.state], dtype=float)
            target = here + self._shortened("lead", target - here, limits.lead)
        return target

    def _turned(self, quaternion: Vector | None, action: Vector) -> Vector | None:
        part = self._rotation
        if part is None or quaternion is None:
            return quaternion
        value, before = self._part(part, action), Rotation.from_quat(quaternion)
        if part.kind == "delta_axis_angle":
            turn = Rotation.from_rotvec(value)
        else:
            turn = Rotation.from_quat(TO_QUATERNION[part.kind](value)) * before.inv()
        limited = self._shortened(
            "rotation", turn.as_rotvec(), self.contract.action.limits.rotation
        )
        return (Rotation.from_rotvec(limited) * before).as_quat()

    def _limited_joints(self, joints: Vector) -> Vector:
        limits = self.contract.action.limits
        return (
            self._boxed("joints", joints, limits.joint_min, limits.joint_max)
            if limits.joint_min
            else joints
        )

    def _shortened(self, name: str, vector: Vector, limit: float | None) -> Vector:
        length = float(np.linalg.norm(vector))
        if limit is None or length <= limit:
            return vector
        self.clamped[name] += 1
        return vector * (limit / length)

    def _boxed(
        self, name: str, value: Vector, low: tuple[float, ...], high: tuple[float, ...]
    ) -> Vector:
        inside = np.clip(value, low, high)
        self.clamped[name] += int((inside != value).any())
        return inside


class Playback:
    """Holds the newest chunk and answers "the set-point at time t".

    A newer chunk replaces the tail of the older one. Every action is executed once, when its time
    has come; one whose time has passed is dropped. Past the last action, without a chunk, after an
    empty one, or when the newest is older than ``limits.chunk_timeout_s``, it holds and says why.

    Args:
        contract: the robot.

    Attributes:
        rejected: reason → how many chunks were rejected for it.
        dropped: actions that were never executed because their time had passed.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.commander = Commander(contract)
        self.rejected: Counter[str] = Counter()
        self.dropped = 0
        self._absolute = [p for p in contract.action.fields if p.kind in TO_QUATERNION]
        self._timeout_ns = round(contract.action.limits.chunk_timeout_s * 1e9)
        self.reset()

    def reset(self) -> None:
        """Forget chunk and commanded pose; the next set-point starts at the measured pose."""
        self._chunk: Chunk | None = None
        self._why = "no chunk yet"
        self._done_ns: int | None = None
        self.commander.set_point = None

    def offer(self, chunk: Chunk) -> str:
        """Take a chunk.

        Returns:
            Why it was rejected; empty when it was taken.
        """
        if not len(chunk.actions):
            self._chunk, self._why = None, "told to hold"
            return ""
        reason = self._fault(chunk)
        if reason:
            self.rejected[reason] += 1
        else:
            self._chunk = chunk
        return reason

    def _fault(self, chunk: Chunk) -> str:
        if chunk.actions.ndim != 2 or chunk.actions.shape[1] != self.contract.action_dim:
            return "actions of another size"
        if not np.isfinite(chunk.actions).all():
            return "not finite"
        if not all(self._tells_rotations(part, chunk.actions) for part in self._absolute):
            return "no rotation"
        if chunk.period_ns <= 0:
            return "no time between its actions"
        if self._chunk is not None and chunk.stamp_ns < self._chunk.stamp_ns:
            return "older than the one before"
        return ""

    def _tells_rotations(self, part: ActionField, actions: Vector) -> bool:
        values = actions[:, self.contract.action.slices[part.name]]
        return bool(is_rotation(part.kind, values).all())

    def at(self, time_ns: int, measured: Mapping[str, Any]) -> SetPoint:
        """The set-point at a time, which must not run backwards between calls.

        Args:
            time_ns: now, by the clock that chunks are stamped by.
            measured: observation key → newest array; where commanding starts, and what the lead is
                limited against.
        """
        commander = self.commander
        set_point = commander.set_point or commander.anchor(measured)
        chunk = self._chunk
        if chunk is None:
            return _held(set_point, self._why)
        index = (time_ns + EARLY_NS - chunk.stamp_ns) // chunk.period_ns
        if time_ns - chunk.stamp_ns > self._timeout_ns:
            return _held(set_point, "the newest chunk has aged out")
        if not 0 <= index < len(chunk.actions):
            return _held(
                set_point, "past the last action" if index >= 0 else "the chunk is from the future"
            )
        due_ns = chunk.stamp_ns + index * chunk.period_ns
        if self._done_ns is None or due_ns - self._done_ns > chunk.period_ns / 2:
            set_point = commander.apply(np.asarray(chunk.actions[index], dtype=float), measured)
            skipped = (
                0
                if self._done_ns is None
                else round((due_ns - self._done_ns) / chunk.period_ns) - 1
            )
            self.dropped += min(skipped, int(index))
            self._done_ns = due_ns
        return set_point


def _held(set_point: SetPoint, why: str) -> SetPoint:
    return SetPoint(
        set_point.position, set_point.quaternion, set_point.gripper, set_point.joints, why
    )


def _state(
    part: ActionField | None, measured: Mapping[str, Any], default: Vector | None
) -> Vector | None:
    """What is measured of a field's state; the default where the contract names none."""
    if part is None:
        return None
    return np.array(measured[part.state], dtype=float) if part.state in measured else default
