"""LeRobot's dataset on disk, v3.0 and v2.1: what its index files say, checked against each other.

v3.0 (https://huggingface.co/docs/lerobot/lerobot-dataset-v3) keeps many episodes in one file, and
where each stands in ``meta/episodes``; v2.1 has a file an episode and its index in JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.errors import UserError

VERSIONS = ("v3.0", "v2.1")
OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every dataset has, which are not the robot's."""
NOTE = "meta/diffusion_policy_ros.json"
"""Where an export of ours says what it is of: LeRobot warns of keys of info.json that it does not
know, and leaves files alone."""
_AGAIN = "get the dataset again"


@dataclass(frozen=True)
class Feature:
    """One feature of ``info.json``.

    Attributes:
        dtype: video, image, or of numbers.
        shape: of a frame's value.
        names: its elements' names, a dict of them flattened; empty where there are none.
        is_depth: whether it is a picture of depth.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    is_depth: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it is a picture."""
        return self.dtype in ("video", "image")


@dataclass(frozen=True)
class Clip:
    """Where an episode's pictures of one camera are: a file, and seconds in it."""

    file: Path
    start_s: float = 0.0


@dataclass
class EpisodeEntry:
    """What the index says of an episode.

    Attributes:
        number: its episode_index.
        frames: its length.
        tasks: what was done in it.
        data: the parquet file with its rows.
        first: its first row's ``index``; None where the index does not say.
        clips: feature → where its pictures are, of video.
    """

    number: int
    frames: int
    tasks: list[str]
    data: Path
    first: int | None = None
    clips: dict[str, Clip] = field(default_factory=dict)


@dataclass
class Layout:
    """A dataset's index.

    Attributes:
        root: its folder.
        version: of its format.
        fps: frames a second.
        features: name → feature.
        tasks: task_index → task.
        episodes: in order.
        contract: the text that an export of ours has noted; else empty.
    """

    root: Path
    version: str
    fps: float
    features: dict[str, Feature]
    tasks: dict[int, str]
    episodes: list[EpisodeEntry]
    contract: str

    @classmethod
    def load(cls, root: Path) -> Layout:
        """Read the index.

        Raises:
            UserError: it is missing, damaged, of another version, or contradicts itself.
        """
        info = _info(root)
        version = _version(info, root)
        where = str(root / "meta" / "info.json")
        fps = info.get("fps")
        if not isinstance(fps, int | float) or isinstance(fps, bool) or not fps > 0:
            raise UserError(f"fps is {fps!r}", where, "write the frames a second that it has")
        features = _features(info, where)
        reader = _episodes_v3 if version == "v3.0" else _episodes_v2
        with damage_named(str(root / "meta")):
            tasks = _tasks(root, version)
            episodes = sorted(reader(root, info, features), key=lambda entry: entry.number)
        _check_counts(info, episodes, where)
        note = _json(root / NOTE) if (root / NOTE).is_file() else {}
        text = str(note.get("contract", ""))
        return cls(root, version, fps, features, tasks, episodes, text)


def _info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.is_file():
        what = "is no LeRobot dataset: it has no meta/info.json"
        raise UserError(what, str(root), "give the folder that holds meta/ and data/")
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError("is cut off, or no JSON", str(path), _AGAIN) from None
    if not isinstance(found, dict):
        raise UserError("says nothing of a dataset", str(path), _AGAIN)
    return found


def _version(info: Mapping[str, Any], root: Path) -> str:
    """Its version.

    Raises:
        UserError: it is not one of `VERSIONS`.
    """
    version = str(info.get("codebase_version"))
    if version in VERSIONS:
        return version
    cure = "update this package, or export the dataset as v3.0"
    if version < "v2.1":
        cure = "convert it with LeRobot's own converters first: to v2.1, or on to v3.0"
    what = f"has codebase_version {version}, known are {' and '.join(VERSIONS)}"
    raise UserError(what, str(root / "meta" / "info.json"), cure)


def _features(info: Mapping[str, Any], where: str) -> dict[str, Feature]:
    found = {}
    told = info.get("features")
    for name, feature in told.items() if isinstance(told, dict) else ():
        try:
            shape = tuple(int(size) for size in feature["shape"])
            more = feature.get("info") or feature.get("video_info") or {}
            depth = bool(more.get("is_depth_map") or more.get("video.is_depth_map"))
            found[str(name)] = Feature(
                str(feature["dtype"]), shape, _names(feature.get("names"), shape), depth
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"the feature {name} says no dtype or shape", where, _AGAIN) from None
    if not found:
        raise UserError("has no features", where, _AGAIN)
    return found


def _names(told: Any, shape: Sequence[int]) -> tuple[str, ...]:
    """A vector's names; a dict's lists in a row. Names of another number are none."""
    if isinstance(told, dict):
        lists = [v if isinstance(v, list) else [v] for v in told.values()]
        told = [name for part in lists for name in part]
    names = tuple(map(str, told)) if isinstance(told, list) else ()
    return (
        names
        if len(shape) == 1 and len(names) == shape[0] and len(set(names)) == len(names)
        else ()
    )


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """What libraries raise over bytes that make no sense, as a user's error.

    Raises:
        UserError: the file is damaged.
    """
    arrow = needed("pyarrow", "lerobot")
    try:
        yield
    except (arrow.ArrowException, ValueError, KeyError, TypeError, IndexError, OverflowError) as e:
        what = f"is damaged ({type(e).__name__}: {str(e)[:80]})"
        raise UserError(what, where, _AGAIN) from None


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A parquet file as a pyarrow table.

    Args:
        path: the file.
        columns: those to read; all by default.

    Raises:
        UserError: it is missing, or has no footer, or lacks a column.
    """
    parquet = needed("pyarrow.parquet", "lerobot")
    arrow = needed("pyarrow", "lerobot")
    try:
        return parquet.read_table(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise UserError("is missing", str(path), _AGAIN) from None
    except (arrow.ArrowException, OSError) as error:
        if "magic bytes" in str(error) or "footer" in str(error) or "file size is" in str(error):
            cure = "call dataset.finalize() where it was recorded, or get the dataset again"
            raise UserError("has no footer: its writing was not ended", str(path), cure) from None
        what = f"cannot be read ({str(error).splitlines()[0][:80]})"
        raise UserError(what, str(path), _AGAIN) from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [dict(json.loads(line)) for line in lines if line.strip()]
    except FileNotFoundError:
        raise UserError("is missing", str(path), _AGAIN) from None
    except (ValueError, TypeError):
        raise UserError("is cut off, or no JSON lines", str(path), _AGAIN) from None


def _tasks(root: Path, version: str) -> dict[int, str]:
    """task_index → task."""
    if version == "v2.1":
        lines = _json_lines(root / "meta" / "tasks.jsonl")
        return {
            int(line.get("task_index", i)): str(line.get("task", ""))
            for i, line in enumerate(lines)
        }
    path = root / "meta" / "tasks.parquet"
    rows = read_parquet(path).to_pydict()
    tasks = rows.get("task", rows.get("__index_level_0__"))
    if tasks is None or "task_index" not in rows:
        raise UserError("has no columns task and task_index", str(path), _AGAIN)
    return {int(i): str(task) for i, task in zip(rows["task_index"], tasks, strict=True)}


def _episodes_v3(
    root: Path, info: Mapping[str, Any], features: Mapping[str, Feature]
) -> list[EpisodeEntry]:
    files = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise UserError("holds no episodes", str(root / "meta" / "episodes"), _AGAIN)
    cameras = [name for name, feature in features.items() if feature.dtype == "video"]
    found = []
    for file in files:
        table = read_parquet(file)
        names = [n for n in table.column_names if not n.startswith("stats/")]
        for row in table.select(names).to_pylist():
            try:
                found.append(_entry(root, info, row, cameras))
            except (KeyError, TypeError, ValueError) as error:
                what = f"says no {error.args[0] if error.args else 'number'} of an episode"
                raise UserError(what, str(file), _AGAIN) from None
    return found


def _entry(
    root: Path, info: Mapping[str, Any], row: Mapping[str, Any], cameras: Sequence[str]
) -> EpisodeEntry:
    def at(template: str, prefix: str, **more: str) -> Path:
        chunk, file = int(row[f"{prefix}/chunk_index"]), int(row[f"{prefix}/file_index"])
        return _inside(
            root, str(info[template]).format(chunk_index=chunk, file_index=file, **more)
        )

    clips = {
        name: Clip(
            at("video_path", f"videos/{name}", video_key=name),
            float(row[f"videos/{name}/from_timestamp"]),
        )
        for name in cameras
    }
    first, frames = int(row["dataset_from_index"]), int(row["length"])
    if int(row["dataset_to_index"]) - first != frames:
        number = row["episode_index"]
        what = (
            f"episode {number} has length {frames}, but rows {first} to {row['dataset_to_index']}"
        )
        raise UserError(what, str(root / "meta" / "episodes"), _AGAIN)
    tasks = [str(task) for task in row.get("tasks") or ()]
    data = at("data_path", "data")
    return EpisodeEntry(int(row["episode_index"]), frames, tasks, data, first, clips)


def _episodes_v2(
    root: Path, info: Mapping[str, Any], features: Mapping[str, Feature]
) -> list[EpisodeEntry]:
    path = root / "meta" / "episodes.jsonl"
    cameras = [name for name, feature in features.items() if feature.dtype == "video"]
    found = []
    for line in _json_lines(path):
        try:
            number = int(line["episode_index"])
            place = {"episode_index": number, "episode_chunk": number // int(info["chunks_size"])}
            data = _inside(root, str(info["data_path"]).format(**place))
            clips = {
                name: Clip(_inside(root, str(info["video_path"]).format(video_key=name, **place)))
                for name in cameras
            }
            tasks = [str(task) for task in line.get("tasks") or ()]
            found.append(EpisodeEntry(number, int(line["length"]), tasks, data, None, clips))
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            what = f"says no {error.args[0] if error.args else 'number'} of an episode"
            raise UserError(what, str(path), _AGAIN) from None
    return found


def _inside(root: Path, name: str) -> Path:
    """A path below the dataset's folder, whatever its index says.

    Raises:
        UserError: it is not.
    """
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"names the file {name}", str(root / "meta" / "info.json"), _AGAIN)
    return path


def _check_counts(info: Mapping[str, Any], episodes: Sequence[EpisodeEntry], where: str) -> None:
    """Index files that disagree are of two recordings, or of one that was not ended."""
    frames = sum(entry.frames for entry in episodes)
    counts = {"total_episodes": len(episodes), "total_frames": frames}
    for key, found in counts.items():
        if info.get(key, found) != found:
            what = f"says {key} {info[key]}, meta/episodes has {found}"
            cure = "call dataset.finalize() where it was recorded, or get the dataset again"
            raise UserError(what, where, cure)
    numbers = [entry.number for entry in episodes]
    if len(set(numbers)) != len(numbers):
        raise UserError("an episode stands twice in meta/episodes", where, _AGAIN)
    if not episodes:
        raise UserError("holds no episodes", where, _AGAIN)
