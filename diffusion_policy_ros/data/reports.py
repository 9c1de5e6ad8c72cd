"""What became of recordings on their way into a dataset: told to people and noted in its index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from diffusion_policy_ros.data.index import Episode, Index
from diffusion_policy_ros.errors import UserError


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
        task: what was done, in words.
        tags: words to choose it by.
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
    task: str = ""
    tags: tuple[str, ...] = ()
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


def report_of(out: Path, reports: list[BagReport], index: Index) -> Report:
    """Of a dataset as it is after a conversion."""
    return Report(out, reports, len(index.episodes), sum(e.frames for e in index.episodes))


def with_reports(index: Index, reports: list[BagReport]) -> Index:
    """The index with what was kept."""
    kept = [report for report in reports if report.status == "kept"]
    shards = {
        name: max(r.shard_rows for r in kept if r.shard == name)
        for name in {r.shard: 0 for r in kept}
    }
    episodes = [
        Episode(
            Path(report.bag).name,
            report.hash,
            report.shard,
            start,
            frames,
            report.success,
            report.task,
            report.tags,
        )
        for report in kept
        for start, frames in report.episodes
    ]
    return replace(index, shards={**index.shards, **shards}, episodes=(*index.episodes, *episodes))


def fail_empty(reports: list[BagReport]) -> None:
    """Nothing was kept, and the dataset would be empty.

    Raises:
        UserError: always, with the first bag's reason.
    """
    first, more = reports[0], len(reports) - 1
    others = f"; {more} more bag{'s were' if more > 1 else ' was'} rejected" if more else ""
    raise UserError(f"{first.reason}{others}", first.bag)
