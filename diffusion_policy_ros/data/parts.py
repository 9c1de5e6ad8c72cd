"""Recordings that a dataset has in part: converted, or copied, before they were whole.

Such a recording has another fingerprint when it is whole. It is told by two frames of the part,
its first and its middle one, that are in the whole to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.index import SHARDS, Index
from diffusion_policy_ros.data.npy import read_npy
from diffusion_policy_ros.data.shards import columns
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

Parts = dict[str, frozenset[bytes]]
"""Hash of a recording → two frames of it, see `frames_of`."""


def frames_of(arrays: Mapping[str, Array]) -> list[bytes]:
    """Frames' vectors, actions and stamps as bytes: key → (N, ...)."""
    columns = [arrays[key].reshape(len(arrays[key]), -1) for key in sorted(arrays)]
    rows = np.concatenate([np.ascontiguousarray(c).view(np.uint8) for c in columns], axis=1)
    return [row.tobytes() for row in rows]


def parts_of(
    out: Path, index: Index, contract: Contract, names: Collection[str]
) -> dict[str, Parts]:
    """What a dataset has of recordings of these names, but for what was dropped.

    Raises:
        UserError: a shard is damaged.
    """
    vectors = [k for k, c in columns(contract).items() if c.dtype != "|u1"]
    opened: dict[str, dict[str, Array]] = {}
    found: dict[str, Parts] = {}
    for e in index.episodes:
        if e.source not in names or e.dropped:
            continue
        if e.shard not in opened:
            folder, rows = out / SHARDS / e.shard, index.shards[e.shard]
            opened[e.shard] = {
                key: read_npy(folder / f"{key}.npy", columns(contract)[key], rows)
                for key in vectors
            }
        two = [e.start, e.start + e.frames // 2]
        frames = frames_of({key: values[two] for key, values in opened[e.shard].items()})
        found.setdefault(e.source, {}).setdefault(e.hash, frozenset(frames))
    return found


def refuse_grown(written: Sequence[Mapping[str, Array]], parts: Parts) -> None:
    """A recording that a dataset has the beginning of would be in it twice.

    Args:
        written: stretches of it: key → (N, ...).
        parts: what the dataset has of recordings of its name.

    Raises:
        UserError: which recording that is.
    """
    frames = {frame for arrays in written for frame in frames_of(arrays)} if parts else set()
    for known, part in parts.items():
        if part <= frames:
            cure = f"data drop the part with --where hash={known}, and convert again"
            raise UserError("the dataset has a part of it, from before it was whole", "", cure)
