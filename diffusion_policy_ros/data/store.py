"""Writing into a dataset: the folder held alone, nothing half-written.

    with adding("dataset", contract) as new:
        new.add(Recording("demo_0", {"camera": pictures, "position": ..., "action": ...}))
    new.report

New frames are written into shards of their own beside the old ones; when all are whole they are
renamed into place, and then ``dataset.yaml`` is replaced. Whatever interrupts this leaves the old
dataset or the new one; what it left behind goes with the next conversion.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.index import FORMAT, INDEX, SHARDS, Index, sync_folder
from diffusion_policy_ros.data.npy import Column, read_npy
from diffusion_policy_ros.data.pictures import Images, checked
from diffusion_policy_ros.data.reports import (
    BagReport,
    Report,
    fail_empty,
    report_of,
    with_reports,
)
from diffusion_policy_ros.data.shards import ACTION, STAMP, ShardWriter, columns
from diffusion_policy_ros.data.video import check_codec
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

MAX_SHARDS = 16
"""Shards of one conversion, however many bags and processes: few files, and the same result."""
SHARD_FRAMES = 20_000
"""After which an import begins another shard."""
BUILDING, LOCK = ".building-", ".lock"


@contextmanager
def exclusive(out: Path, may_begin: bool = False) -> Iterator[Path]:
    """Hold a dataset's folder alone; gives a folder to build in, which is gone afterwards.

    Args:
        out: the dataset's folder.
        may_begin: whether there need not be a dataset yet.

    Raises:
        UserError: the folder holds something else, or none, or another conversion holds it.
    """
    if not may_begin and not (out / INDEX).is_file():
        Index.load(out)  # says what is missing; who writes reads it again, alone
    _refuse_foreign(out)
    is_new = not out.exists()
    try:
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", str(out), "choose another folder"
        ) from None
    # Where the shards are, which may be a link to another disk.
    building = (out / SHARDS).resolve() / f"{BUILDING}{uuid.uuid4().hex[:8]}"
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another conversion writes into it", str(out), "wait until it has ended"
            ) from None
        except OSError as error:  # file systems of networks
            if is_new:
                shutil.rmtree(out, ignore_errors=True)
            what = f"its file system locks no files ({error.strerror})"
            raise UserError(what, str(out), "choose a folder on another disk") from None
        try:
            for folder in (out, building.parent):  # older versions built in the first
                for leftover in folder.glob(f"{BUILDING}*"):
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
    remove_leftovers(out, index)
    return index


def remove_leftovers(out: Path, index: Index) -> None:
    """Remove shards that an interruption, or a compaction, left behind."""
    for shard in (out / SHARDS).iterdir():
        if shard.name in index.shards or shard.name.startswith(BUILDING):
            continue
        if shard.is_symlink():
            shard.unlink()
        elif shard.is_dir():
            shutil.rmtree(shard)


def spans_of(out: Path, index: Index) -> list[tuple[str, int, int]]:
    """Of each episode, dropped ones among them, its recording and its first and last stamp.

    Raises:
        UserError: a shard is damaged.
    """
    stamps = {
        name: read_npy(out / SHARDS / name / f"{STAMP}.npy", Column("<i8", ()), rows)
        for name, rows in index.shards.items()
    }
    return [
        (e.hash, int(stamps[e.shard][e.start]), int(stamps[e.shard][e.start + e.frames - 1]))
        for e in index.episodes
    ]


def commit(out: Path, building: Path, index: Index) -> None:
    """Rename new shards into place, then replace the index: from then on it is the new dataset.

    All is on the disk before the index names it: what it replaces may be removed after.
    """
    for shard in building.iterdir():
        if shard.name in index.shards:
            sync_folder(shard)
            shard.rename(out / SHARDS / shard.name)
    sync_folder(out / SHARDS)
    index.save(out)


@dataclass(frozen=True)
class Recording:
    """A demonstration without a gap that is added to a dataset.

    Attributes:
        source: its name, or path.
        arrays: key → (N, ...) of each observation and ``action`` (N, Da), float32 in the
            contract's units; ``stamp_ns`` int64 (N,), the contract's rate where it is missing.
            Pictures uint8 (N, H, W, C), or N of them one by one: each (H, W, C), or the bytes of a
            jpeg or png, which are kept.
        success: whether it solved its task; None where nobody said.
        task: what was done, in words.
        tags: words to choose it by.
        hash: of its content, 16 digits; where it is not given computed of vectors, each camera's
            first picture, and the task.
    """

    source: str
    arrays: Mapping[str, Array | Iterable[Array | bytes]]
    success: bool | None = None
    task: str = ""
    tags: tuple[str, ...] = ()
    hash: str = ""


class Adding:
    """Recordings on their way into a dataset.

    Attributes:
        contract: the robot.
        report: what became of them all, once the dataset is written.
    """

    report: Report

    def __init__(self, index: Index, building: Path, contract: Contract, images: Images) -> None:
        self.contract = contract
        self._known = {episode.hash for episode in index.episodes}
        self._building, self._images = building, images
        self._cameras = [k for k, s in contract.observations.items() if s.is_image]
        self._reports: list[BagReport] = []
        self._shard: ShardWriter | None = None
        self._in_shard: list[BagReport] = []

    @property
    def reports(self) -> list[BagReport]:
        """What became of each, so far."""
        return self._reports

    def add(self, recording: Recording) -> BagReport:
        """Add one, unless the dataset has it; one that does not fit the contract is rejected."""
        arrays = dict(recording.arrays)
        found = BagReport(recording.source, success=recording.success)
        found.task, found.tags = recording.task, recording.tags
        self._reports.append(found)
        try:
            frames = self._check(arrays)
            now, former = self._fingerprints(arrays, recording.task)
            found.hash = recording.hash or now
            if self._known & {found.hash, recording.hash or former}:
                found.status = "present"
                return found
            self._write(arrays, frames, found)
        except UserError as error:
            found.reason = str(error)
            return found
        found.status, found.frames = "kept", frames
        self._known.add(found.hash)
        return found

    def reject(self, source: str, reason: str) -> BagReport:
        """Note one that cannot be read."""
        self._reports.append(BagReport(source, reason=reason))
        return self._reports[-1]

    def _check(self, arrays: dict[str, Array | Iterable[Array | bytes]]) -> int:
        """Compare vectors with the contract; how many frames there are."""
        wanted = columns(self.contract)
        actions = arrays.get(ACTION)
        frames = len(actions) if isinstance(actions, np.ndarray) else 0
        times = np.arange(frames, dtype=np.int64) * self.contract.period_ns
        arrays.setdefault(STAMP, times)
        for key in (*wanted, *arrays):
            if key not in arrays or key not in wanted:
                what = "is missing" if key in wanted else "is not in the contract"
                raise UserError(f"{key} {what}")
        if not frames:
            raise UserError("has no actions")
        for key, values in arrays.items():
            if not isinstance(values, np.ndarray):
                continue
            shape, dtype = (frames, *wanted[key].shape), np.dtype(wanted[key].dtype)
            if values.shape != shape or values.dtype != dtype:
                found = f"{key} is {values.dtype} {values.shape}"
                raise UserError(f"{found}, the contract says {dtype} {shape}")
            if dtype.kind == "f" and not np.isfinite(values).all():
                raise UserError(f"{key} is not finite", "", "leave the demonstration out")
        return frames

    def _fingerprints(
        self, arrays: dict[str, Array | Iterable[Array | bytes]], task: str
    ) -> tuple[str, str]:
        """A demonstration's content, and what older versions noted of it, all vectors.

        Of pictures the first is enough; where they are read one by one it is put back.
        """
        digest = hashlib.blake2b(digest_size=8)
        cameras = [key for key in sorted(arrays) if key in self._cameras]
        for key in sorted(arrays.keys() - set(cameras)):
            digest.update(key.encode() + np.ascontiguousarray(arrays[key]).tobytes())
        former = digest.hexdigest()
        for key in cameras:
            pictures = iter(arrays[key])
            first = list(islice(pictures, 1))
            if not isinstance(arrays[key], np.ndarray):
                arrays[key] = chain(first, pictures)
            for picture in first:
                pixels = checked(self.contract.observations[key], picture)
                digest.update(key.encode() + pixels.tobytes())
        digest.update(task.encode())
        return digest.hexdigest(), former

    def _write(
        self, arrays: Mapping[str, Array | Iterable[Array | bytes]], frames: int, found: BagReport
    ) -> None:
        shard = self._open_shard()
        before = shard.begin()
        try:
            for key, values in arrays.items():
                if isinstance(values, np.ndarray):
                    shard.append({key: values})
                    continue
                stream = self.contract.observations[key]
                count = 0
                for picture in values:
                    checked(stream, picture)
                    shard.append({key: [picture]})
                    count += 1
                if count != frames:
                    raise UserError(f"{key} has {count} pictures for {frames} actions")
        except BaseException:
            shard.truncate(before)
            raise
        found.episodes = [(before, frames)]
        self._in_shard.append(found)

    def _open_shard(self) -> ShardWriter:
        if self._shard is not None and self._shard.rows >= SHARD_FRAMES:
            self._close_shard()
        if self._shard is None:
            self._shard = ShardWriter(self._building / "next", self.contract, self._images)
        return self._shard

    def _close_shard(self) -> None:
        """Finish the shard, and name it after what is in it."""
        if self._shard is None:
            return
        self._shard.close()
        name = name_of(found.hash for found in self._in_shard)
        for found in self._in_shard:
            found.shard, found.shard_rows = name, self._shard.rows
        (self._building / "next").rename(self._building / name)
        self._shard, self._in_shard = None, []

    def finish(self, out: Path, index: Index) -> Index:
        """Make all that was added part of the dataset."""
        self._close_shard()
        if any(report.status == "kept" for report in self._reports):
            index = with_reports(index, self._reports)
            commit(out, self._building, index)
        elif not index.episodes:
            fail_empty(self._reports)
        self.report = report_of(out, self._reports, index)
        return index


@contextmanager
def adding(out: str | Path, contract: Contract, images: Images = "auto") -> Iterator[Adding]:
    """Add recordings to a dataset, or make one: all of them at the end, or none after an error.

    Args:
        out: the dataset's folder; made if it is missing.
        contract: the robot.
        images: how pictures are kept that do not come as bytes of a file.

    Raises:
        UserError: the folder holds something else, or another robot's dataset, or the disk is
            full; or nothing was kept and there was nothing before. The dataset is as it was.
    """
    out = Path(out)
    columns(contract)
    check_codec(contract, images)
    with exclusive(out, may_begin=True) as building:
        index = index_of(out, contract)
        new = Adding(index, building, contract, images)
        yield new
        new.finish(out, index)


def name_of(hashes: Iterable[str]) -> str:
    """A shard's, of what is in it."""
    return hashlib.blake2b("".join(hashes).encode(), digest_size=6).hexdigest()
