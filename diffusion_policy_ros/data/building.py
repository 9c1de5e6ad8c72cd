"""What all conversions into a dataset share: the folder held alone, nothing half-written.

New frames are written into shards of their own beside the old ones; when all are whole they are
renamed into place, and then ``dataset.yaml`` is replaced. Whatever interrupts this leaves the old
dataset or the new one; what it left behind goes with the next conversion.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import FORMAT, INDEX, SHARDS, Episode, Index
from diffusion_policy_ros.errors import UserError

MAX_SHARDS = 16
"""Shards of one conversion, however many bags and processes: few files, and the same result."""
BUILDING, LOCK = ".building-", ".lock"


@dataclass
class BagReport:
    """What became of one bag.

    Attributes:
        bag: its path.
        status: kept, rejected, or present: the dataset has it already.
        hash: its content.
        reason: why it was rejected.
        episodes: (first row in its shard, frames) of each.
        frames: frames that the bag gave, before idle ends were trimmed.
        trimmed: idle frames left out, at starts and ends.
        refused: why frames were refused or had no action → how many.
        gaps: how often frames did not follow each other.
        resets: why history was dropped, in order.
        notes: what is odd about the bag.
        success: what the recorder said.
        shard: the shard that its frames are in.
        shard_rows: rows of that shard after this bag.
    """

    bag: str
    status: Literal["kept", "rejected", "present"] = "rejected"
    hash: str = ""
    reason: str = ""
    episodes: list[tuple[int, int]] = field(default_factory=list)
    frames: int = 0
    trimmed: tuple[int, int] = (0, 0)
    refused: dict[str, int] = field(default_factory=dict)
    gaps: int = 0
    resets: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    success: bool | None = None
    shard: str = ""
    shard_rows: int = 0

    def lines(self) -> Iterator[str]:
        """Say it in one line, and one more for each thing that was odd."""
        name = Path(self.bag).name
        if self.status == "present":
            yield f"present   {name}: already in the dataset"
            return
        if self.status == "rejected":
            yield f"rejected  {name}: {self.reason}"
        else:
            kept = sum(frames for _, frames in self.episodes)
            idle = f", {sum(self.trimmed)} idle frames trimmed" if any(self.trimmed) else ""
            plural = "" if len(self.episodes) == 1 else "s"
            yield f"kept      {name}: {kept} frames in {len(self.episodes)} episode{plural}{idle}"
        yield from (f"          {note}" for note in self.notes)
        yield from (f"          {reset}" for reset in self.resets)
        if self.gaps:
            yield f"          {self.gaps} gap{'s' * (self.gaps > 1)} without frames"
        for reason, count in self.refused.items():
            yield f"          {count} frame{'s' * (count > 1)} refused: {reason}"


@dataclass
class Report:
    """What became of a conversion.

    Attributes:
        dataset: the folder.
        bags: one report a bag, in the order of the bags.
        episodes: episodes in the dataset, those from before included.
        frames: their frames.
    """

    dataset: Path
    bags: list[BagReport]
    episodes: int
    frames: int


Progress = Callable[[BagReport, int, int], None]
"""Called with each finished bag's report, how many are finished, and how many there are."""


@contextmanager
def exclusive(out: Path) -> Iterator[Path]:
    """Hold a dataset's folder alone; gives a folder to build in, which is gone afterwards.

    Raises:
        UserError: the folder holds something else, or another conversion holds it.
    """
    _refuse_foreign(out)
    is_new = not out.exists()
    try:
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", str(out), "choose another folder"
        ) from None
    building = out / f"{BUILDING}{uuid.uuid4().hex[:8]}"
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "another conversion writes into it", str(out), "wait until it has ended"
            ) from None
        try:
            for leftover in out.glob(f"{BUILDING}*"):
                shutil.rmtree(leftover)
            yield building
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            cure = "make room, or choose another folder with --out"
            raise UserError("the disk is full", str(out), cure) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
            if is_new and not (out / INDEX).exists():
                shutil.rmtree(out, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    """Nothing is written into a folder that holds anything but a dataset."""
    if not out.exists() or (out / INDEX).is_file():
        return
    ours = (LOCK, SHARDS, f".{INDEX}")
    foreign = not out.is_dir() or [
        p for p in out.iterdir() if p.name not in ours and not p.name.startswith(BUILDING)
    ]
    if foreign or (any(out.iterdir()) and not (out / LOCK).exists()):
        raise UserError(
            "there is something else already", str(out), "choose another folder with --out"
        )


def index_of(out: Path, contract: Contract) -> Index:
    """The dataset as it is, without shards that an interruption left behind.

    Raises:
        UserError: it is damaged, or another robot's.
    """
    index = Index(FORMAT, contract.text, contract.hash, {}, ())
    if (out / INDEX).exists():
        index = Index.load(out)
        theirs = Contract.from_text(index.contract, str(out / INDEX))
        if theirs.hash != contract.hash:
            what = f"was made with another contract; they differ in {theirs.difference(contract)}"
            raise UserError(
                what, str(out), "choose another folder with --out, or the dataset's contract"
            )
    for shard in (out / SHARDS).iterdir():
        if shard.name not in index.shards:
            shutil.rmtree(shard)
    return index


def with_reports(index: Index, reports: list[BagReport]) -> Index:
    """The index with what was kept."""
    kept = [report for report in reports if report.status == "kept"]
    shards = {
        name: max(r.shard_rows for r in kept if r.shard == name)
        for name in {r.shard: 0 for r in kept}
    }
    episodes = [
        Episode(Path(report.bag).name, report.hash, report.shard, start, frames, report.success)
        for report in kept
        for start, frames in report.episodes
    ]
    return replace(index, shards={**index.shards, **shards}, episodes=(*index.episodes, *episodes))


def commit(out: Path, building: Path, index: Index) -> None:
    """Rename new shards into place, then replace the index: from then on it is the new dataset."""
    for shard in building.iterdir():
        if shard.name in index.shards:
            shard.rename(out / SHARDS / shard.name)
    index.save(out)


def fail_empty(reports: list[BagReport]) -> None:
    """Nothing was kept, and the dataset would be empty.

    Raises:
        UserError: always, with the first bag's reason.
    """
    first, more = reports[0], len(reports) - 1
    others = f"; {more} more bag{'s were' if more > 1 else ' was'} rejected" if more else ""
    raise UserError(f"{first.reason}{others}", first.bag)
