"""Which episodes are learned from and which are held out, by whole demonstrations.

A recording that a gap has cut into episodes is never on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.index import HELD_OUT, TRAIN, Episode
from diffusion_policy_ros.data.selection import select
from diffusion_policy_ros.data.shards import STAMP
from diffusion_policy_ros.errors import UserError


@dataclass(frozen=True)
class Split:
    """Numbers of a dataset's episodes.

    Attributes:
        training: those that are learned from, in order.
        held_out: those that are validated on.
        fingerprints: of the episodes and what is done with them; whoever goes on with a training
            must find the same. The first is of now: of each episode that is used its recording,
            and what for. The others are what older versions noted.
        roles: hash of each recording -> "trained" or "held out".
        failed: how many are left out because the recorder said that they failed.
        left_out: how many were not chosen.
    """

    training: list[int]
    held_out: list[int]
    fingerprints: tuple[str, ...]
    roles: dict[str, str]
    failed: int = 0
    left_out: int = 0


def split(
    dataset: Dataset,
    where: Sequence[str],
    weights: Sequence[float],
    held_out_share: float,
    random: np.random.Generator,
    include_failed: bool = False,
    tells_tasks: bool = False,
) -> Split:
    """Choose episodes, and hold some demonstrations out.

    As the episodes' own split says, else by chance; and only by the split where that holds some
    out.

    Args:
        dataset: of one folder or several.
        where: of each folder, which episodes; see selection.py.
        weights: of each episode, which the fingerprint tells.
        held_out_share: of the demonstrations; of two or more at least one, unless it is 0.
        random: decides which.
        include_failed: learn from what the recorder marked as failed, too.
        tells_tasks: whether the policy is told the episodes' tasks, which the fingerprint tells.

    Raises:
        UserError: nothing is left to learn from.
    """
    chosen = _chosen(dataset, where)
    groups = _demonstrations(dataset, chosen, include_failed)
    held = _held_out(dataset, groups, held_out_share, random)
    training = [place for place in range(len(groups)) if place not in held]
    learned, kept_out = sorted(_members(groups, training)), sorted(_members(groups, held))
    rows = np.array([dataset.first_row(number) for number in range(len(dataset.episodes))])
    stamps: list[int] = dataset.rows[STAMP].take(rows).tolist()
    now = [
        [role, e.hash, stamps[n], e.frames, weights[n], e.task if tells_tasks else ""]
        for role, numbers in (("trained", learned), ("held out", kept_out))
        for n, e in ((n, dataset.episodes[n]) for n in numbers)
    ]
    former = (
        _former(dataset.episodes, begins, groups, held, weights, where)
        for begins in (stamps, [e.start for e in dataset.episodes])
    )
    hashes = [dataset.episodes[group[0]].hash for group in groups]
    return Split(
        learned,
        kept_out,
        tuple(map(_digest, (now, *former))),
        {h: "held out" if place in held else "trained" for place, h in enumerate(hashes)},
        len(chosen) - sum(map(len, groups)),
        len(dataset.episodes) - len(chosen),
    )


def _members(groups: Sequence[Sequence[int]], places: Iterable[int]) -> list[int]:
    return [number for place in places for number in groups[place]]


def _chosen(dataset: Dataset, where: Sequence[str]) -> list[int]:
    """The episodes that the conditions of each folder choose."""
    found: list[int] = []
    for place, conditions in enumerate(where):
        mine = [n for n, origin in enumerate(dataset.origin) if origin == place]
        episodes = [dataset.episodes[n] for n in mine]
        found += [mine[i] for i in select(episodes, conditions, str(dataset.paths[place]))]
    return found


def _demonstrations(
    dataset: Dataset, chosen: Sequence[int], include_failed: bool
) -> list[list[int]]:
    """The numbers of each recording's episodes, those that failed left out."""
    found: dict[str, list[int]] = {}
    for number in chosen:
        episode = dataset.episodes[number]
        if include_failed or episode.success is not False:
            found.setdefault(episode.hash, []).append(number)
    if not found:
        what = f"all {len(chosen)} episodes are marked as failed"
        cure = "record some that succeed, or set training.include_failed=true"
        raise UserError(what, str(dataset.path), cure)
    return list(found.values())


def _held_out(
    dataset: Dataset, groups: Sequence[Sequence[int]], share: float, random: np.random.Generator
) -> list[int]:
    """Which groups are held out; in the order in which they were drawn."""
    said = [{dataset.episodes[number].split for number in group} for group in groups]
    held = [place for place, splits in enumerate(said) if HELD_OUT in splits]
    if len(held) == len(groups):
        what = "all episodes that were chosen are held out"
        raise UserError(what, str(dataset.path), "diffusion-policy data split DATASET train")
    if held:
        return held
    free = [place for place, splits in enumerate(said) if TRAIN not in splits]
    order = random.permutation(len(free)).tolist()
    count = max(round(share * len(groups)), 1) if share > 0 else 0
    return [free[place] for place in order[: min(count, len(groups) - 1)]]


def _digest(seen: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _former(
    episodes: Sequence[Episode],
    begins: Sequence[int],
    groups: Sequence[Sequence[int]],
    held: Sequence[int],
    weights: Sequence[float],
    where: Sequence[str],
) -> list[Any]:
    """What older versions noted: the episodes, and how many of them are used."""
    used = sum(map(len, groups))
    pairs = zip(episodes, begins, strict=True)
    seen: list[Any] = [[e.source, e.hash, begin, e.frames] for e, begin in pairs]
    cut = sorted(held) if used > len(groups) else []
    if cut or used < len(episodes):
        seen.append([used, *cut])
    if any(where) or any(e.split in (HELD_OUT, TRAIN) for e in episodes):
        seen.append(
            ["held out", _members(groups, held), "of", _members(groups, range(len(groups)))]
        )
    if any(weight != 1 for weight in weights):
        seen.append(["weights", *weights])
    return seen
