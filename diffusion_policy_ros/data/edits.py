"""What is said of a dataset's episodes, changed: tags, tasks, splits, weights, what is dropped.

Only lines of the index change, in one step; frames stay where they are until `compact`. What each
edit changed is noted before it in ``edits.jsonl``, so that it can be undone, even after more bags
were converted.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.atomic import replacing
from diffusion_policy_ros.data.index import Episode, Index, expect
from diffusion_policy_ros.data.selection import select
from diffusion_policy_ros.data.store import exclusive
from diffusion_policy_ros.errors import UserError

EDITS = "edits.jsonl"
Change = Callable[[Episode], Episode]


def edit(
    folder: Path, said: str, choose: Callable[[], Sequence[int]], change: Change
) -> tuple[int, int]:
    """Change some episodes' lines.

    Args:
        folder: the dataset.
        said: the edit in words, for `undo`.
        choose: gives the lines of the index that are meant, while nobody else writes into it.
        change: gives the new line.

    Returns:
        How many differ now, of how many that were chosen.

    Raises:
        UserError: another process writes into the dataset, or nothing was chosen.
    """
    with exclusive(folder):
        index, numbers = Index.load(folder), choose()
        episodes = list(index.episodes)
        for number in numbers:
            episodes[number] = change(episodes[number])
        before = [
            [old.shard, old.start, _changes(new, old)]
            for new, old in zip(episodes, index.episodes, strict=True)
            if new != old
        ]
        if before:
            _note(folder / EDITS, {"said": said, "before": before})
            replace(index, episodes=tuple(episodes)).save(folder)
    return len(before), len(numbers)


def undo(folder: Path) -> str:
    """Take the last edit back; returns what it was.

    Raises:
        UserError: there is none.
    """
    with exclusive(folder):
        index = Index.load(folder)
        edits = _noted(folder / EDITS)
        noted = edits[-1]["before"] if edits else []
        before = {(shard, at): _restored(values) for shard, at, values in noted}
        # A compaction that was killed at its end leaves notes of lines that are no more.
        if not any((e.shard, e.start) in before for e in index.episodes):
            cure = "a compaction ends edits"
            raise UserError("there is nothing to undo", str(folder), cure)
        episodes = (replace(e, **before.get((e.shard, e.start), {})) for e in index.episodes)
        replace(index, episodes=tuple(episodes)).save(folder)
        _rewrite(folder / EDITS, edits[:-1])
    return str(edits[-1]["said"])


def chosen(
    folder: Path, where: str = "", numbers: Sequence[int] = (), dropped: bool | None = False
) -> list[int]:
    """Lines of the index that are meant.

    Args:
        folder: the dataset.
        where: conditions, see `selection`.
        numbers: of these only; all by default.
        dropped: of those that are dropped, or not; None for both.

    Raises:
        UserError: there are none, or no such line.
    """
    episodes = Index.load(folder).episodes
    wrong = [n for n in numbers if not 0 <= n < len(episodes)]
    if wrong:
        cure = f"choose from 0 to {len(episodes) - 1}"
        raise UserError(f"has no episode {wrong[0]}", str(folder), cure)
    among = [n for n in numbers or range(len(episodes)) if dropped in (None, episodes[n].dropped)]
    if not among:
        what = "none of the episodes is dropped" if dropped else "all of the episodes are dropped"
        cure = f"diffusion-policy data list --dropped {shlex.quote(str(folder))}"
        raise UserError(what, str(folder), cure)
    return [among[i] for i in select([episodes[n] for n in among], where, str(folder))]


def share_of(folder: Path, numbers: Sequence[int], share: float, seed: int) -> list[int]:
    """A share of the recordings among some episodes, drawn by the seed; at least one of two.

    All episodes of a recording go together.
    """
    episodes = Index.load(folder).episodes
    groups: dict[str, list[int]] = {}
    for number in numbers:
        groups.setdefault(episodes[number].hash, []).append(number)
    count = min(max(round(share * len(groups)), 1), max(len(groups) - 1, 1))
    order = np.random.default_rng(seed).permutation(len(groups))[:count].tolist()
    parts = list(groups.values())
    return sorted(number for place in order for number in parts[place])


def _changes(new: Episode, old: Episode) -> dict[str, Any]:
    """What the old line said where the new one says something else."""
    before, after = asdict(old), asdict(new)
    return {name: before[name] for name in before if before[name] != after[name]}


def _restored(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def _note(path: Path, line: dict[str, Any]) -> None:
    _rewrite(path, [*_noted(path), line])


def _rewrite(path: Path, edits: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in edits)
        file.flush()
        os.fsync(file.fileno())


def _noted(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        lines = [""]
    try:
        return [_line(line) for line in lines]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("is damaged", str(path), "remove it: nothing can be undone then") from None


def _line(text: str) -> dict[str, Any]:
    """An edit as `edit` notes it; raises where it is anything else."""
    found = json.loads(text)
    said, before = str(found["said"]), []
    for shard, start, values in found["before"]:
        for name, value in values.items():
            expect(name, value)
        before.append([str(shard), int(start), dict(values)])
    return {"said": said, "before": before}


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags as they are given, each once.

    Raises:
        UserError: one could not be chosen by.
    """
    for tag in tags:
        checked_text(tag)
        if tag != tag.strip() or not tag or set(tag) & set(",=<>!*?[]"):
            raise UserError(f"'{tag}' is no tag", "data tag", "use letters, digits, '_', '-'")
    return tuple(dict.fromkeys(tags))


def checked_text(text: str) -> str:
    """What is to be said of an episode.

    Raises:
        UserError: it holds bytes that are no text, which nobody could write down.
    """
    if text.encode(errors="replace").decode() != text:
        raise UserError(f"'{text}' is no text", "data", "write it in UTF-8")
    return text
