"""A demonstrator of PushT: straight pushes, each the best of many that are tried in a copy.

From the pose of the T, a push begins at each of some places around it, square to the edge or
aslant. The copy of the physics says where each leads after every step, and the one that brings the
corners nearest to the outline's is done: around the T, to the edge, on. Then it looks again.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.sim.simulator import Observation, SetPoint, Vector

MM = 1e-3
RADIUS, CLEAR = 15.0, 4.0
"""Of the disc, and how far off the edge it begins to push; pixels, as all below."""
AROUND, TRAVEL = 105.0, 30.0
"""Radius of the way around the T, and how far a step of it leads."""
LONGEST = 14
"""Steps of a push."""
SLANTS = (-0.6, -0.3, 0.0, 0.3, 0.6)
MIDDLE = np.array([0.0, 45.0])
CORNERS = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float
)
GOAL = np.array([256.0, 256.0, np.pi / 4])
Pose = NDArray[np.float64]


def placed(points: Vector, pose: Pose) -> Vector:
    """Points (n, 2) of the T in the plane, of its pose (x, y, angle)."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    found: Vector = points @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]
    return found


def error(pose: Pose) -> float:
    """How far its corners are from where they shall be, on average."""
    ways = placed(CORNERS, pose) - placed(CORNERS, GOAL)
    return float(np.linalg.norm(ways, axis=1).mean())


def _edges() -> tuple[Vector, Vector]:
    """Places (n, 2) around the T, every 10 pixels of its edges, and the way in from each."""
    places, ways = [], []
    for one, other in zip(CORNERS, np.roll(CORNERS, -1, axis=0), strict=True):
        length = float(np.linalg.norm(other - one))
        along = (other - one) / length
        for part in np.linspace(0, length, max(3, round(length / 10)))[1:-1]:
            places.append(one + part * along)
            ways.append([-along[1], along[0]])
    return np.array(places), np.array(ways)


def _speeds(env: Any) -> list[list[float]]:
    """The disc's, from rest, in each tick of each step of a push that leads a pixel a step.

    Nothing slows it, so all pushes are this one, longer or shorter.
    """
    place, speed, found = 0.0, 0.0, []
    for there in range(1, LONGEST + 1):
        found.append(list[float]())
        for _ in range(round(1 / (env.dt * env.control_hz))):
            speed += (env.k_p * (there - place) - env.k_v * speed) * env.dt
            place += speed * env.dt
            found[-1].append(speed)
    return found


class Planner:
    """The demonstrator of an episode.

    Args:
        copy: an environment of gym-pusht's, for it alone, to try pushes in.
        seed: of the noise that is executed and not recorded.
    """

    def __init__(self, copy: Any, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._copy = copy
        self._speeds = _speeds(self._copy)
        self._pushes = [*product(zip(*_edges(), strict=True), SLANTS)]
        self._to_do: list[Vector] = []

    def act(self, observation: Observation, told: SetPoint) -> tuple[Vector, Vector]:
        """Where the disc is to be next, m; see `Expert.act`."""
        if not self._to_do:
            pose = np.append(np.asarray(observation["block"]) / MM, observation["angle"])
            self._to_do = self._planned(np.asarray(observation["agent"], float) / MM, pose)
        clean = self._to_do.pop(0) * MM
        return clean, clean + self._rng.normal(0.0, 1.0 * MM, 2)

    def _planned(self, disc: Vector, pose: Pose) -> list[Vector]:
        """The best push, and the way to where it begins."""
        best, found = np.inf, [disc]
        reach = float(np.clip(error(pose) / 4, 2.5, 12.0))
        for (place, way), slant in self._pushes:
            start = placed((place - way * (RADIUS + CLEAR))[None], pose)[0]
            if not np.all((start > 25) & (start < 487)):
                continue
            angle = pose[2] + np.arctan2(way[1], way[0]) + slant
            step = reach * np.array([np.cos(angle), np.sin(angle)])
            errors = self._tried(start, step, pose)
            least = int(np.argmin(errors))
            if errors[least] < best:
                push = [start + step * n for n in range(1, least + 2)]
                best, found = errors[least], [start, start, *push, push[-1]]
        return [*self._around(disc, found[0], pose), *found]

    def _tried(self, start: Vector, step: Vector, pose: Pose) -> list[float]:
        """The error after each step of a push."""
        copy = self._copy
        copy.agent.position = start.tolist()
        copy.block.angle = float(pose[2])  # about its middle: it moves the place, which comes next
        copy.block.position = pose[:2].tolist()
        copy.block.velocity, copy.block.angular_velocity = (0, 0), 0.0
        copy.space.reindex_shapes_for_body(copy.block)
        (x, y), errors = step.tolist(), []
        for speeds in self._speeds:
            for speed in speeds:
                copy.agent.velocity = (x * speed, y * speed)
                copy.space.step(copy.dt)
            errors.append(error(np.array([*copy.block.position, copy.block.angle])))
        return errors

    def _around(self, disc: Vector, start: Vector, pose: Pose) -> list[Vector]:
        """Off the T, around it and in, a step after the other."""
        middle = placed(MIDDLE[None], pose)[0]
        begun, ended = (np.arctan2(*(there - middle)[::-1]) for there in (disc, start))
        turn = (ended - begun + np.pi) % (2 * np.pi) - np.pi
        count = int(np.ceil(abs(turn) * AROUND / TRAVEL)) + 1
        angles = begun + turn * np.arange(count + 1) / count
        arc = middle + AROUND * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return [*np.clip(arc, 20, 492)]
