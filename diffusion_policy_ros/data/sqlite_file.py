"""Read one rosbag2 SQLite file, of any version, also with a killed recorder's log beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from diffusion_policy_ros.data.mcap_file import Schema
from diffusion_policy_ros.errors import UserError

DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError, TypeError)
"""What reading a damaged database raises: its columns may hold anything, and so may its errors."""


class Topic(NamedTuple):
    """One topic of the file."""

    id: int
    topic: str
    type: str
    definition: Schema
    total: int


class SqliteFile:
    """The topics and messages of one ``.db3`` file.

    Args:
        path: the file.
        folder: a temporary folder that it lies in, kept as long as the file is read.

    Raises:
        UserError: the file is no rosbag2 database, or damaged.
    """

    def __init__(self, path: Path, folder: TemporaryDirectory[str] | None = None) -> None:
        self.path, self._folder = path, folder
        with path.open("rb") as file:
            start = file.read(16)
        if not start:
            raise UserError("the file is empty", str(path), "record it again")
        if start != b"SQLite format 3\0":
            raise UserError("this is no SQLite file", str(path), "give a rosbag2 recording")
        # Without a log beside it, the file may lie where nothing can be written.
        waiting = path.with_name(path.name + "-wal")
        options = "mode=ro" if waiting.exists() and waiting.stat().st_size else "immutable=1"
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True)
        try:
            self.topics = self._topics()
        except DAMAGE as error:
            raise self._damaged(error) from None

    def messages(self, channel_ids: Collection[int]) -> Iterator[tuple[int, int, int, memoryview]]:
        """(log time, place, channel, bytes) of some topics in order of log time."""
        marks = ",".join("?" * len(channel_ids))
        query = (
            f"SELECT timestamp, id, topic_id, data FROM messages WHERE topic_id IN ({marks}) "
            "ORDER BY timestamp, id"
        )
        try:
            for log_ns, place, channel_id, data in self._connection.execute(
                query, list(channel_ids)
            ):
                if not (isinstance(log_ns, int) and isinstance(data, bytes)):
                    raise TypeError(f"message {place} is none")
                yield log_ns, place, channel_id, memoryview(data)
        except DAMAGE as error:
            raise self._damaged(error) from None

    def _topics(self) -> list[Topic]:
        known = self._columns("message_definitions")
        definitions: dict[str, Schema] = {}
        if {"topic_type", "encoding", "encoded_message_definition"} <= known:
            query = (
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            )
            definitions = {
                row[0]: Schema(*map(str, row)) for row in self._connection.execute(query)
            }
        counts = dict(
            self._connection.execute("SELECT topic_id, count(*) FROM messages GROUP BY topic_id")
        )
        rows = list(
            self._connection.execute(
                "SELECT id, name, type, serialization_format FROM topics ORDER BY id"
            )
        )
        if not all(isinstance(text, str) for row in rows for text in row[1:]):
            raise TypeError("a topic without name or type")
        foreign = [name for _, name, _, encoding in rows if encoding != "cdr"]
        if foreign:
            raise UserError(
                f"{foreign[0]} is not serialized as cdr", str(self.path), "only cdr can be read"
            )
        empty = Schema("", "", "")
        return [
            Topic(n, name, kind, definitions.get(kind, empty), counts.get(n, 0))
            for n, name, kind, _ in rows
        ]

    def _columns(self, table: str) -> set[str]:
        return {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}

    def _damaged(self, error: Exception) -> UserError:
        cure = "copy it again, or rescue it with sqlite3 FILE .recover"
        return UserError(f"no whole rosbag2 database ({error})", str(self.path), cure)
