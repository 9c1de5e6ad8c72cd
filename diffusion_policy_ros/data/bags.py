"""Read rosbag2 recordings; `bag_writer` writes them.

for topic, log_ns, msg in open_bag("episode_0").messages():
    ...
"""

from __future__ import annotations

import functools
import heapq
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml
import zstandard

from diffusion_policy_ros.data.bag_writer import METADATA_FILE, OUR_RECORD, BagWriter
from diffusion_policy_ros.data.definitions import maker, message_types, serialize
from diffusion_policy_ros.data.mcap_file import McapFile, Schema
from diffusion_policy_ros.data.sqlite_file import SqliteFile
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.serialized import SerializedMessage

STORAGE_SUFFIXES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")

GROWS_S = 60
"""A bag without an end whose file changed more lately is still being recorded."""

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


class Bag:
    """A recording that is open for reading.

    Attributes:
        path: where it lies.
        topics: topic → (message type, number of messages).
        defined: message types whose definitions it holds.
        metadata: what its recorder noted, as the contract's text.
        notes: what is odd about it, one line each: cut off, without metadata.
        is_finished: whether its recorder ended it, and did not die, or still records.
    """

    def __init__(
        self,
        path: Path,
        sources: list[_Source],
        metadata: dict[str, str],
        notes: list[str],
        is_finished: bool = True,
    ) -> None:
        self.path, self.metadata, self.notes = path, metadata, notes
        self.is_finished = is_finished
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
    cut = any(isinstance(s.storage, McapFile) and s.storage.cut_at is not None for s in sources)
    return Bag(path, sources, metadata, notes, not cut and bool(described or not path.is_dir()))


def refuse_unfinished(bag: Bag) -> None:
    """A recording of which more is to come would be converted twice.

    Raises:
        UserError: it has no end, and grew just now.
    """
    newest_s = max(file.stat().st_mtime for file in bag_files(bag.path))
    if not bag.is_finished and abs(time.time() - newest_s) < GROWS_S:
        cure = f"end the recording; what was cut off can be converted after {GROWS_S} s"
        raise UserError("it is still being recorded", str(bag.path), cure)


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
