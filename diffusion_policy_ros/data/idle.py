"""Rest in a recording: where a robot neither moves nor is told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.observe.codecs import Array

POSITION_M, ROTATION_RAD, JOINT = 2e-3, 1e-2, 5e-3
"""What counts as motion, from the pose at rest: m, rad, and rad or m of a joint."""
VELOCITIES = ("twist", "joint_velocity")
"""Kinds of actions that rest at zero, and not at what was told first or last."""
KEPT_IDLE_FRAMES = 2
"""Frames of rest that are kept at either end, so that starting and stopping can be learned."""


class Idle(NamedTuple):
    """Frames of rest at the ends of a segment."""

    start: int
    end: int


def idle_ends(contract: Contract, states: dict[str, Array], actions: Array) -> Idle:
    """How many frames at either end of a segment show no motion, beyond those that are kept.

    A frame is at rest when neither the arm has left its first (or last) pose nor the action asks
    for motion. The arm's pose is what the action's parts name as their ``state``; all vectors
    where none is named.

    Args:
        contract: the robot.
        states: observation key → (n, size) of vectors.
        actions: (n, Da).
    """
    moving = _acting(contract, actions)
    at_start, at_end = moving.copy(), moving.copy()
    for values, limit, turns in _signals(contract, states, actions):
        at_start |= _distance(values, 0, turns) > limit
        at_end |= _distance(values, -1, turns) > limit
    if not at_start.any() or not at_end.any():
        return Idle(len(actions), 0)
    start, end = int(at_start.argmax()), int(at_end[::-1].argmax())
    return Idle(max(0, start - KEPT_IDLE_FRAMES), max(0, end - KEPT_IDLE_FRAMES))


def departures(
    contract: Contract, states: dict[str, Array], actions: Array, frames: int
) -> list[int]:
    """The frames at which it sets out after having rested, and from which on it moves.

    Args:
        contract: the robot.
        states: observation key → (n, size) of vectors.
        actions: (n, Da).
        frames: how long a rest is at least.
    """
    if len(actions) <= frames:
        return []
    still = ~sliding_window_view(_acting(contract, actions), frames).any(axis=1)
    for values, limit, turns in _signals(contract, states, actions):
        seen = sliding_window_view(_of_one_sign(values) if turns else values, frames, axis=0)
        still &= np.ptp(seen, axis=-1).max(axis=1) <= limit
    rests = np.convolve(still, np.ones(frames, int)) > 0
    ends = np.flatnonzero(rests[:-1] & ~rests[1:]) + 1
    begun = int(rests.argmin())  # before that it has not moved at all
    return [max(0, int(end) - KEPT_IDLE_FRAMES) for end in ends if end > begun]


def _acting(contract: Contract, actions: Array) -> NDArray[np.bool_]:
    """Which frames' deltas and velocities ask for motion."""
    moving = np.zeros(len(actions), bool)
    limits = {"delta_position": POSITION_M / 2, "delta_axis_angle": ROTATION_RAD / 2}
    limits |= dict.fromkeys(VELOCITIES, ROTATION_RAD)
    for part in contract.action.fields:
        limit = limits.get(part.kind)
        if limit:
            moving |= np.linalg.norm(actions[:, contract.action.slices[part.name]], axis=1) > limit
    return moving


def _signals(
    contract: Contract, states: dict[str, Array], actions: Array
) -> Iterator[tuple[Array, float, bool]]:
    """Absolute actions and poses, (n, size), the least change that counts as motion, and whether
    they are quaternions.
    """
    for part in contract.action.fields:
        if not part.is_delta and part.kind not in VELOCITIES:
            limits = {"binary": 0.5, "position": POSITION_M, "joint_position": JOINT}
            values = _unwrapped(part.wrap, actions[:, contract.action.slices[part.name]])
            yield values, limits.get(part.kind, ROTATION_RAD), part.kind == "quaternion"
    wraps = {part.state: part.wrap for part in contract.action.fields if part.state}
    for key in wraps or states:
        quantity = contract.observations[key].quantity
        limits = {"orientation": ROTATION_RAD, "position": POSITION_M}
        turns = quantity == "orientation" and states[key].shape[1] == 4
        yield _unwrapped(wraps.get(key, False), states[key]), limits.get(quantity, JOINT), turns


def _unwrapped(wrap: bool | tuple[bool, ...], values: Array) -> Array:
    """Continuous joints without leaps from π to −π."""
    return np.where(wrap, np.unwrap(values, axis=0), values)


def _distance(values: Array, place: int, turns: bool) -> Array:
    """Largest difference of a component; about the angle of quaternions, whatever their sign."""
    reference = values[place]
    distance = np.abs(values - reference).max(axis=1)
    if turns:
        distance = 2 * np.minimum(distance, np.abs(values + reference).max(axis=1))
    return np.asarray(distance)


def _of_one_sign(values: Array) -> Array:
    """Quaternions that do not change to their negative from row to row, as rotations' size."""
    turned = (values[1:] * values[:-1]).sum(axis=1) < 0
    signs = np.cumprod(np.where(turned, -1.0, 1.0))
    return np.asarray(2 * values * np.concatenate([[1.0], signs])[:, None])
