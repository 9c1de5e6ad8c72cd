"""The player: a pure state machine between chunks and robot, and the last word of both.

    stopped → playing ⇄ holding → operator
                 ↘ fault ↙

It starts stopped and says nothing until it is released *and* a chunk has passed the gate; there it
takes the measured pose for its set-point. From then on only chunks move a set-point, through the
axes (`axes.py`), which do it within their limits. Stopped and holding mean that it does not change
once it has come to rest, whatever is measured. What is measured can only shorten a step, or end
all of them: faults are latched and named, and only a release at rest clears them.

One class for simulator, evaluation, replay and node; no ROS, no clock, no thread.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.axes import OUTSIDE, Axis, axes_of
from diffusion_policy_ros.runtime.measurements import Measurements
from diffusion_policy_ros.runtime.spaces import Vector
from diffusion_policy_ros.runtime.tail import AGED_OUT, NO_CHUNK, Chunk, Tail

State = Literal["stopped", "playing", "holding", "operator", "fault"]
SetPoint = Mapping[str, Vector]
"""Field name → what it is told: a position (3,), a quaternion (4,) for every kind of rotation,
joints (n,), a scalar (1,), a binary (1,) that is +1 for closed and -1 for open, a twist (6,)."""

LATE_TICKS = 5
"""A tick that comes later than so many periods, and than twice the time of the one before, is
late."""
BACK_NS = 1_000_000
"""A clock may step back by so much unnoticed."""
STALL_NS = 1_000_000_000
"""Without a tick for so long either the clock has stepped or the process stood still."""


class Player:
    """Takes chunks, and says at every tick what the robot is told.

    Args:
        contract: the robot.
        rate_hz: of the ticks; the contract's if not given.
        interpolate: whether to be on the way between two actions; without, an action is told at
            once at its time, as the simulator takes it.

    Attributes:
        fault_name: what kind of fault there is: ``following_error``, ``measured_jump``,
            ``outside``, ``clock``, ``stale``, or what `fault` was told; empty for none.
        speed_scale: of all velocities, 0 to 1, for the first motion.
        clamped: field and limit → how often it held something back: actions, or ticks.
        dropped: actions that were never executed because their time had passed.
        late_ticks: how often a tick came late.
    """

    def __init__(
        self, contract: Contract, rate_hz: float | None = None, interpolate: bool = True
    ) -> None:
        self._contract, self._interpolate = contract, interpolate
        self._tick_ns = round(1e9 / (rate_hz or contract.rate_hz))
        self.clamped, self.dropped, self.late_ticks = Counter[str](), 0, 0
        self.speed_scale, self.fault_name = 1.0, ""
        self._axes = axes_of(contract, self.clamped)
        self._tail = Tail(contract, self._read)
        self._mode: Literal["stopped", "released", "operator", "fault"] = "stopped"
        self._word, self._hold, self._why = "not released yet", "", NO_CHUNK
        self._begun = self._leaving = self._may_begin_outside = False
        self._set_point: dict[str, Vector] | None = None
        self._now_ns: int | None = None
        self._gap_ns = self._tick_ns
        self._measurements = Measurements(contract, self._axes)

    # --------------------------------------------------------------------- what it says of itself

    @property
    def state(self) -> State:
        """What it does."""
        if self._mode != "released":
            return self._mode
        return "holding" if self.why else "playing"

    @property
    def why(self) -> str:
        """Why it does not play; empty while it does."""
        return self._word if self._mode != "released" else self._hold or self._why

    @property
    def quiet(self) -> bool:
        """Whether it tells the robot nothing."""
        return self._set_point is None

    @property
    def at_rest(self) -> bool:
        """Whether what it tells does not move."""
        return all(axis.at_rest for axis in self._axes)

    @property
    def set_point(self) -> SetPoint | None:
        """What the robot was told last; None while it is told nothing."""
        return self._set_point

    @property
    def goal(self) -> SetPoint:
        """Field → where the last action that fell due leads."""
        return {axis.name: axis.goal for axis in self._axes if axis.value is not None}

    @property
    def velocity(self) -> Mapping[str, Vector]:
        """Field → the velocity of its set-point, a second; of rotations a rotation vector."""
        return {axis.name: axis.velocity for axis in self._axes if axis.value is not None}

    @property
    def rejected(self) -> Counter[str]:
        """Reason → chunks that were rejected for it."""
        return self._tail.rejected

    @property
    def contract(self) -> Contract:
        """The robot. It may be replaced by one with other limits while it plays."""
        return self._contract

    @contract.setter
    def contract(self, contract: Contract) -> None:
        self._contract = contract
        self._measurements.limited_by(contract)
        self._tail.limited_by(contract)
        for axis, part in zip(self._axes, contract.commanded, strict=True):
            axis.limited_by(contract.action.limits_of(part))

    # ------------------------------------------------------------------------------ the operator

    def release(self, now_ns: int) -> str:
        """Play chunks of observations from now on, from where the robot is when the first comes.

        Args:
            now_ns: by the clock that chunks are stamped by.

        Returns:
            Why not; empty when it will.
        """
        if self._mode == "released":
            return f"it is {self.state}"
        if not self.at_rest:
            return "it is still coming to rest"
        self._may_begin_outside = self.fault_name == "outside"
        self._mode, self._word, self.fault_name = "released", "", ""
        self._tail.forget()
        self._tail.since_ns = now_ns
        self._why = NO_CHUNK
        self._measurements.forget()
        self._begun = self._leaving = False
        for axis in self._axes:
            axis.forget()
        return ""

    def stop(self, why: str, keep: bool = True) -> None:
        """Brake and stay there, whatever comes, until it is released.

        Args:
            why: in words.
            keep: whether to go on telling the robot to stay; else it is told nothing any more once
                it has come to rest.
        """
        self._leave("stopped", why, keep)

    def hand_over(self, why: str = "handed over") -> None:
        """Brake, then tell the robot nothing: an operator moves it."""
        self._leave("operator", why, keep=False)

    def _leave(self, mode: Literal["stopped", "operator"], why: str, keep: bool) -> None:
        """Have no authority; a fault stays one."""
        if self._mode != "fault":
            self._mode, self._word = mode, why
        self._tail.forget()
        self._leaving = self._leaving or not keep

    def hold(self, why: str) -> None:
        """Hold, and take no chunk, until this is called with an empty reason."""
        if why and not self._hold:
            self._tail.forget()
        self._hold = why

    def fault(self, name: str, why: str) -> None:
        """Brake and stay there until it is released at rest; the first fault is the one told.

        Args:
            name: of the kind of fault.
            why: in words.
        """
        if self._mode == "released":
            self._mode, self._word, self.fault_name = "fault", why, name
            self._tail.forget()

    # ------------------------------------------------------------------------------------ chunks

    def offer(self, chunk: Chunk, now_ns: int | None = None) -> str:
        """Take a chunk.

        Args:
            chunk: the newest; one without actions means hold.
            now_ns: by the clock that chunks are stamped by.

        Returns:
            Why it was not taken; empty when it was.
        """
        if self._mode != "released" or self._hold:
            return self.why
        return self._tail.offer(chunk, now_ns)

    def _read(self, actions: Vector) -> dict[str, Vector]:
        """Field → what actions say of it."""
        slices = self._contract.action.slices
        return {
            axis.name: axis.targets(actions[:, slices[axis.name]])
            for axis in self._axes
            if axis.name in slices
        }

    # ------------------------------------------------------------------------------------- ticks

    def tick(
        self,
        now_ns: int,
        measured: Mapping[str, Any],
        measured_ns: Mapping[str, int] | None = None,
    ) -> SetPoint | None:
        """What the robot is told now; None for nothing.

        Args:
            now_ns: by the clock that chunks are stamped by.
            measured: key of `Contract.measured` → newest vector.
            measured_ns: key → when it was measured. Without it all is exact and of now, as a
                simulator's is.
        """
        elapsed_ns, late = self._advance(now_ns)
        unseen = self._measurements.take(measured, measured_ns, now_ns)
        if self._measurements.fault and self._begun:
            self.fault(*self._measurements.fault)
        if self._mode == "released":
            self._why = unseen or self._hold or self._play(now_ns, elapsed_ns, late)
        if self.state != "playing":
            for axis in self._axes:
                axis.rest(now_ns, elapsed_ns / 1e9)
        return self._tell()

    def ahead(self, n: int, step_ns: int) -> list[SetPoint]:
        """Where set-points will be if nothing new comes, within their limits.

        Args:
            n: how many.
            step_ns: between two, the first that much after the last tick.
        """
        axes, found = [copy.copy(axis) for axis in self._axes], list[SetPoint]()
        for axis in axes:
            axis.clamped = Counter()
        for i in range(1, n + 1):
            now_ns = (self._now_ns or 0) + i * step_ns
            if self.state != "playing" or self._follow(axes, now_ns, step_ns, ahead=True):
                for axis in axes:
                    axis.rest(now_ns, step_ns / 1e9)
            told = {axis.name: axis.value for axis in axes if axis.value is not None}
            found.append({**(self._set_point or {}), **told})  # released again, it stays there
        return found

    def _advance(self, now_ns: int) -> tuple[int, bool]:
        """The time since the tick before, and whether ticks were missed; a step is a fault."""
        before, self._now_ns = self._now_ns, now_ns
        if before is None:
            return self._tick_ns, False
        gap_ns, stall_ns = now_ns - before, max(STALL_NS, LATE_TICKS * self._tick_ns)
        if gap_ns < -BACK_NS:
            self.fault("clock", f"the clock stepped back by {-gap_ns / 1e9:.3f} s")
        elif self._begun and gap_ns > stall_ns:
            what = "the clock stepped, or the process stood still"
            self.fault("clock", f"no tick for {gap_ns / 1e9:.3f} s: {what}")
        if gap_ns <= 0:
            return 0, False
        if not self._begun:
            return min(gap_ns, self._tick_ns), False
        self.late_ticks += gap_ns > 2 * self._tick_ns
        late = gap_ns > max(LATE_TICKS * self._tick_ns, 2 * self._gap_ns)
        self._gap_ns = gap_ns
        return gap_ns, late

    def _play(self, now_ns: int, elapsed_ns: int, late: bool) -> str:
        """Go on with the chunk in hand; why it holds, or nothing."""
        chunk = self._admitted(now_ns)
        if isinstance(chunk, str):
            return chunk
        for axis in self._axes:
            error = axis.following_error(self._measurements.of(axis))
            if error:
                self.fault("following_error", error)
                return error
        self.dropped += self._axes[0].skipped(chunk, now_ns)
        return self._follow(self._axes, now_ns, elapsed_ns, late)

    def _follow(
        self,
        axes: list[Axis],
        now_ns: int,
        elapsed_ns: int,
        late: bool = False,
        ahead: bool = False,
    ) -> str:
        """Take a tick's step of every axis; why none is taken, or nothing."""
        here = {axis.name: None if ahead else self._measurements.of(axis) for axis in axes}
        scale, told = self.speed_scale, [axis for axis in axes if axis.name in self._tail.targets]
        if self._tail.chunk is None:
            return self._tail.why
        why = ["past the last action"] * (not told)
        for axis in told:
            chunk, targets = self._tail.at(now_ns + axis.early_ns)
            if chunk is not None:
                why.append(axis.plan(chunk, targets[axis.name], now_ns, here[axis.name], scale))
        if all(why):
            return why[0]
        for axis in told:
            if axis.value is not None:
                aim = axis.aim(now_ns, self._tick_ns, late) if self._interpolate else axis.goal
                axis.step(aim, elapsed_ns / 1e9, here[axis.name], scale)
        return ""

    # ----------------------------------------------------------------------------- what may begin

    def _admitted(self, now_ns: int) -> Chunk | str:
        """The chunk to play, after the gate and, for the first, the anchor; why none is, else."""
        tail, limits = self._tail, self._contract.action.limits
        if not self._begun and tail.chunk is not None:
            unsure = self._measurements.unsure
            if unsure:
                return f"waiting for another measurement of {', '.join(unsure)}"
        if tail.fresh:
            self._gate(now_ns)
        chunk, _ = tail.at(now_ns)
        if chunk is None:
            return tail.why
        if now_ns - chunk.stamp_ns > limits.chunk_timeout_s * 1e9:
            if limits.on_stale == "stop" and self._begun:
                self.fault("stale", AGED_OUT)
            return AGED_OUT
        return ("" if self._begun else self._anchor(now_ns)) or chunk

    def _gate(self, now_ns: int) -> None:
        """Put the newest chunk away if it begins too far off; each axis at its own time."""
        tail, self._tail.fresh = self._tail, False
        for axis in self._axes:
            if tail.chunk is None or axis.name not in tail.targets:
                continue
            index = max(tail.chunk.index(now_ns + axis.early_ns), 0)
            targets, here = tail.targets[axis.name], self._measurements.of(axis)
            why = index < len(targets) and axis.gate(targets[index], here)
            if why:
                tail.put_away("jump", f"a chunk {why}")
                return

    def _anchor(self, now_ns: int) -> str:
        """Begin where the robot is; why not, or nothing."""
        for axis in self._axes:
            outside = float(np.max(axis.outside(self._measurements.of(axis))))
            is_far = axis.part.moves_arm and outside > OUTSIDE
            if is_far and not self._may_begin_outside:
                why = f"{axis.name} is {outside:.3f} outside its range"
                self.fault("outside", f"{why}; release again to let chunks lead it back")
                return why
        for axis in self._axes:
            axis.anchor(self._measurements.of(axis), now_ns)
        self._begun = True
        return ""

    def _tell(self) -> SetPoint | None:
        """What the robot is told; nothing before it has begun, and after it has let go."""
        values = {axis.name: axis.value for axis in self._axes if axis.value is not None}
        if self._leaving and self.at_rest and self._mode != "released":
            told = values if self._begun else self._set_point
            self._set_point, self._begun, self._leaving = None, False, False
            for axis in self._axes:
                axis.forget()
            return told
        if self._begun:
            self._set_point = values
        return self._set_point
