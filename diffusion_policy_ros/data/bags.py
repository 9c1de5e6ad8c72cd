"""Read and write rosbag2 recordings. With `definitions`, all that knows mcap and rosbags.

with BagWriter("episode_0", {"/eef_pose": POSE_STAMPED}, {"contract": text}) as writer:
    writer.write("/eef_pose", log_ns, serialize(POSE_STAMPED, msg))

for topic, log_ns, msg in open_bag("episode_0").messages():
    ...
"""

from __future__ import annotations

import functools
import heapq
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml
import zstandard

from diffusion_policy_ros import __version__
from diffusion_policy_ros.data.definitions import (
    definition,
    hash_of,
    maker,
    message_types,
    serialize,
)
from diffusion_policy_ros.data.mcap_file import McapFile, Schema
from diffusion_policy_ros.data.sqlite_file import SqliteFile
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.serialized import SerializedMessage

METADATA_FILE = "metadata.yaml"
METADATA_VERSION = 8
"""The last version with QoS as text, which every release reads; 9's list stops older ones."""
OUR_RECORD, ROSBAG2_RECORD = "diffusion_policy_ros", "rosbag2"
"""MCAP metadata records: ours at the front, so a killed recording has it; rosbag2's at the end."""
STORAGE_SUFFIXES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")

_FOREVER = "{sec: 9223372036, nsec: 854775807}"
_QOS = (
    "- {history: 3, depth: 0, reliability: 1, durability: 2, liveliness: 1, "
    f"deadline: {_FOREVER}, lifespan: {_FOREVER}, liveliness_lease_duration: {_FOREVER}, "
    "avoid_ros_namespace_conventions: false}"
)
"""Reliable and volatile, with the numbers that releases before ROS 2 Jazzy understand."""


BROKEN_VALUES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What YAML's own reader raises for values that are not what they look like."""


class Message(NamedTuple):
    """One recorded message; ``msg`` is decoded when it is looked into."""

    topic: str
    log_ns: int
    msg: SerializedMessage


class _Storage(Protocol):
    """One file of a bag."""

    def messages(
        self, channel_ids: Collection[int]
    ) -> Iterator[tuple[int, int, int, memoryview]]: ...


class _Source(NamedTuple):
    """A topic in one storage file."""

    storage: _Storage
    channel_id: int
    topic: str
    type: str
    definition: Schema
    total: int


# Reading


class Bag:
    """A recording that is open for reading.

    Attributes:
        path: where it lies.
        topics: topic → (message type, number of messages).
        defined: message types whose definitions it holds.
        metadata: what its recorder noted, as the contract's text.
        notes: what is odd about it, one line each: cut off, without metadata.
    """

    def __init__(
        self, path: Path, sources: list[_Source], metadata: dict[str, str], notes: list[str]
    ) -> None:
        self.path, self.metadata, self.notes = path, metadata, notes
        self._sources = sources
        self.defined = {source.type for source in sources if source.definition.text}
        counts: Counter[str] = Counter()
        for source in sources:
            counts[source.topic] += source.total
        types = {source.topic: source.type for source in reversed(sources)}
        self.topics = {topic: (types[topic], counts[topic]) for topic in sorted(types)}

    @property
    def remarks(self) -> list[str]:
        """What its recorder found odd, such as two nodes that commanded."""
        said = self.metadata.get("remarks", "")
        return [f"noted by its recorder: {said}"] if said else []

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Message]:
        """The messages of some topics, of all by default, in order of log time.

        Raises:
            UserError: the bag turned out to be damaged.
        """
        wanted = [s for s in self._sources if topics is None or s.topic in topics]
        storages = list({id(s.storage): s.storage for s in wanted}.values())
        streams = [
            _stream(storage, [s for s in wanted if s.storage is storage]) for storage in storages
        ]
        return (
            heapq.merge(*streams, key=lambda message: message.log_ns)
            if len(streams) > 1
            else _chain(streams)
        )


def _chain(streams: list[Iterator[Message]]) -> Iterator[Message]:
    return streams[0] if streams else iter(())


def _stream(storage: _Storage, sources: list[_Source]) -> Iterator[Message]:
    makers = {s.channel_id: (s.topic, maker(s.type, s.definition)) for s in sources}
    for log_ns, _, channel_id, data in storage.messages(makers):
        topic, make = makers[channel_id]
        # rosbag2's compression by message; CDR begins with a zero.
        if data[:4] == zstandard.FRAME_HEADER:
            data = _unpacked(topic, data)
        yield Message(topic, log_ns, make(data))


def _unpacked(topic: str, data: memoryview) -> memoryview:
    try:
        return memoryview(zstandard.ZstdDecompressor().decompressobj().decompress(data))
    except zstandard.ZstdError:
        what = f"a message of {topic} cannot be decompressed"
        raise UserError(what, "", "the bag is damaged; copy it again, or leave it out") from None


def open_bag(path: str | Path) -> Bag:
    """Open a rosbag2 recording: a directory or an ``.mcap`` or ``.db3`` file, zstd or not.

    A recording that was cut off (its recorder was killed, its disk was full) opens up to its last
    whole message.

    Raises:
        UserError: missing, empty, damaged, or no rosbag2 recording.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            "no such bag", str(path), "give a rosbag2 directory, an .mcap or a .db3 file"
        )
    described = _described(path) if path.is_dir() else {}
    sources: list[_Source] = []
    notes: list[str] = []
    metadata: dict[str, str] = {}
    for file in bag_files(path):
        found, noted, odd = _open_file(file)
        sources += found
        metadata.update(noted)
        notes += odd
    custom = described.get("custom_data")
    if isinstance(custom, dict):
        metadata.update({str(k): v for k, v in custom.items() if isinstance(v, str)})
    if not sum(source.total for source in sources):
        what = (
            "nothing whole was recorded before it was cut off"
            if notes
            else "the bag holds no messages"
        )
        raise UserError(what, str(path), "record it again")
    return Bag(path, sources, metadata, notes)


def bag_files(path: Path) -> list[Path]:
    """The storage files of a bag in order.

    Raises:
        UserError: there are none, or one that the bag's metadata names is missing.
    """
    if not path.is_dir():
        return [path]
    listed = _described(path).get("relative_file_paths")
    names = listed if isinstance(listed, list) else []
    named = [path / Path(name).name for name in names if isinstance(name, str)]
    missing = [file.name for file in named if not file.is_file()]
    if missing:
        raise UserError(f"its file {missing[0]} is missing", str(path), "copy the whole bag")
    files = named or sorted(
        f for f in path.iterdir() if f.name.endswith(STORAGE_SUFFIXES) and f.is_file()
    )
    if files:
        return files
    if list(path.glob("*.bag")):
        raise UserError(
            "this holds a ROS 1 bag",
            str(path),
            "convert it with rosbags-convert --src A.bag --dst B",
        )
    raise UserError(
        "there is no bag in it: no .mcap or .db3 file", str(path), "give a rosbag2 directory"
    )


def is_bag(path: Path) -> bool:
    """Whether a directory is itself a rosbag2 recording, by the files that it holds."""
    return path.is_dir() and any(
        f.name == METADATA_FILE or f.name.endswith(STORAGE_SUFFIXES) for f in path.iterdir()
    )


def _described(path: Path) -> dict[str, Any]:
    """What ``metadata.yaml`` says; nothing where it is missing or unreadable, as after a kill."""
    try:
        found = _loaded((path / METADATA_FILE).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, yaml.YAMLError, *BROKEN_VALUES):
        return {}


@functools.lru_cache(maxsize=1024)  # of a short bag it takes as long as of a tenth of its messages
def _loaded(text: str) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, loader)["rosbag2_bagfile_information"]


def _open_file(file: Path) -> tuple[list[_Source], dict[str, str], list[str]]:
    """A file's topics, what its recorder noted, and what is odd about it."""
    if file.suffix != ".zstd":
        return _open_storage(file, None)
    folder = tempfile.TemporaryDirectory(prefix="bag_")
    try:
        return _open_storage(_inflated(file, Path(folder.name)), folder)
    except UserError as error:  # the user knows the file by its own name
        raise UserError(error.what, str(file), error.cure) from None


def _open_storage(
    file: Path, folder: tempfile.TemporaryDirectory[str] | None
) -> tuple[list[_Source], dict[str, str], list[str]]:
    """The same of a file that is not compressed, in a temporary folder where it was."""
    if file.suffix == ".db3":
        database = SqliteFile(file, folder)
        topics = [(t.id, t.topic, t.type, t.definition, t.total) for t in database.topics]
        return (
            [_Source(database, n, topic, _full(t), d, c) for n, topic, t, d, c in topics],
            {},
            [],
        )
    return _open_mcap(file)


def _open_mcap(file: Path) -> tuple[list[_Source], dict[str, str], list[str]]:
    mcap = McapFile(file)
    sources: list[_Source] = []
    foreign: list[str] = []
    for number, channel in mcap.channels.items():
        if channel.encoding == "cdr" and mcap.profile in ("ros2", ""):
            schema = mcap.schemas.get(channel.schema_id, Schema("", "", ""))
            total = mcap.counts[number]
            sources.append(_Source(mcap, number, channel.topic, _full(schema.name), schema, total))
        else:
            foreign.append(f"{channel.topic} is encoded as '{channel.encoding}'")
    if foreign and not sources:
        what = f"{foreign[0]} in profile '{mcap.profile}'"
        raise UserError(what, str(file), "only ROS 2 recordings can be read")
    cut = (
        f"{file.name} was cut off; read up to its last whole message"
        if mcap.cut_at is not None
        else ""
    )
    aside = [f"{said}: left aside" for said in foreign]
    return sources, mcap.metadata.get(OUR_RECORD, {}), [cut, *aside] if cut else aside


def _full(name: str) -> str:
    """``pkg/msg/Type`` for a type that a writer named ``pkg/Type``."""
    package, _, rest = name.partition("/")
    return name if "/" in rest or not rest else f"{package}/msg/{rest}"


def _inflated(file: Path, folder: Path) -> Path:
    target = folder / file.stem
    try:
        with file.open("rb") as packed, target.open("wb") as unpacked:
            zstandard.ZstdDecompressor().copy_stream(packed, unpacked)
    except zstandard.ZstdError:
        raise UserError(
            "cannot be decompressed", str(file), "copy it again, or leave it out"
        ) from None
    return target


# Writing


class BagWriter:
    """Writes one recording: a rosbag2 directory with one MCAP file.

    Each message is on its way to the disk when `write` returns, in a chunk of its own: a process
    that is killed at any moment leaves every message that was written, and every reader finds an
    index when it was not.

    Args:
        path: the directory to make.
        topics: topic → message type.
        metadata: what to note in it, as the contract's text; stands at the front.

    Attributes:
        counts: topic → number of messages written.

    Raises:
        UserError: the directory exists, or a type is not known.
    """

    def __init__(
        self,
        path: str | Path,
        topics: Mapping[str, str],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        from mcap.writer import CompressionType, Writer

        self.path, self.topics = Path(path), dict(topics)
        definitions = {t: definition(t) for t in sorted(set(self.topics.values()))}
        self.metadata = dict(metadata or {})
        self.counts = dict.fromkeys(self.topics, 0)
        self._start_ns, self._end_ns = 0, 0
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(
                "there is something already", str(self.path), "choose another name"
            ) from None
        self._file = (self.path / f"{self.path.name}_0.mcap").open("xb")
        self._writer = Writer(self._file, chunk_size=0, compression=CompressionType.NONE)
        self._writer.start(profile="ros2", library=f"diffusion_policy_ros {__version__}")
        schemas = {
            t: self._writer.register_schema(t, "ros2msg", text) for t, text in definitions.items()
        }
        self._channels = {
            topic: self._writer.register_channel(
                topic, "cdr", schemas[t], {"offered_qos_profiles": _QOS}
            )
            for topic, t in self.topics.items()
        }
        if self.metadata:
            self._writer.add_metadata(OUR_RECORD, self.metadata)
        self._file.flush()

    def write(self, topic: str, log_ns: int, data: bytes, publish_ns: int | None = None) -> None:
        """Add a message.

        Args:
            topic: one of the topics.
            log_ns: when it arrived, by the recorder's clock.
            data: CDR with its encapsulation, as a raw subscription gives it.
            publish_ns: when it was published, where that is known.
        """
        publish_ns = log_ns if publish_ns is None else publish_ns
        self._writer.add_message(
            self._channels[topic], log_ns, data, publish_ns, self.counts[topic]
        )
        self._file.flush()
        self._start_ns = min(self._start_ns, log_ns) if any(self.counts.values()) else log_ns
        self._end_ns = max(self._end_ns, log_ns)
        self.counts[topic] += 1

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        """Finish the recording.

        Args:
            metadata: what is only known now, as ``success``; added to what was noted at the start.
        """
        if self._file.closed:
            return
        if metadata:
            self.metadata.update(metadata)
            self._writer.add_metadata(OUR_RECORD, dict(metadata))
        text = yaml.safe_dump(
            self._described(), sort_keys=False, allow_unicode=True, width=1 << 20
        )
        self._writer.add_metadata(ROSBAG2_RECORD, {"serialized_metadata": text})
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        draft = self.path / f".{METADATA_FILE}"
        draft.write_text(
            yaml.safe_dump({"rosbag2_bagfile_information": self._described()}, sort_keys=False),
            "utf-8",
        )
        draft.replace(self.path / METADATA_FILE)

    def discard(self) -> None:
        """Remove the recording."""
        self._file.close()
        shutil.rmtree(self.path)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _described(self) -> dict[str, Any]:
        """What rosbag2 writes into ``metadata.yaml``."""
        name, total = f"{self.path.name}_0.mcap", sum(self.counts.values())
        start = {"nanoseconds_since_epoch": self._start_ns}
        duration = {"nanoseconds": self._end_ns - self._start_ns}
        return {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            "duration": duration,
            "starting_time": start,
            "message_count": total,
            "topics_with_message_count": [self._described_topic(topic) for topic in self.topics],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [name],
            "files": [
                {
                    "path": name,
                    "starting_time": dict(start),
                    "duration": dict(duration),
                    "message_count": total,
                }
            ],
            "custom_data": self.metadata,
            "ros_distro": os.environ.get("ROS_DISTRO", ""),
        }

    def _described_topic(self, topic: str) -> dict[str, Any]:
        described = {
            "name": topic,
            "type": self.topics[topic],
            "serialization_format": "cdr",
            "offered_qos_profiles": _QOS,
            "type_description_hash": hash_of(self.topics[topic]),
        }
        return {"topic_metadata": described, "message_count": self.counts[topic]}


__all__ = [
    "Bag",
    "BagWriter",
    "Message",
    "bag_files",
    "is_bag",
    "message_types",
    "open_bag",
    "serialize",
]
