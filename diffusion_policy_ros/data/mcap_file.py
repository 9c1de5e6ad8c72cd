"""Read one MCAP file, whole or cut off anywhere.

The file is mapped into memory and its records are walked once, so that a recording whose recorder
was killed (no summary, no footer, half a record at its end) is read by the same code as a finished
one, up to the last whole message. Messages are handed out as views into the map: nothing is
copied.

The format is https://mcap.dev/spec.
"""

from __future__ import annotations

import heapq
import mmap
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import lz4.frame
import zstandard

from diffusion_policy_ros.errors import UserError

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = 1, 2, 3, 4, 5, 6
STATISTICS, METADATA = 11, 12
RECORD_BYTES = 9
"""Of each record: its opcode and length."""

CHECKED_BYTES = 1 << 12
"""Checksums are verified of compressed chunks and of those up to this size: states and commands,
where a flipped bit would go unseen. Verifying images would cost as much as converting them."""

CHUNK_HEAD_BYTES = 48
"""What stands before a chunk's data, with the longest name of a compression."""

_RECORD = struct.Struct("<BQ")
_CHUNK = struct.Struct("<QQQII")
_MESSAGE = struct.Struct("<HIQQ")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")


class Schema(NamedTuple):
    """A message type: ``ros2msg`` or ``ros2idl`` text."""

    name: str
    encoding: str
    text: str


class Channel(NamedTuple):
    """A topic's messages of one schema."""

    schema_id: int
    topic: str
    encoding: str


Entry = tuple[int, int, int, memoryview]
"""A message: log time, place in the file, channel, bytes. Sorts by time, then by place."""

_Block = tuple[int, int, int, int]
"""What is read at once: first log time, `SINGLE` or `CHUNK`, where its body begins and ends."""
SINGLE = MESSAGE


class McapFile:
    """The records of one file.

    Attributes:
        schemas: id → schema.
        channels: id → channel.
        counts: channel id → number of messages.
        metadata: name → key → value, merged where a name stands several times.
        cut_at: the byte that the last whole record ends at, where the file was cut off; None for a
            finished file.

    Raises:
        UserError: the file is no MCAP file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.profile = ""
        self.schemas: dict[int, Schema] = {}
        self.channels: dict[int, Channel] = {}
        self.counts: Counter[int] = Counter()
        self.metadata: dict[str, dict[str, str]] = {}
        self.cut_at: int | None = None
        self._blocks: list[_Block] = []
        self._statistics = False
        self._buffer = _mapped(path)
        self._readers: dict[int, Callable[[int, int], None]] = {
            HEADER: self._read_header,
            SCHEMA: self._read_schema,
            CHANNEL: self._read_channel,
            MESSAGE: self._note_message,
            CHUNK: self._note_chunk,
            STATISTICS: self._read_statistics,
            METADATA: self._read_metadata,
        }
        try:
            self._walk()
            if not self._statistics or self.counts.keys() - self.channels.keys():
                self._count()
        except (struct.error, UnicodeDecodeError, IndexError):
            raise self._damaged("a record that is no MCAP record") from None

    def messages(self, channel_ids: Collection[int]) -> Iterator[Entry]:
        """The messages of some channels in order of log time, however the chunks overlap."""
        blocks = sorted(self._blocks)
        starts = [block[0] for block in blocks[1:]] + [1 << 64]
        heap: list[Entry] = []
        for block, next_start in zip(blocks, starts, strict=True):
            found = [entry for entry in self._entries(block) if entry[2] in channel_ids]
            if len(found) > 1:
                found.sort()
            if not heap and (not found or found[-1][0] < next_start):
                yield from found
                continue
            for entry in found:
                heapq.heappush(heap, entry)
            while heap and heap[0][0] < next_start:
                yield heapq.heappop(heap)

    def _walk(self) -> None:
        """Go from record to record until the footer, or until what is left is no whole record."""
        buffer, size, place = self._buffer, len(self._buffer), len(MAGIC)
        unpack, readers = _RECORD.unpack_from, self._readers
        while place + RECORD_BYTES <= size:
            opcode, length = unpack(buffer, place)
            body = place + RECORD_BYTES
            end = body + length
            if not 0 < opcode < 128 or end > size:
                if opcode == CHUNK and body + CHUNK_HEAD_BYTES <= size:
                    self._note_chunk(body, size)
                break
            place = end
            if opcode == FOOTER:
                break
            if opcode in readers:
                readers[opcode](body, end)
        if bytes(buffer[place : place + len(MAGIC)]) != MAGIC:
            self.cut_at = place
            self._statistics = False

    def _count(self) -> None:
        """Without a usable summary, learn types and counts from the messages themselves."""
        self.counts.clear()
        for block in self._blocks:
            for entry in self._entries(block):
                self.counts[entry[2]] += 1

    def _entries(self, block: _Block) -> list[Entry]:
        """What a chunk holds, in its order; or the one message that stands outside of chunks."""
        start, kind, body, end = block
        try:
            if kind == CHUNK:
                return self._parsed(self._chunk_records(body, end), body << 40)
            (channel_id,) = _U16.unpack_from(self._buffer, body)
            return [(start, body << 40, channel_id, self._buffer[body + _MESSAGE.size : end])]
        except (struct.error, UnicodeDecodeError, IndexError):
            raise self._damaged("a record that is no MCAP record") from None

    def _parsed(self, records: memoryview, first_place: int) -> list[Entry]:
        """The messages of a chunk; the types and topics that stand between them are noted."""
        found: list[Entry] = []
        place, size = 0, len(records)
        while place + RECORD_BYTES <= size:
            opcode, length = _RECORD.unpack_from(records, place)
            inner = place + RECORD_BYTES
            place = inner + length
            if place > size:
                if self.cut_at is None:
                    raise self._damaged("a message that is longer than its chunk")
                break
            if opcode == MESSAGE:
                channel_id, _, log_ns, _ = _MESSAGE.unpack_from(records, inner)
                data = records[inner + _MESSAGE.size : place]
                found.append((log_ns, first_place + inner, channel_id, data))
            elif opcode in (SCHEMA, CHANNEL):
                self._read_inner(opcode, records[inner:place])
        return found

    def _chunk_records(self, body: int, end: int) -> memoryview:
        """The records of a chunk, decompressed; of a chunk that was cut off, what there is."""
        _, _, size, checksum, named = _CHUNK.unpack_from(self._buffer, body)
        place = body + _CHUNK.size + named
        compression = bytes(self._buffer[place - named : place]).decode() if named else ""
        (length,) = _U64.unpack_from(self._buffer, place)
        place += _U64.size
        whole = place + length <= end
        records = self._buffer[place : place + length if whole else end]
        if named:
            records = self._inflated(compression, records, whole)
        if whole and len(records) != size:
            raise self._damaged("a chunk whose size is not what its header says")
        check = checksum and whole and (named or size <= CHECKED_BYTES)
        if check and zlib.crc32(records) != checksum:
            raise self._damaged("a chunk whose checksum does not match")
        return records

    def _inflated(self, compression: str, data: memoryview, whole: bool) -> memoryview:
        try:
            if compression == "zstd":
                return memoryview(zstandard.ZstdDecompressor().decompressobj().decompress(data))
            if compression == "lz4":
                return memoryview(lz4.frame.LZ4FrameDecompressor().decompress(data))
        except (zstandard.ZstdError, RuntimeError):
            if not whole:
                return memoryview(b"")
            raise self._damaged("a chunk that cannot be decompressed") from None
        raise UserError(
            f"chunks compressed with '{compression[:20]}'",
            str(self.path),
            "rewrite it with ros2 bag convert",
        )

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"the file is damaged: it has {what}", str(self.path), "copy it again, or leave it out"
        )

    def _read_header(self, body: int, _end: int) -> None:
        self.profile, _ = _text(self._buffer, body)

    def _read_schema(self, body: int, end: int) -> None:
        self._read_inner(SCHEMA, self._buffer[body:end])

    def _read_channel(self, body: int, end: int) -> None:
        self._read_inner(CHANNEL, self._buffer[body:end])

    def _read_inner(self, opcode: int, data: memoryview) -> None:
        (number,) = _U16.unpack_from(data, 0)
        if opcode == SCHEMA:
            name, place = _text(data, 2)
            encoding, place = _text(data, place)
            text, _ = _text(data, place)
            self.schemas[number] = Schema(name, encoding, text)
        else:
            (schema_id,) = _U16.unpack_from(data, 2)
            topic, place = _text(data, 4)
            encoding, _ = _text(data, place)
            self.channels[number] = Channel(schema_id, topic, encoding)

    def _note_message(self, body: int, end: int) -> None:
        self._blocks.append((_MESSAGE.unpack_from(self._buffer, body)[2], SINGLE, body, end))

    def _note_chunk(self, body: int, end: int) -> None:
        self._blocks.append((_CHUNK.unpack_from(self._buffer, body)[0], CHUNK, body, end))

    def _read_statistics(self, body: int, _end: int) -> None:
        place = body + struct.calcsize("<QHIIIIQQ")
        (length,) = _U32.unpack_from(self._buffer, place)
        pairs = self._buffer[place + 4 : place + 4 + length]
        self.counts = Counter(dict(struct.iter_unpack("<HQ", pairs)))
        self._statistics = True

    def _read_metadata(self, body: int, _end: int) -> None:
        name, place = _text(self._buffer, body)
        (length,) = _U32.unpack_from(self._buffer, place)
        place, end = place + 4, place + 4 + length
        values = self.metadata.setdefault(name, {})
        while place < end:
            key, place = _text(self._buffer, place)
            values[key], place = _text(self._buffer, place)


def _mapped(path: Path) -> memoryview:
    """The file in memory; its pages are read when they are touched."""
    with path.open("rb") as file:
        start = file.read(13)
        if not start:
            raise UserError("the file is empty", str(path), "record it again")
        if start == b"#ROSBAG V2.0\n":
            raise UserError(
                "this is a ROS 1 bag",
                str(path),
                "convert it with rosbags-convert --src A.bag --dst B",
            )
        if not start.startswith(MAGIC):
            raise UserError(
                "this is no MCAP file",
                str(path),
                "give a rosbag2 directory, an .mcap or a .db3 file",
            )
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _text(data: memoryview, place: int) -> tuple[str, int]:
    """The length-prefixed text at ``place``, and where it ends."""
    (length,) = _U32.unpack_from(data, place)
    end = place + 4 + length
    if end > len(data):
        raise IndexError(end)
    return str(data[place + 4 : end], "utf-8"), end
