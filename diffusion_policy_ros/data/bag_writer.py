"""Write rosbag2 recordings.

with BagWriter("episode_0", {"/eef_pose": POSE_STAMPED}, {"contract": text}) as writer:
    writer.write("/eef_pose", log_ns, serialize(POSE_STAMPED, msg))
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from diffusion_policy_ros import __version__
from diffusion_policy_ros.data.definitions import definition, hash_of
from diffusion_policy_ros.errors import UserError

METADATA_FILE = "metadata.yaml"
METADATA_VERSION = 8
"""The last version with QoS as text, which every release reads; 9's list stops older ones."""
OUR_RECORD, ROSBAG2_RECORD = "diffusion_policy_ros", "rosbag2"
"""MCAP metadata records: ours at the front, so a killed recording has it; rosbag2's at the end."""

_FOREVER = "{sec: 9223372036, nsec: 854775807}"
_QOS = (
    "- {history: 3, depth: 0, reliability: 1, durability: 2, liveliness: 1, "
    f"deadline: {_FOREVER}, lifespan: {_FOREVER}, liveliness_lease_duration: {_FOREVER}, "
    "avoid_ros_namespace_conventions: false}"
)
"""Reliable and volatile, with the numbers that releases before ROS 2 Jazzy understand."""


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
        try:
            self._begin(definitions)
        except BaseException:  # a full disk
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _begin(self, definitions: Mapping[str, bytes]) -> None:
        """Open the file, and write what stands at its front."""
        from mcap.writer import CompressionType, Writer

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
        """Remove the recording, or what somebody has left of it.

        Raises:
            UserError: it may not be removed.
        """
        self._file.close()
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.path)
        except OSError as error:
            what = f"cannot be removed: {error.strerror}"
            raise UserError(what, str(self.path), "remove it yourself") from None

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
