"""How a new chunk joins the ones before it: averaged with them, or sampled so that it agrees.

Robot and closed-loop evaluation use the same class. What two chunks say of the same *time* is put
side by side, never what stands at the same place in them. For a contract of deltas that is how far
to move in that frame: the commanded pose itself has no jump, for it is their sum.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy_ros.contract import ROTATION_KINDS, ActionField, Contract
from diffusion_policy_ros.policy.following import KINDS, Follow
from diffusion_policy_ros.policy.rotations import FROM_QUATERNION, TO_QUATERNION, mean_quaternion
from diffusion_policy_ros.runtime.spaces import Wrapped
from diffusion_policy_ros.runtime.tail import Chunk

JOINS = ("replace", "temporal_ensemble", *KINDS)
DECAY = 0.01
"""m of temporal ensembling: the chunk before weighs exp(-m) of the one before that."""

Array = NDArray[np.float64]


class Joiner:
    """Knows what was predicted in one run of frames; after a break there has to be a new one.

    Args:
        contract: tells the parts of an action.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._predicted: list[Chunk] = []
        self._plan: Chunk | None = None

    def follow(self, join: str, time_ns: int, first: int, delay_frames: int) -> Follow | None:
        """What the next chunk has to agree with; None where it is free.

        Args:
            join: of JOINS.
            time_ns: its newest frame's time.
            first: which of its actions belongs to that frame; there are observed ones before.
            delay_frames: frames until it arrives: so many are executed as planned before.
        """
        if join not in KINDS or self._plan is None:
            return None
        steps = len(self._plan.actions)
        start_ns = time_ns - first * self._contract.period_ns
        planned = self._plan.actions[_frames_between(self._plan, start_ns) :]
        if len(planned) <= first:
            return None
        weights = follow_weights(steps, first, len(planned), delay_frames)
        actions = np.zeros_like(self._plan.actions)
        actions[: len(planned)] = planned
        return Follow(torch.from_numpy(actions)[None].float(), torch.from_numpy(weights), join)

    def join(self, join: str, predicted: Chunk, fixed: int) -> Array:
        """The actions to publish of all that was predicted, (H, Da).

        Args:
            join: of JOINS.
            predicted: all H actions, from the oldest observed frame on.
            fixed: so many of them will have been executed, as planned before, when they arrive.
        """
        start_ns = predicted.stamp_ns
        before = [chunk for chunk in self._predicted if chunk.end_ns > start_ns]
        self._predicted = [*before, predicted]
        joined = predicted.actions
        if join == "temporal_ensemble":
            joined = ensemble(self._contract, self._predicted)
        plan = joined.copy()
        if self._plan is not None:
            planned = self._plan.actions[_frames_between(self._plan, start_ns) :][: max(fixed, 0)]
            plan[: len(planned)] = planned
        self._plan = Chunk(start_ns, plan, predicted.period_ns)
        return joined


def _frames_between(chunk: Chunk, time_ns: int) -> int:
    """Which of a chunk's actions belongs to a time, at or after its own."""
    return max(round((time_ns - chunk.stamp_ns) / chunk.period_ns), 0)


def follow_weights(steps: int, first: int, known: int, delay_frames: int) -> Array:
    """How much each action is to agree, as in real-time chunking (arXiv 2506.07339, equation 5).

    1 for what will have been executed by the time the chunk arrives; then falling, smoothly, over
    what else the chunk before said; 0 where it said nothing.

    Args:
        steps: H, actions of a chunk.
        first: which of them belongs to the newest observed frame: i = 0.
        known: of how many the chunk before knew.
        delay_frames: d.

    Returns:
        (H,), from 0 to 1.
    """
    i, remaining = np.arange(steps) - first, known - first
    c = (remaining - i) / max(remaining - delay_frames + 1, 1)
    soft = c * np.expm1(c.clip(0, 1)) / np.expm1(1.0)
    return np.where(i >= remaining, 0.0, np.where(i < delay_frames, 1.0, soft))


def ensemble(contract: Contract, chunks: list[Chunk]) -> Array:
    """Temporal ensembling, Zhao et al. 2023 (https://arxiv.org/abs/2304.13705) algorithm 2.

    Of all that was predicted of the same time, the i-th, oldest first, weighs exp(-DECAY i).
    Rotations are averaged as rotations; what is either open or closed is the newest's.

    Args:
        contract: tells the parts of an action.
        chunks: oldest first; of equal length.

    Returns:
        (H, Da) at the newest one's times.
    """
    newest = chunks[-1]
    values = np.zeros((len(chunks), *newest.actions.shape))
    known = np.zeros(values.shape[:2], dtype=bool)
    for row, chunk in enumerate(chunks):
        later = chunk.actions[_frames_between(chunk, newest.stamp_ns) :]
        values[row, : len(later)], known[row, : len(later)] = later, True
    weights = np.exp(-DECAY * (np.cumsum(known, axis=0) - 1)) * known
    weights /= weights.sum(axis=0)
    joined = newest.actions.copy()
    for part in contract.action.fields:
        where = contract.action.slices[part.name]
        joined[:, where] = _average(part, values[..., where], weights)
    return joined


def _average(part: ActionField, values: Array, weights: Array) -> Array:
    """Of values (chunks, H, n) with weights (chunks, H): (H, n)."""
    if part.kind == "binary":
        return values[-1]
    if part.kind not in ROTATION_KINDS:
        if not part.is_delta:  # turns of continuous joints are counted as the newest does
            values = Wrapped(np.broadcast_to(part.wrap, part.size)).near(values[-1], values)
        return np.einsum("ch,chn->hn", weights, values)
    kind = part.kind.removeprefix("delta_")
    # What a chunk does not know is a zero, which is not every kind's rotation.
    told = np.where(weights[..., None] > 0, values, values[-1])
    return FROM_QUATERNION[kind](mean_quaternion(TO_QUATERNION[kind](told), weights))
