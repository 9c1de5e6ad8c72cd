"""What is odd about recorded numbers: command against state, component by component.

A command and the state that follows it move alike. Where a command agrees with another component
of the state than its own, with its own turned round, or with another size, then names, signs or
units are not what the contract says; all of these train without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffusion_policy_ros.contract import ActionField, Contract
from diffusion_policy_ros.data.actions import COMPARABLE, far_turns, followed
from diffusion_policy_ros.observe.codecs import Array

LATEST = 5
"""Frames by which the state may follow its command."""
ALIKE, UNLIKE = 0.8, 0.5
"""Correlation above which two components move alike, and below which they do not."""
FRAMES = 20
"""Frames below which nothing is said."""
STILL = 1e-6
"""Motion that is none."""
TIMES, ABOUT = 8.0, 0.2
"""Factor by which sizes of one unit do not differ, and share within which a unit is recognised."""
UNITS = {57.296: "degrees for rad", 1000.0: "mm for m", 100.0: "cm for m"}
FARTHEST = {"position": 20.0, "joint_position": 8 * np.pi}
"""Quantity → m or rad beyond which it looks like another unit."""


class Comparison:
    """Collects the frames of a recording.

    Args:
        contract: says which state measures which part of the action.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._told: list[Array] = []
        self._done: list[Array] = []
        self._states: list[Mapping[str, Array]] = []

    def add(self, states: Mapping[str, Array], actions: Array) -> None:
        """Take frames that follow each other; there may be none, where all of them were left out.

        Args:
            states: observation key → (n, size) of vectors.
            actions: (n, Da).
        """
        if not len(actions):
            return
        self._states.append(states)
        self._told.append(actions)

    def remarks(self) -> Iterator[str]:
        """What looks permuted, turned round, or of other units, one line each."""
        yield from self._ranges()
        yield from self._turns()
        if not self.contract.action.commands:
            return
        for part in self.contract.action.fields:
            if part.state and part.kind in COMPARABLE:
                yield from self._compared(part)

    def _ranges(self) -> Iterator[str]:
        grippers = {part.state for part in self.contract.action.of_role("scalar", "binary")}
        for key, stream in self.contract.observations.items():
            # What a gripper's driver tells may be in any unit.
            farthest = None if key in grippers else FARTHEST.get(stream.quantity)
            found = [np.abs(states[key]).max() for states in self._states if key in states]
            if farthest and found and max(found) > farthest:
                units = "mm" if stream.quantity == "position" else "degrees"
                yield f"{key} reaches {max(found):.4g}: are these {units}? give scale:"

    def _turns(self) -> Iterator[str]:
        for key, stream in self.contract.observations.items():
            if stream.quantity == "orientation":
                yield from far_turns(key, "quaternion", [s[key] for s in self._states if key in s])
        for part in self.contract.action.of_role("rotation"):
            if not part.is_delta:
                place = self.contract.action.slices[part.name]
                yield from far_turns(part.name, part.kind, [told[:, place] for told in self._told])

    def _compared(self, part: ActionField) -> Iterator[str]:
        place = self.contract.action.slices[part.name]
        pairs = [
            (told[:-1, place], followed(part, states[part.state]))
            for told, states in zip(self._told, self._states, strict=True)
            if len(told) > LATEST
        ]
        if sum(len(told) for told, _ in pairs) < FRAMES:
            return
        names = self.contract.action_names[place]
        likeness = _likeness(pairs)
        told, done = (np.concatenate(values) for values in zip(*pairs, strict=True))
        for i, name in enumerate(names):
            best = int(np.abs(likeness[i]).argmax())
            if best != i and abs(likeness[i, best]) > ALIKE and abs(likeness[i, i]) < UNLIKE:
                other = f"moves as {part.state} does in {names[best]}, not in its own place"
                yield f"the command of {name} {other}: is the order right?"
            elif likeness[i, i] < -ALIKE:
                yield f"the command of {name} moves against {part.state}: is its sign right?"
            elif likeness[i, i] > ALIKE:
                said = _sizes(self.contract, part, name, told[:, i], done[:, i])
                yield from [said] if said else []


def _likeness(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """(k, k) correlation of each told component with each done, at the lag where they agree."""
    found = [_correlation(pairs, lag) for lag in range(LATEST)]
    return max(found, key=lambda likeness: float(np.abs(likeness).max(axis=1).sum()))


def _correlation(pairs: Sequence[tuple[Array, Array]], lag: int) -> Array:
    told = np.concatenate([_centred(told[: len(told) - lag]) for told, _ in pairs])
    done = np.concatenate([_centred(done[lag:]) for _, done in pairs])
    sizes = np.outer(np.linalg.norm(told, axis=0), np.linalg.norm(done, axis=0))
    return np.asarray(
        np.divide(told.T @ done, sizes, where=sizes > STILL, out=np.zeros_like(sizes))
    )


def _centred(values: Array) -> Array:
    return np.asarray(values - values.mean(axis=0), dtype=np.float64)


def _sizes(contract: Contract, part: ActionField, name: str, told: Array, done: Array) -> str:
    """That what was told and done are not in the same unit; empty where they are."""
    ratio = float(told.std() / max(done.std(), STILL))
    if 1 / TIMES < ratio < TIMES:
        return ""
    per_frame = {contract.rate_hz: "a second for a frame"} if part.is_delta else {}
    large = {**UNITS, **per_frame}
    known = {**large, **{1 / size: f"{said}, in the state" for size, said in large.items()}}
    near = min(known, key=lambda size: abs(np.log(ratio / size)))
    said = f", as {known[near]} would be" if abs(np.log(ratio / near)) < ABOUT else ""
    return f"the command of {name} is {ratio:.3g} times what {part.state} does{said}: give scale:"
