"""What formats give and take: columns, demonstrations, options."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from diffusion_policy_ros.atomic import is_over
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.selection import select
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array


@dataclass(frozen=True)
class Column:
    """An array of a foreign dataset, of which each frame has a row.

    Attributes:
        shape: of a row: (n,), or (height, width, channels) as far as it is told.
        is_image: whether it is a picture.
        names: its elements' names, where there are any.
    """

    shape: tuple[int, ...]
    is_image: bool = False
    names: tuple[str, ...] = ()


@dataclass
class Demonstration:
    """One demonstration, in a foreign dataset's columns.

    Attributes:
        vectors: name → (frames, n).
        images: name → its pictures one by one: uint8 (height, width, channels), or the bytes of a
            jpeg or png.
        task: what was to be done, in words.
        success: whether it was; None where nothing says so.
    """

    vectors: dict[str, Array]
    images: dict[str, Iterable[Array | bytes]] = field(default_factory=dict)
    task: str = ""
    success: bool | None = None


class Foreign(Protocol):
    """An open dataset of another project, in its own columns.

    Attributes:
        where: its path.
        names: its episodes' names, in order.
        columns: name → column.
        rate_hz: frames a second; None where nothing says so.
        contract: the contract's text, where it was exported from a dataset of ours: its values
            then are in SI units and actions are the contract's own.
    """

    where: str
    names: Sequence[str]
    columns: Mapping[str, Column]
    rate_hz: float | None
    contract: str

    def read(self, name: str, columns: Collection[str]) -> Demonstration:
        """Some columns of an episode.

        Raises:
            UserError: it is damaged. So may its images raise.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """Which demonstrations are meant.

    Attributes:
        episodes: their numbers; all where empty.
        tasks: their tasks; any where empty.
        mask: the part of a robomimic file.
    """

    episodes: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    mask: str = ""


@dataclass(frozen=True)
class Writing:
    """How a dataset is exported.

    Attributes:
        video: av1 or h264; images where empty.
        jobs: processes.
        stamps: whether the frames' true times are kept as a feature of their own.
        task: what was done, of episodes that do not say so.
        where: conditions on episodes; see `data.selection`.
    """

    video: str = ""
    jobs: int = 1
    stamps: bool = False
    task: str = ""
    where: str = ""

    def chosen(self, dataset: Dataset) -> list[int]:
        """The numbers of the episodes that are exported.

        Raises:
            UserError: none fits, or a condition cannot be understood.
        """
        return select(dataset.episodes, self.where, str(dataset.path))


@dataclass
class Written:
    """What an export wrote.

    Attributes:
        out: the file or folder.
        episodes: how many.
        frames: in all.
        images: encoded pictures, read back and counted.
        notes: what a user should know.
    """

    out: Path
    episodes: int
    frames: int
    images: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """What there is, in lines."""
        images = f", {self.images} pictures read back and counted" if self.images else ""
        lines = [f"{self.out} holds {self.episodes} episodes, {self.frames} frames{images}"]
        return "\n".join([*lines, *self.notes])


def refuse_existing(out: Path) -> None:
    """Never write over anything.

    Raises:
        UserError: there is something, or no folder for it.
    """
    if out.exists():
        raise UserError("exists already", str(out), "choose another path with --out")
    if not out.parent.is_dir():
        raise UserError("is not there", str(out.parent), "make the folder first")


@contextmanager
def built_beside(out: Path, kind: str = "") -> Iterator[Path]:
    """Gives a hidden path beside ``out`` to write to and then to rename; it is gone afterwards.

    What was left by exports to the same name that were killed goes before.
    """
    stem = f".{out.name}{kind}.part-"
    for path in out.parent.iterdir():
        if path.name.startswith(stem) and is_over(path.name.removeprefix(stem)):
            _remove(path)
    building = out.with_name(f"{stem}{os.getpid()}")
    try:
        yield building
    finally:
        _remove(building)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
