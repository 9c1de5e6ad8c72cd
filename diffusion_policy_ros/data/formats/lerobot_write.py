"""A dataset of ours as a LeRobot dataset v3.0: files, index, statistics, read back at the end.

The frames go into parts, each a parquet file and a video a camera; a process makes a part as a
whole, and there are the same parts for any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.data.formats.demonstrations import (
    Writing,
    Written,
    built_beside,
    refuse_existing,
)
from diffusion_policy_ros.data.formats.lerobot_meta import (
    CHUNK_FILES,
    DATA,
    DATA_MB,
    STATE,
    VIDEO,
    VIDEO_MB,
    Part,
    Plan,
    Stretch,
    cameras,
    is_video,
    schema_of,
    write_meta,
)
from diffusion_policy_ros.data.formats.lerobot_statistics import Pixels, sampled_frames
from diffusion_policy_ros.data.formats.matched import shape_of
from diffusion_policy_ros.data.formats.matching import SUCCESS
from diffusion_policy_ros.data.formats.naming import camera_names, observed_names
from diffusion_policy_ros.data.formats.png import png
from diffusion_policy_ros.data.formats.video import encode, times_of
from diffusion_policy_ros.data.shards import ACTION, STAMP
from diffusion_policy_ros.data.workers import pool
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

PARTS = 16
"""Parts of a dataset, more only where its files would be too large: work for several processes."""


def write(path: str | Path, out: str | Path, options: Writing) -> Written:
    """Write a dataset.

    Raises:
        UserError: the rate is no integer, a picture's size is odd and it is to be a video, or
            there is something at ``out``. Nothing is left there.
    """
    dataset, out = Dataset(path), Path(out)
    refuse_existing(out)
    fps = check(dataset.contract, options)
    tasks, stretches = _stretches(dataset, options)
    threads = max(1, (os.cpu_count() or 1) // max(1, options.jobs))
    success = all(stretch.success is not None for stretch in stretches)
    with built_beside(out) as building:
        plan = Plan(dataset.path, building, fps, options.video, options.stamps, success, threads)
        groups = _groups(dataset.contract, stretches, plan)
        building.mkdir()
        parts = _run(plan, groups, options.jobs)
        write_meta(plan, dataset.contract, tasks, groups, parts)
        images = _read_back(building, stretches, parts)
        building.rename(out)
    notes = []
    more = len(stretches) - len(options.chosen(dataset))
    if more:
        notes.append(f"{more} gap{'s' * (more > 1)} in time: episodes end there")
    return Written(out, len(stretches), sum(s.frames for s in stretches), images, notes)


def check(contract: Contract, options: Writing) -> int:
    """The frames a second, after all that could fail later.

    Raises:
        UserError: the rate is no integer, a picture's size is odd and it is to be a video, or
            what writes them is not installed.
    """
    needed("pyarrow", "lerobot")
    fps = round(contract.rate_hz)
    if fps != contract.rate_hz or fps < 1:
        near = max(1, fps)
        what = f"LeRobot's fps is a whole number, the dataset's rate is {contract.rate_hz:g} Hz"
        raise UserError(what, "", f"convert the bags with rate_hz: {near}, and export that")
    films = [key for key in cameras(contract) if options.video and is_video(contract, key)]
    for key, stream in ((key, contract.observations[key]) for key in films):
        if stream.shape[0] % 2 or stream.shape[1] % 2:
            what = f"{key} is {stream.shape[1]}x{stream.shape[0]}, and a video's sizes are even"
            raise UserError(what, "", "export it with --images")
    if options.video:
        needed("av", "lerobot")
    return fps


def _stretches(dataset: Dataset, options: Writing) -> tuple[list[str], list[Stretch]]:
    """The tasks, and episodes without a gap in time."""
    tasks: dict[str, int] = {}
    found: list[Stretch] = []
    period, index = dataset.contract.period_ns, 0
    for number in options.chosen(dataset):
        episode = dataset.episodes[number]
        said = episode.task or options.task or dataset.contract.name
        key, first = tasks.setdefault(said, len(tasks)), dataset.first_row(number)
        stamps = dataset.rows[STAMP].take(np.arange(first, first + episode.frames))
        cuts = np.flatnonzero(np.diff(stamps) > 1.5 * period) + 1
        for start, stop in zip([0, *cuts], [*cuts, episode.frames], strict=True):
            frames = int(stop - start)
            found.append(
                Stretch(len(found), first + int(start), frames, index, key, episode.success)
            )
            index += frames
    return list(tasks), found


def _groups(contract: Contract, stretches: Sequence[Stretch], plan: Plan) -> list[list[Stretch]]:
    """Stretches by parts: whole episodes, few enough for the largest file, work for all."""
    images = [s for s in contract.observations.values() if s.is_image]
    row = sum(int(np.prod(s.shape)) for s in images) if not plan.codec else 0
    vectors = sum(s.size for s in contract.observations.values() if not s.is_image)
    most = DATA_MB * 1e6 / (row + 4 * (vectors + contract.action_dim) + 40)
    if plan.codec and images:
        # A hundredth of the pixels and more is what a codec leaves of them.
        most = min(most, 20 * VIDEO_MB * 1e6 / max(int(np.prod(s.shape)) for s in images))
    share = sum(stretch.frames for stretch in stretches) / PARTS
    groups: list[list[Stretch]] = []
    held = 0
    for stretch in stretches:
        if not groups or held >= share or held + stretch.frames > most:
            groups.append([])
            held = 0
        groups[-1].append(stretch)
        held += stretch.frames
    return groups


def _run(plan: Plan, groups: Sequence[Sequence[Stretch]], jobs: int) -> list[Part]:
    """Write all parts, here or in several processes; in order."""
    if min(jobs, len(groups)) <= 1:
        return [_write_part(plan, number, group) for number, group in enumerate(groups)]
    with pool(min(jobs, len(groups))) as workers:
        futures = [workers.submit(_write_part, plan, n, group) for n, group in enumerate(groups)]
        try:
            return [future.result() for future in futures]
        except BrokenExecutor:
            cure = "check the memory; use fewer --jobs"
            raise UserError("a process ended before its work", "", cure) from None
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise


def _file(root: Path, template: str, number: int, **more: str) -> Path:
    place = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
    return root / template.format(**place, **more)


def _write_part(plan: Plan, number: int, stretches: Sequence[Stretch]) -> Part:
    """Write a part's parquet file and videos."""
    dataset, part = Dataset(plan.dataset), Part()
    names = camera_names(dataset.contract)
    films = [k for k in names if plan.codec and is_video(dataset.contract, k)]
    part.pixels = {key: [] for key in names}
    _write_rows(plan, dataset, number, stretches, [k for k in names if k not in films], part)
    for key in films:
        file = _file(plan.root, VIDEO, number, video_key=names[key])
        file.parent.mkdir(parents=True, exist_ok=True)
        pictures = _decoded(dataset, key, stretches, part.pixels[key])
        part.images += encode(file, pictures, plan.fps, plan.codec, plan.threads)
    return part


def _write_rows(
    plan: Plan,
    dataset: Dataset,
    number: int,
    stretches: Sequence[Stretch],
    stored: Sequence[str],
    part: Part,
) -> None:
    """A part's parquet file: a row group an episode."""
    parquet, arrow = needed("pyarrow.parquet", "lerobot"), needed("pyarrow", "lerobot")
    schema, names = schema_of(dataset.contract, plan), camera_names(dataset.contract)
    path = _file(plan.root, DATA, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(path, schema, compression="snappy") as writer:
        for stretch in stretches:
            vectors = _vectors(dataset, stretch, plan)
            columns: dict[str, Any] = {key: _flat(values) for key, values in vectors.items()}
            for key in stored:
                counted = Pixels()
                columns[names[key]] = list(_stored(dataset, key, stretch, counted))
                part.pixels[key].append(counted)
                part.images += stretch.frames
            arrays = [_arrow(columns[told.name], told, arrow) for told in schema]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            for key, values in vectors.items():
                part.vectors.setdefault(key, []).append(values)


def _vectors(dataset: Dataset, stretch: Stretch, plan: Plan) -> dict[str, Array]:
    """Feature → (frames, n), of all but pictures."""
    rows = np.arange(stretch.row, stretch.row + stretch.frames)
    keys = observed_names(dataset.contract)
    found = {}
    if keys:
        found[STATE] = np.concatenate([dataset.rows[key].take(rows) for key in keys], axis=1)
    found[ACTION] = dataset.rows[ACTION].take(rows)
    count = np.arange(stretch.frames)
    if plan.success:
        found[SUCCESS] = (count == stretch.frames - 1) & bool(stretch.success)
    if plan.stamps:
        found[STAMP] = dataset.rows[STAMP].take(rows)
    found["timestamp"] = (count / plan.fps).astype(np.float32)
    found["frame_index"] = count
    found["episode_index"] = np.full(stretch.frames, stretch.number)
    found["index"] = stretch.index + count
    found["task_index"] = np.full(stretch.frames, stretch.task)
    return {key: v if v.ndim == 2 else v[:, None] for key, v in found.items()}


def _flat(values: Array) -> Array:
    return values[:, 0] if values.shape[1] == 1 else values


def _arrow(values: Any, told: Any, arrow: Any) -> Any:
    """A column as an arrow array of its type."""
    if isinstance(values, list):
        return arrow.array(values, type=told.type)
    if values.ndim == 1 and not arrow.types.is_fixed_size_list(told.type):
        return arrow.array(values, type=told.type)
    flat = arrow.array(np.ascontiguousarray(values).reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(flat, told.type.list_size)


def _stored(
    dataset: Dataset, key: str, stretch: Stretch, counted: Pixels
) -> Iterator[dict[str, Any]]:
    """Pictures as LeRobot stores them: those that are files already as they are, others as PNG."""
    rows, sampled = dataset.rows[key], sampled_frames(stretch.frames)
    for frame in range(stretch.frames):
        kept = rows.kept(stretch.row + frame)
        is_file = isinstance(kept, bytes) and bool(shape_of(kept))
        if not is_file or frame in sampled:
            picture = _coloured(rows.take(np.array([stretch.row + frame]))[0])
            if frame in sampled:
                counted.add(picture)
        data = kept if is_file else png(picture)
        kind = "jpg" if data[:2] == b"\xff\xd8" else "png"
        yield {"bytes": data, "path": f"frame-{frame:06d}.{kind}"}


def _coloured(picture: Array) -> Array:
    return picture if picture.shape[2] == 3 else np.repeat(picture, 3, axis=2)


def _decoded(
    dataset: Dataset, key: str, stretches: Sequence[Stretch], counted: list[Pixels]
) -> Iterator[Array]:
    """All pictures of a part, for a video."""
    for stretch in stretches:
        sampled = sampled_frames(stretch.frames)
        pixels = Pixels()
        for frame in range(stretch.frames):
            row = np.array([stretch.row + frame])
            picture = _coloured(dataset.rows[key].take(row)[0])
            if frame in sampled:
                pixels.add(picture)
            yield picture
        counted.append(pixels)


def _read_back(root: Path, stretches: Sequence[Stretch], parts: Sequence[Part]) -> int:
    """Compare index, rows and pictures with what was to be written; pictures that are there.

    Raises:
        UserError: something is not there.
    """
    from diffusion_policy_ros.data.formats.demonstrations import Choice
    from diffusion_policy_ros.data.formats.lerobot import LeRobot

    found = LeRobot(root, Choice())
    vectors = {name for name, column in found.columns.items() if not column.is_image}
    clips: dict[Path, list[float]] = {}
    images = 0
    for name, stretch, entry in zip(found.names, stretches, found.layout.episodes, strict=True):
        read = found.read(name, vectors)
        if len(read.vectors[ACTION]) != stretch.frames or entry.first != stretch.index:
            raise UserError(f"episode {stretch.number} was not written whole", str(root), _DISK)
        for clip in entry.clips.values():
            if clip.file not in clips:
                clips[clip.file] = times_of(clip.file)
            first = round(clip.start_s * found.layout.fps)
            shown = np.array(clips[clip.file][first : first + stretch.frames])
            wanted = clip.start_s + np.arange(stretch.frames) / found.layout.fps
            if len(shown) != len(wanted) or np.abs(shown - wanted).max() > 1e-4:
                what = f"{clip.file.name} lacks pictures of episode {stretch.number}"
                raise UserError(what, str(root), _DISK)
            images += stretch.frames
        stored = sum(c.is_image for c in found.columns.values()) - len(entry.clips)
        images += stretch.frames * stored
    if images != sum(part.images for part in parts):
        raise UserError("not all pictures were written", str(root), _DISK)
    return images


_DISK = "check the disk, and export again"
