"""Which episodes are meant: ``success=true, tag=clean, task=pick*, frames>=50``.

Conditions are parted by commas, and all of them must hold. ``=`` and ``!=`` compare text with
``*``, ``?`` and ``[ab]`` as in a shell, or whole; of several tags one must fit.
"""

from __future__ import annotations

import fnmatch
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_policy_ros.data.index import Episode
from diffusion_policy_ros.errors import UserError, did_you_mean

KEYS = ("success", "tag", "task", "source", "hash", "split", "frames", "weight")
_NUMBERS = ("frames", "weight")
_SUCCESS = {"true": True, "false": False, "unknown": None}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*$", re.DOTALL)
_EXAMPLE = "write success=true, tag=clean, task=pick*, source=a*, split=train, frames>=50"


@dataclass(frozen=True)
class Condition:
    """One of a selection's conditions.

    Attributes:
        key: one of KEYS.
        compare: how, such as ">=".
        value: what with: a number, a pattern, or whether it succeeded.
    """

    key: str
    compare: str
    value: Any

    def holds(self, episode: Episode) -> bool:
        """Whether an episode fits."""
        if self.key in _NUMBERS or self.key == "success":
            return bool(_COMPARE[self.compare](getattr(episode, self.key), self.value))
        found = self.names(_texts(self.key, episode))
        return found == (self.compare == "=")

    def names(self, texts: Iterable[str]) -> bool:
        """Whether one of them is meant."""
        return any(text == self.value or fnmatch.fnmatchcase(text, self.value) for text in texts)


def parse(where: str) -> list[Condition]:
    """Read conditions; none of an empty text.

    Raises:
        UserError: one cannot be understood.
    """
    found = [_condition(part) for part in where.split(",") if part.strip()]
    if where and not found:  # all would be meant by what nobody gives for that
        raise UserError(f"'{where}' holds no condition", "where", _EXAMPLE)
    return found


def select(episodes: Sequence[Episode], where: str, place: str) -> list[int]:
    """The numbers of the episodes that fit.

    Args:
        episodes: to choose from.
        where: the conditions.
        place: the dataset, for messages.

    Raises:
        UserError: none fits, or a condition cannot be understood.
    """
    conditions = parse(where)
    for condition in conditions:
        _refuse_unknown(condition, episodes, place)
    found = [n for n, e in enumerate(episodes) if all(c.holds(e) for c in conditions)]
    if not found:
        what = f"none of {len(episodes)} episodes fits '{where}'"
        cure = f"loosen it; diffusion-policy data list {shlex.quote(place)}"
        raise UserError(what, place, cure)
    return found


def _condition(text: str) -> Condition:
    match = _CONDITION.match(text)
    if match is None:
        raise UserError(f"'{text.strip()}' is no condition", "where", _EXAMPLE)
    key, compare, value = match.groups()
    if key not in KEYS:
        raise UserError(f"nothing is known of '{key}'", "where", did_you_mean(key, KEYS))
    if key in _NUMBERS:
        return Condition(key, compare, _number(text, value))
    if compare not in ("=", "!="):
        raise UserError(f"'{text.strip()}'", "where", f"compare {key} with = or !=")
    if key != "success":
        return Condition(key, compare, value)
    if value not in _SUCCESS:
        raise UserError(f"success={value}", "where", f"use {', '.join(_SUCCESS)}")
    return Condition(key, compare, _SUCCESS[value])


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"'{text.strip()}' is no condition", "where", "give a number") from None


def _refuse_unknown(condition: Condition, episodes: Iterable[Episode], place: str) -> None:
    """A tag, task or split that no episode has is misspelt.

    Raises:
        UserError: it names those that there are.
    """
    if condition.key not in ("tag", "task", "split") or not condition.value:
        return
    known = {text for episode in episodes for text in _texts(condition.key, episode)}
    if not condition.names(known):
        cure = did_you_mean(condition.value, sorted(known - {""})) if known - {""} else ""
        what = f"no episode has the {condition.key} '{condition.value}'"
        raise UserError(what, place, cure or "give some: diffusion-policy data tag")


def _texts(key: str, episode: Episode) -> Sequence[str]:
    return (episode.tags or ("",)) if key == "tag" else (getattr(episode, key),)
