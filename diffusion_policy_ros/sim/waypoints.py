"""Scripted experts for `robosuite.py`: from one way-point to the next by what is observed.

An action is proportional to what is left of the way. Which way-point is next follows from the
observation, but for how long the fingers have been closing, so that single frames tell a policy
what to do. What is executed is noisy, what is recorded is not: demonstrations show the way back
from where the noise led (Laskey et al. 2017, DART).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.sim.simulator import Observation, SetPoint, Vector

MOVE, TURN = 0.05, 0.5
"""Of one action, an axis: m and rad, as of robosuite's controller."""
MOVE_NOISE, TURN_NOISE, CORRELATION = 0.003, 0.0075, 0.7
OPEN, CLOSED = -1.0, 1.0
AHEAD = np.pi / 2
"""Heading of the hand at the start, from which the wrist turns as far to either side."""
CLOSING, RELEASED = 6, 0.07
"""Frames that the fingers take, and the gap that lets go, m."""


class Seen(NamedTuple):
    """The tool and the thing in the world, m and rad.

    Attributes:
        tool: where the grip site is.
        heading: of its x axis, along which the fingers close.
        gap: between the fingers.
        thing: where the object is.
        yaw: of its x axis.
    """

    tool: Vector
    heading: float
    gap: float
    thing: Vector
    yaw: float


class WayPoint(NamedTuple):
    """Where the tool shall be, pointing down.

    Attributes:
        place: (3,), m.
        heading: of its x axis, rad.
        gripper: OPEN or CLOSED.
    """

    place: Vector
    heading: float
    gripper: float


class Expert:
    """Over the thing, down, close, and then what the task wants.

    Args:
        seed: of the noise, and of how high over the thing it begins to go down.
    """

    period = np.pi / 2
    """Headings so far apart grip alike; 0 where every heading does."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._noise, self._closed, self._heading = np.zeros(6), 0, AHEAD
        self._over = self._rng.uniform(0.06, 0.12)

    def act(self, observation: Observation, told: SetPoint) -> tuple[Vector, Vector]:
        """The next delta to the measured pose, m and rad, and the gripper; see `Expert.act`."""
        here = Rotation.from_quat(observation["robot0_eef_quat"])
        forward = here.as_matrix()[:, 0]
        seen = Seen(
            np.asarray(observation["robot0_eef_pos"], float),
            float(np.arctan2(forward[1], forward[0])),
            float(np.ptp(observation["robot0_gripper_qpos"])),
            np.asarray(observation["object_pos"], float),
            float(Rotation.from_quat(observation["object_quat"]).as_euler("zyx")[0]),
        )
        place, heading, gripper = self._next(seen)
        down = Rotation.from_euler("z", heading) * Rotation.from_euler("x", np.pi)
        move = np.clip(0.6 * (place - seen.tool), -MOVE, MOVE)
        turn = np.clip(0.5 * (down * here.inv()).as_rotvec(), -TURN, TURN)
        fresh = np.sqrt(1 - CORRELATION**2) * self._rng.standard_normal(6)
        fresh *= np.repeat([MOVE_NOISE, TURN_NOISE], 3)
        self._noise = CORRELATION * self._noise + fresh
        clean = np.concatenate([move, turn, [gripper]])
        return clean, clean + np.append(self._noise, 0.0)

    def _next(self, seen: Seen) -> WayPoint:
        grip = self.grip(seen)
        aside = float(np.linalg.norm((seen.tool - grip)[:2]))
        height = float(seen.tool[2] - grip[2])
        is_there = aside < 0.012 and abs(height) < 0.012
        is_held = self._closed > 0 and aside < 0.03 and abs(height) < 0.03
        self._closed = self._closed + 1 if is_there or is_held else 0
        if self._closed > CLOSING:
            followed = self.carry(seen)
            self._closed = self._closed if followed.gripper == CLOSED else 0
            return followed
        if self.is_done(seen):
            up = 0.1 if seen.gap > RELEASED else 0.0
            return WayPoint(seen.tool + [0.0, 0.0, up], seen.heading, OPEN)
        self._heading = self._gripping(seen)
        if self._closed:
            return WayPoint(grip, self._heading, CLOSED)
        if aside < 0.015 or (aside < 0.025 and height < 0.04):
            return WayPoint(grip, self._heading, OPEN)
        over = self._over if height > 0.03 else 0.08
        return WayPoint(grip + [0.0, 0.0, over], self._heading, OPEN)

    def _gripping(self, seen: Seen) -> float:
        """The heading to grip in, at first the nearest to that of the start, then to itself."""
        if not self.period:
            return AHEAD
        return nearest(seen.yaw + np.pi / 2, self.period, self._heading)

    def grip(self, seen: Seen) -> Vector:
        """Where to grip the thing."""
        return seen.thing

    def carry(self, seen: Seen) -> WayPoint:
        """Where to go with the thing in hand."""
        raise NotImplementedError

    def is_done(self, seen: Seen) -> bool:
        """Whether the thing is where it shall be."""
        return False


def nearest(angle: float, period: float, to: float) -> float:
    """Of the angles a whole number of periods away, the one that is nearest to another."""
    return float(angle - period * np.round((angle - to) / period))


class LiftExpert(Expert):
    """Lifts the cube."""

    def carry(self, seen: Seen) -> WayPoint:
        """Straight up."""
        return WayPoint(seen.thing + [0.0, 0.0, 0.15], self._heading, CLOSED)


class CanExpert(Expert):
    """Puts the can into its part of the other bin, at the corner that is easiest to reach."""

    period = 0.0
    goal = np.array([0.16, 0.345])
    travel, low = 1.03, 0.92
    """Heights of the can, m: over the walls, and where it is let go."""

    def grip(self, seen: Seen) -> Vector:
        """A little above its middle."""
        return seen.thing + [0.0, 0.0, 0.015]

    def carry(self, seen: Seen) -> WayPoint:
        """Up, over the walls, down, open."""
        left = self.goal - seen.thing[:2]
        if np.linalg.norm(left) < 0.03:
            height, gripper = self.low - 0.02, CLOSED if seen.thing[2] > self.low else OPEN
        else:
            height, gripper = self.travel, CLOSED
        is_clear = seen.thing[2] > self.travel - 0.06 or height < self.travel
        way = np.append(left if is_clear else [0.0, 0.0], height - seen.thing[2])
        return WayPoint(seen.tool + way, AHEAD, gripper)

    def is_done(self, seen: Seen) -> bool:
        """Whether it is in that part."""
        return bool(np.all(np.abs(seen.thing[:2] - self.goal) < 0.06)) and seen.thing[2] < 0.95


class SquareExpert(Expert):
    """Puts the square nut over its peg, held by the handle."""

    period = np.pi
    peg = np.array([0.23, 0.1])
    travel, low = 0.985, 0.90
    """Heights of the nut, m: over the peg, and where it is let go."""

    def grip(self, seen: Seen) -> Vector:
        """The handle."""
        along = np.array([np.cos(seen.yaw), np.sin(seen.yaw), 0.0])
        return seen.thing + 0.054 * along

    def carry(self, seen: Seen) -> WayPoint:
        """Up, over the peg and parallel to it, down, open."""
        left = self.peg - seen.thing[:2]
        # The handle to the right, to the robot, to the left; away from it is out of reach.
        yaw = seen.yaw % (2 * np.pi)
        wanted = min((np.pi / 2, np.pi, 3 * np.pi / 2), key=lambda angle: abs(angle - yaw))
        turn = wanted - yaw
        is_over = np.linalg.norm(left) < 0.006 and abs(turn) < 0.08
        is_around = np.linalg.norm(left) < 0.015 and seen.thing[2] < 0.95
        height = self.low - 0.04 if is_over or is_around else self.travel
        is_clear = seen.thing[2] > self.travel - 0.03 or is_around or is_over
        way = np.append(left if is_clear else [0.0, 0.0], height - seen.thing[2])
        gripper = OPEN if is_around and seen.thing[2] < self.low else CLOSED
        return WayPoint(seen.tool + way, seen.heading + turn, gripper)

    def is_done(self, seen: Seen) -> bool:
        """Whether it is around the peg."""
        return bool(np.linalg.norm(self.peg - seen.thing[:2]) < 0.02) and seen.thing[2] < self.low
