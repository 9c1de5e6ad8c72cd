"""The index of a dataset, ``dataset.yaml``: its contract, its shards, and one line an episode.

It alone says what belongs to a dataset, and it is replaced in one step: whoever reads finds the
dataset of before or the one of after.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from diffusion_policy_ros import strict_yaml
from diffusion_policy_ros.errors import UserError

INDEX, SHARDS = "dataset.yaml", "shards"
FORMAT = 2
READABLE = (1, FORMAT)
"""Format 1 has no more of an episode than where it is, what it is of, and its success."""
HELD_OUT, TRAIN = "held_out", "train"
"""What an episode's `split` may say to training; it may have other names for other purposes."""
_LIST = "\nepisodes:\n"
_COUNT = re.compile(r"^# (\d+) episodes$", re.MULTILINE)


@dataclass(frozen=True)
class Episode:
    """A stretch of frames without a gap.

    Attributes:
        source: the name of the recording that it comes from.
        hash: that recording's content.
        shard: the shard that it stands in.
        start: its first row there.
        frames: its length.
        success: what the recorder said of it; None where it said nothing.
        task: what was done, in words; empty where nobody said.
        tags: words to choose it by.
        split: "train" and "held_out" decide for it; with any other name training chooses.
        weight: how often its windows are drawn, beside those of others.
        dropped: left out of everything, until it is kept again or compacted away.
    """

    source: str
    hash: str
    shard: str
    start: int = dataclasses.field(metadata={"min": 0})
    frames: int = dataclasses.field(metadata={"min": 1})
    success: bool | None = None
    task: str = ""
    tags: tuple[str, ...] = ()
    split: str = ""
    weight: float = dataclasses.field(default=1.0, metadata={"min": 0.0, "max": 1e6})
    dropped: bool = False

    @property
    def line(self) -> str:
        """JSON, without what is as usual."""
        return json.dumps({name: getattr(self, name) for name in _FIELDS if self._tells(name)})

    def _tells(self, name: str) -> bool:
        return bool(getattr(self, name) != _FIELDS[name].default)


_FIELDS = {field.name: field for field in dataclasses.fields(Episode)}


@dataclass(frozen=True)
class Index:
    """What ``dataset.yaml`` says.

    Attributes:
        format: version of this layout.
        contract: the contract's text.
        contract_hash: what that text meant when it was written.
        shards: name → rows.
        episodes: in the order of conversion, those that were dropped among them.
    """

    format: int
    contract: str
    contract_hash: str
    shards: dict[str, int]
    episodes: tuple[Episode, ...]

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read a dataset's index.

        Raises:
            UserError: there is none, or it has mistakes.
        """
        path = folder / INDEX
        try:
            text = path.read_text(encoding="utf-8")
        except PermissionError:
            raise UserError("may not be read", str(path), "change its permissions") from None
        except (OSError, UnicodeDecodeError):
            what = "is no dataset" if folder.exists() else "no such dataset"
            cure = "make one: diffusion-policy convert --contract C BAG... --out DATASET"
            raise UserError(what, str(folder), cure) from None
        index = cls._parse(text.replace('\n- {"bag": ', '\n- {"source": '), str(path))
        said = _COUNT.search(text)
        if said and int(said[1]) != len(index.episodes):
            what = f"is damaged: {len(index.episodes)} of its {said[1]} episodes are there"
            raise UserError(what, str(path), "copy the dataset again, or convert the bags again")
        if index.format not in READABLE:
            cure = "convert the bags again, or update the package"
            raise UserError(f"has format {index.format}, known is {FORMAT}", str(path), cure)
        for e in index.episodes:
            if e.start + e.frames > index.shards.get(e.shard, 0):
                cure = "copy the dataset again, or convert the bags again"
                raise UserError(f"the episode of {e.source} is not in its shard", str(path), cure)
        return index

    @classmethod
    def _parse(cls, text: str, where: str) -> Index:
        """Lines of JSON are read as such, which is a hundred times faster than as YAML."""
        head, _, lines = text.partition(_LIST)
        try:
            episodes = tuple(_episode(line) for line in lines.splitlines())
        except (ValueError, TypeError, KeyError, RecursionError):
            return strict_yaml.parse(cls, text, where)
        if not episodes:
            return strict_yaml.parse(cls, text, where)
        return replace(strict_yaml.parse(cls, f"{head}\nepisodes: []\n", where), episodes=episodes)

    def save(self, folder: Path) -> None:
        """Replace a dataset's index in one step."""
        draft = folder / f".{INDEX}"
        with draft.open("w", encoding="utf-8") as file:
            file.write(self._text())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / INDEX)
        sync_folder(folder)

    def _text(self) -> str:
        head = {
            "format": FORMAT,
            "contract_hash": self.contract_hash,
            "contract": _Block(self.contract),
            "shards": self.shards,
        }
        text = yaml.dump(head, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        # JSON is YAML: one line an episode.
        lines = (f"- {episode.line}\n" for episode in self.episodes)
        # A comment, which older versions skip: a file that was cut off at a line's end is told.
        text = f"{text}# {len(self.episodes)} episodes\n"
        return f"{text}episodes:\n{''.join(lines)}" if self.episodes else f"{text}episodes: []\n"


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where its file system knows how."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _episode(line: str) -> Episode:
    """An episode of a line as it is written here; raises where anything is otherwise."""
    values = json.loads(line.removeprefix("- "))
    for name, value in values.items():
        expect(name, value)
    return Episode(**{**values, "tags": tuple(values.get("tags", ()))})


_KINDS: Mapping[str, tuple[type, ...]] = {
    "start": (int,),
    "frames": (int,),
    "success": (bool, type(None)),
    "tags": (list,),
    "weight": (float, int),
    "dropped": (bool,),
}


_LIMITS = {
    name: (field.metadata["min"], field.metadata.get("max", math.inf))
    for name, field in _FIELDS.items()
    if field.metadata
}


def expect(name: str, value: Any) -> None:
    """Check a value of an episode's line as JSON has it.

    Raises:
        ValueError: it is of another kind, or out of its range.
        KeyError: an episode has nothing of that name.
    """
    if name not in _FIELDS:
        raise KeyError(name)
    fits = type(value) in _KINDS.get(name, (str,))
    if fits and name in _LIMITS:
        fits = _LIMITS[name][0] <= value <= _LIMITS[name][1]
    if fits and name == "tags":
        fits = all(type(tag) is str for tag in value)
    if not fits:
        raise ValueError(name)


class _Block(str):
    """Text that is written as a block, line by line."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)
