"""What a LeRobot dataset says of itself: info.json, tasks, episodes, statistics, a note."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_policy_ros import __version__
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.data.formats.lerobot_layout import NOTE, OWN
from diffusion_policy_ros.data.formats.lerobot_statistics import (
    Pixels,
    Statistics,
    of_all,
    of_rows,
)
from diffusion_policy_ros.data.formats.matching import SUCCESS
from diffusion_policy_ros.data.formats.naming import (
    action_names,
    camera_names,
    meaning,
    observed_names,
)
from diffusion_policy_ros.data.formats.video import CODECS
from diffusion_policy_ros.data.shards import ACTION, STAMP
from diffusion_policy_ros.observe.codecs import Array

CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200
"""Files in a folder, and the largest ones, as LeRobot has them."""
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
STATE, CAMERA = "observation.state", "observation.images."


@dataclass(frozen=True)
class Stretch:
    """Frames that follow each other: an episode there.

    Attributes:
        number: its episode_index.
        row: its first row in the dataset, and `frames` more.
        frames: its length.
        index: its first frame's place among all.
        task: a key of the tasks.
        success: whether it solved it.
    """

    number: int
    row: int
    frames: int
    index: int
    task: int
    success: bool | None


@dataclass(frozen=True)
class Plan:
    """What is written, as a process is told.

    Attributes:
        dataset: its folder.
        root: where to.
        fps: frames a second.
        codec: a key of CODECS; pictures as such where it is empty.
        stamps: whether true times are kept.
        success: whether all episodes say if they succeeded.
        threads: that an encoder may use.
    """

    dataset: Path
    root: Path
    fps: int
    codec: str
    stamps: bool
    success: bool
    threads: int


@dataclass
class Part:
    """A part that is written: for each of its stretches the vectors, and pixels counted.

    Attributes:
        vectors: feature → (frames, n) of each stretch.
        pixels: camera → of each stretch.
        images: pictures that were written.
    """

    vectors: dict[str, list[Array]] = field(default_factory=dict)
    pixels: dict[str, list[Pixels]] = field(default_factory=dict)
    images: int = 0


def is_video(contract: Contract, key: str) -> bool:
    """Whether a camera may become a video: of depth a codec would make other distances."""
    stream = contract.observations[key]
    return stream.is_image and not stream.is_depth


def cameras(contract: Contract) -> list[str]:
    """The keys of its pictures."""
    return [key for key, stream in contract.observations.items() if stream.is_image]


def features(contract: Contract, plan: Plan) -> dict[str, dict[str, Any]]:
    """The features of ``info.json``."""
    found: dict[str, dict[str, Any]] = {}
    for key in cameras(contract):
        height, width, _ = contract.observations[key].shape
        video = bool(plan.codec) and is_video(contract, key)
        feature: dict[str, Any] = {
            "dtype": "video" if video else "image",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
        if video:
            feature["info"] = _video_info(plan, height, width)
        found[camera_names(contract)[key]] = feature
    names = [name for own in observed_names(contract).values() for name in own]
    if names:
        found[STATE] = {"dtype": "float32", "shape": [len(names)], "names": names}
    told = [name for own in action_names(contract).values() for name in own]
    found[ACTION] = {"dtype": "float32", "shape": [len(told)], "names": told}
    single: dict[str, str] = {}
    if plan.success:
        single[SUCCESS] = "bool"
    if plan.stamps:
        single[STAMP] = "int64"
    single |= {name: "float32" if name == "timestamp" else "int64" for name in OWN}
    return found | {n: {"dtype": d, "shape": [1], "names": None} for n, d in single.items()}


def _video_info(plan: Plan, height: int, width: int) -> dict[str, Any]:
    name = {"av1": "av1", "h264": "h264"}[plan.codec]
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": name,
        "video.pix_fmt": "yuv420p",
        "video.fps": plan.fps,
        "video.channels": 3,
        "has_audio": False,
        "is_depth_map": False,
        "video.g": int(CODECS[plan.codec][1]["g"]),
        "video.crf": int(CODECS[plan.codec][1]["crf"]),
    }


def schema_of(contract: Contract, plan: Plan) -> Any:
    """The parquet files' columns, with what the ``datasets`` library notes of them."""
    arrow = needed("pyarrow", "lerobot")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    fields: list[Any] = []
    noted: dict[str, Any] = {}
    for name, feature in features(contract, plan).items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            fields.append(arrow.field(name, image))
            noted[name] = {"_type": "Image"}
            continue
        kind = getattr(arrow, {"bool": "bool_"}.get(feature["dtype"], feature["dtype"]))()
        note: dict[str, Any] = {"dtype": feature["dtype"], "_type": "Value"}
        size = feature["shape"][0]
        if size > 1:
            kind = arrow.list_(kind, size)
            note = {"feature": note, "length": size, "_type": "List"}
        fields.append(arrow.field(name, kind))
        noted[name] = note
    metadata = {"huggingface": json.dumps({"info": {"features": noted}})}
    return arrow.schema(fields, metadata=metadata)


def write_meta(
    plan: Plan,
    contract: Contract,
    tasks: Sequence[str],
    groups: Sequence[Sequence[Stretch]],
    parts: Sequence[Part],
) -> None:
    """info.json, tasks, episodes and statistics, and a note for people."""
    meta = plan.root / "meta"
    (meta / "episodes" / "chunk-000").mkdir(parents=True)
    _write_tasks(meta / "tasks.parquet", tasks)
    _write_episodes(
        meta / "episodes/chunk-000/file-000.parquet", plan, tasks, groups, parts, contract
    )
    vectors = {key: [v for part in parts for v in part.vectors[key]] for key in parts[0].vectors}
    pixels = {
        camera_names(contract)[key]: [p for part in parts for p in part.pixels[key]]
        for key in parts[0].pixels
    }
    (meta / "stats.json").write_text(json.dumps(of_all(vectors, pixels), indent=4), "utf-8")
    stretches = [stretch for group in groups for stretch in group]
    info = {
        "codebase_version": "v3.0",
        "robot_type": contract.name,
        "total_episodes": len(stretches),
        "total_frames": sum(stretch.frames for stretch in stretches),
        "total_tasks": len(tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": plan.fps,
        "splits": {"train": f"0:{len(stretches)}"},
        "data_path": DATA,
        "video_path": VIDEO if plan.codec and cameras(contract) else None,
        "features": features(contract, plan),
    }
    note = {
        "version": __version__,
        "action": [meaning(contract, part) for part in contract.action.fields],
        "contract": contract.text,
    }
    (plan.root / NOTE).write_text(json.dumps(note, indent=4), "utf-8")
    (meta / "info.json").write_text(json.dumps(info, indent=4), "utf-8")
    (plan.root / "README.md").write_text("\n".join(_card(contract, plan)) + "\n", "utf-8")


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """With pandas' note that ``task`` is the index: LeRobot tells wrong tasks without."""
    parquet, arrow = needed("pyarrow.parquet", "lerobot"), needed("pyarrow", "lerobot")
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    number = {"pandas_type": "int64", "numpy_type": "int64"}
    note = {
        "index_columns": ["task"],
        "column_indexes": [
            {"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}
        ],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number, "metadata": None},
            {"name": "task", "field_name": "task", **text, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": arrow.__version__},
        "pandas_version": "2.2.0",
    }
    table = arrow.table(
        {"task_index": arrow.array(range(len(tasks)), arrow.int64()), "task": list(tasks)}
    )
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(note)}), path)


def _write_episodes(
    path: Path,
    plan: Plan,
    tasks: Sequence[str],
    groups: Sequence[Sequence[Stretch]],
    parts: Sequence[Part],
    contract: Contract,
) -> None:
    """A row an episode: where its frames and pictures are, and its statistics."""
    parquet, arrow = needed("pyarrow.parquet", "lerobot"), needed("pyarrow", "lerobot")
    videos = [k for k in cameras(contract) if plan.codec and is_video(contract, k)]
    rows = []
    for number, (group, part) in enumerate(zip(groups, parts, strict=True)):
        place = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
        shown = 0
        for i, stretch in enumerate(group):
            row: dict[str, Any] = {
                "episode_index": stretch.number,
                "tasks": [tasks[stretch.task]],
                "length": stretch.frames,
                **{f"data/{key}": value for key, value in place.items()},
                "dataset_from_index": stretch.index,
                "dataset_to_index": stretch.index + stretch.frames,
            }
            for key in videos:
                name = f"videos/{camera_names(contract)[key]}"
                row |= {f"{name}/{k}": value for k, value in place.items()}
                row[f"{name}/from_timestamp"] = shown / plan.fps
                row[f"{name}/to_timestamp"] = (shown + stretch.frames) / plan.fps
            shown += stretch.frames
            row |= _episode_statistics(contract, part, i)
            rows.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def _episode_statistics(contract: Contract, part: Part, i: int) -> dict[str, Any]:
    told: dict[str, Statistics] = {
        camera_names(contract)[key]: pixels[i].statistics() for key, pixels in part.pixels.items()
    }
    told |= {key: of_rows(values[i]) for key, values in part.vectors.items()}
    return {f"stats/{key}/{n}": v for key, found in told.items() for n, v in found.items()}


def _card(contract: Contract, plan: Plan) -> Iterator[str]:
    """The dataset's README: what its numbers mean."""
    yield from ("---", "tags:", "- LeRobot", "- robotics", "configs:", "- config_name: default")
    yield from ("  data_files: data/*/*.parquet", "---", "", f"# {contract.name}", "")
    yield f"Recorded at {plan.fps} Hz; LeRobot v3.0, by diffusion_policy_ros {__version__}."
    yield "All numbers are in SI units; quaternions are x y z w; deltas of rotations are rotation"
    yield "vectors in the frame named, multiplied from the left."
    yield from ("", "| action | kind | meaning | frame | unit |", "|---|---|---|---|---|")
    names = action_names(contract)
    for part in contract.action.fields:
        told = meaning(contract, part)
        listed = ", ".join(names[part.name])
        cells = (listed, *(told[key] for key in ("kind", "meaning", "frame", "unit")))
        yield f"| {' | '.join(cells)} |"
    observed = observed_names(contract)
    if observed:
        yield from ("", "| observation.state | measures |", "|---|---|")
    for key, own in observed.items():
        yield f"| {', '.join(own)} | {contract.observations[key].quantity or key} |"
