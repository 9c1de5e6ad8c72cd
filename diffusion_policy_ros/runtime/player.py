"""Chunks become a stream of set-points that a robot can follow, at any rate.

The one class between chunks and robot, used by the simulator, by evaluation and by the action
player. What is checked, in this order: numbers are finite; the chunk is neither from before this
run nor older than its predecessor nor from the future; its first action does not jump from the
measured pose; workspace; velocity and acceleration; the commanded pose does not lead the measured
one by more than is allowed. What does not pass is rejected or clamped, counted and named.

At an action's due time the robot is told exactly what `Playback` says. Between two due times it
goes the remaining way, in a straight line or turn, in the remaining time.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.channel import Channel, channels
from diffusion_policy_ros.runtime.commander import SetPoint, Vector
from diffusion_policy_ros.runtime.playback import AGED_OUT, Chunk, Knot, Playback

AHEAD = 8
"""Actions to come that are looked at: an acceleration limit must know where the way ends."""


class Player:
    """Takes chunks, and says at every tick what the robot is told.

    Args:
        contract: the robot.
        rate_hz: of the ticks; the contract's if not given.
        interpolate: whether to be on the way between two actions; without, an action is told at
            once at its time, as the simulator takes it.

    Attributes:
        stopped: why it was stopped; empty while it was not.
        playback: chooses the actions, with its counts.
    """

    def __init__(
        self, contract: Contract, rate_hz: float | None = None, interpolate: bool = True
    ) -> None:
        self.contract, self.stopped = contract, ""
        self.playback = Playback(contract)
        self.period_s = 1.0 / (rate_hz or contract.rate_hz)
        self._interpolate = interpolate
        self._channels = channels(self.playback.commander, self.period_s)
        self._gripper: float | None = None
        self._seen: tuple[Any, Any] = (None, None)
        self._knots: dict[str, list[Knot]] = {}
        self._since_ns: int | None = None
        self._now_ns: int | None = None
        self.reset()

    @property
    def clamped(self) -> Counter[str]:
        """Limit → how often it clamped something: actions, or ticks of the stream."""
        return self.playback.commander.clamped

    @property
    def rejected(self) -> Counter[str]:
        """Reason → chunks that were rejected for it."""
        return self.playback.rejected

    @property
    def dropped(self) -> int:
        """Actions that were never executed because their time had passed."""
        return self.playback.dropped

    def reset(self, since_ns: int | None = None) -> None:
        """Forget chunks and commanded pose, and start anew from the measured pose.

        Args:
            since_ns: chunks of observations from before are rejected.
        """
        self.playback.reset()
        self._since_ns, self._now_ns = since_ns, None
        self._knots, self._seen = {}, (None, None)
        for channel in self._channels:
            channel.value = None

    def stop(self, reason: str) -> None:
        """Brake and stay there, whatever comes, until `resume`."""
        self.stopped = self.stopped or reason

    def resume(self, now_ns: int) -> None:
        """Go on, from the measured pose, with chunks of observations from now on."""
        self.stopped = ""
        self.reset(now_ns)

    def offer(self, chunk: Chunk, now_ns: int | None = None) -> str:
        """Take a chunk.

        Args:
            chunk: the newest; one without actions means hold.
            now_ns: by the clock that chunks are stamped by.

        Returns:
            Why it was rejected; empty when it was taken.
        """
        reason = self._untimely(chunk, now_ns) if len(chunk.actions) else ""
        if reason:
            self.rejected[reason] += 1
            return reason
        return self.playback.offer(chunk)

    def _untimely(self, chunk: Chunk, now_ns: int | None) -> str:
        if self._since_ns is not None and chunk.stamp_ns < self._since_ns:
            return "from before this run"
        if now_ns is None:
            return ""
        if chunk.stamp_ns > now_ns + chunk.period_ns:
            return "from the future"
        old = now_ns - chunk.stamp_ns > self.contract.action.limits.chunk_timeout_s * 1e9
        return "aged out on its way" if old else ""

    def at(
        self, now_ns: int, measured: Mapping[str, Any], measured_ns: int | None = None
    ) -> SetPoint:
        """What the robot is told now; once a tick.

        Args:
            now_ns: by the clock that chunks are stamped by.
            measured: observation key → newest array: the states of the action's fields.
            measured_ns: when they were measured, the oldest of them; now if not given.
        """
        if self._now_ns is not None and now_ns < self._now_ns - self.contract.period_ns:
            self.reset(now_ns)
        self._now_ns = now_ns
        why = self._stale(now_ns, measured_ns)
        if why and not self._begun:
            return SetPoint(holding=why)
        told = self.playback.commander.set_point or self.playback.commander.anchor(measured)
        for channel in self._channels:
            if channel.value is None:
                channel.begin(getattr(told, channel.slot), now_ns)
        if why and self.contract.action.limits.on_stale == "stop":
            self.stop(why)
        if not (why or self.stopped):
            told = self.playback.at(now_ns, measured)
            if told.holding == AGED_OUT and self.contract.action.limits.on_stale == "stop":
                self.stop(AGED_OUT)
        return self._told(told, f"stopped: {self.stopped}" if self.stopped else why, measured)

    @property
    def _begun(self) -> bool:
        return self.playback.commander.set_point is not None

    def _stale(self, now_ns: int, measured_ns: int | None) -> str:
        """Why what is measured cannot be believed to be now."""
        if measured_ns is None:
            return ""
        age_s = (now_ns - measured_ns) / 1e9
        limit_s = self.contract.action.limits.observation_timeout_s
        if abs(age_s) <= limit_s:
            return ""
        if age_s < 0:
            return f"the measured pose is stamped {-age_s:.3f} s in the future"
        return f"the measured pose is {age_s:.3f} s old, {limit_s:g} s are allowed"

    def _told(self, told: SetPoint, why: str, measured: Mapping[str, Any]) -> SetPoint:
        """Let every part go on, or come to rest."""
        why = why or told.holding
        if not why:
            self._look_ahead(measured)
        for channel in self._channels:
            here = measured.get(channel.state)
            here = None if here is None else np.asarray(here, dtype=float)
            if not self._streams(channel):
                channel.value = getattr(told, channel.slot)
            elif why or channel.slot not in self._knots:
                channel.hold(self._now_ns or 0, here)
            else:
                self._advance(channel, self._knots[channel.slot], here)
        self._gripper = self._gripper if told.gripper is None else told.gripper
        values = {channel.slot: channel.value for channel in self._channels}
        if why:  # what integrates from here on begins where the robot was told to stay
            self.playback.commander.set_point = SetPoint(gripper=told.gripper, **values)
        return SetPoint(gripper=self._gripper, holding=why, **values)

    def _streams(self, channel: Channel) -> bool:
        """Whether there is anything to do between actions."""
        return self._interpolate or not channel.limiter.idle

    def _advance(self, channel: Channel, knots: list[Knot], here: Vector | None) -> None:
        aim = knots[0].value
        if self._interpolate:
            aim = channel.aim(knots, self._now_ns or 0, self.contract.period_ns)
        channel.go(aim, [knot.value for knot in knots[1:]], here)

    def _look_ahead(self, measured: Mapping[str, Any]) -> None:
        """Find the knots of the chunk in hand, when there is an action or a chunk more."""
        playback = self.playback
        seen = (playback.commander.set_point, playback.chunk)
        if seen[0] is self._seen[0] and seen[1] is self._seen[1]:
            return
        if seen[0] is not self._seen[0]:
            self._keep_near()
        streams = [channel for channel in self._channels if self._streams(channel)]
        braking = any(np.isfinite(channel.limiter.change).any() for channel in streams)
        most = AHEAD if braking else 1
        self._knots = playback.coming(measured, most) if streams else {}
        self._seen = (playback.commander.set_point, playback.chunk)

    def _keep_near(self) -> None:
        """What a velocity limit holds back is made up for at once or not at all: not piled up."""
        commander = self.playback.commander
        near: dict[str, Any] = {}
        assert commander.set_point is not None, "it was anchored"
        ticks = self.contract.period_ns / 1e9 / self.period_s
        for channel in self._channels:
            if np.isfinite(channel.limiter.top).any():
                way = channel.space.way(channel.value, getattr(commander.set_point, channel.slot))
                way = channel.limiter.shortened(way, channel.limiter.reach(ticks))
                near[channel.slot] = channel.space.move(channel.value, way)
        if near:
            commander.set_point = dataclasses.replace(commander.set_point, **near)
