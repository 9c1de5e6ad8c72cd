"""Bags of each storage and compression, damaged, and everything that looks into bags."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from mcap.writer import CompressionType, Writer as McapWriter
from rosbags.rosbag2 import (
    CompressionFormat,
    CompressionMode,
    StoragePlugin,
    Writer as ForeignWriter,
)
from rosbags.typesys import Stores, get_typestore

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, open_bag, serialize
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.data.draft import draft
from diffusion_policy_ros.data.survey import survey
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.history import History
from diffusion_policy_ros.sim.messages import command_message, messages
from fuzzing.damage import Source, damaged, damaged_text

CUTS = 200
"""Every bag is cut off at so many places before other damage is done."""
CONTRACT = Contract.from_text(Contract.load("mini_lift").text.replace("[84, 84, 3]", "[8, 8, 3]"))


def _observation(source: np.random.Generator) -> dict[str, Any]:
    image = source.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    position, up = source.normal(size=3), np.array([0.0, 0.0, 0.0, 1.0])
    return {
        "agentview_image": image,
        "robot0_eye_in_hand_image": image,
        "robot0_eef_pos": position,
        "robot0_eef_quat": up,
        "robot0_gripper_qpos": source.normal(size=2),
        "object_pos": position,
        "object_quat": up,
        "gripper_to_object_pos": position,
    }


@functools.cache
def recorded() -> list[tuple[str, str, int, bytes]]:
    """(topic, type, log time, bytes) of a short demonstration."""
    source, found = np.random.default_rng(0), []
    for frame in range(6):
        stamp = 10**9 + frame * CONTRACT.period_ns
        names, action = CONTRACT.action_names, source.normal(size=7) * 0.01
        of_frame = [
            *messages(_observation(source), stamp, message_types),
            command_message(action, stamp, names, message_types),
        ]
        for topic, kind, message in of_frame:
            if topic in CONTRACT.recorded_topics:
                found.append((topic, kind, stamp + len(found), serialize(kind, message)))
    return found


def make_mcaps(root: Path) -> list[Path]:
    """Ours, and chunked ones with each compression."""
    types = {topic: kind for topic, kind, _, _ in recorded()}
    with BagWriter(root / "ours", types, {"contract": CONTRACT.text}) as ours:
        for topic, _, log_ns, data in recorded():
            ours.write(topic, log_ns, data)
    found = [root / "ours"]
    for compression in CompressionType:
        folder = root / f"mcap_{compression.name}"
        folder.mkdir()
        _write_mcap(folder / "bag.mcap", compression)
        found.append(folder)
    return found


def _write_mcap(path: Path, compression: CompressionType) -> None:
    with path.open("wb") as file:
        writer = McapWriter(file, chunk_size=1500, compression=compression)
        writer.start("ros2", "test")
        channels: dict[str, int] = {}
        for topic, kind, log_ns, data in recorded():
            if topic not in channels:
                text, _ = get_typestore(Stores.ROS2_JAZZY).generate_msgdef(kind, ros_version=2)
                schema = writer.register_schema(kind, "ros2msg", text.encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], log_ns, data, log_ns)
        writer.finish()


def make_sqlites(root: Path) -> list[Path]:
    """As rosbag2 writes them; whole, and compressed message by message."""
    found = []
    for name, mode in (("sqlite", None), ("by_message", CompressionMode.MESSAGE)):
        writer = ForeignWriter(root / name, version=9, storage_plugin=StoragePlugin.SQLITE3)
        if mode is not None:
            writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            store, channels = get_typestore(Stores.ROS2_JAZZY), {}
            for topic, kind, log_ns, data in recorded():
                if topic not in channels:
                    channels[topic] = writer.add_connection(topic, kind, typestore=store)
                writer.write(channels[topic], log_ns, data)
        found.append(root / name)
    return found


def make_zstds(root: Path) -> list[Path]:
    """Whole files, compressed."""
    (root / "zstd").mkdir()
    files = [next(make_mcaps(root)[0].glob("*.mcap")), next(make_sqlites(root)[0].glob("*.db3"))]
    found = []
    for file in files:
        folder = root / "zstd" / file.suffix[1:]
        folder.mkdir()
        packed = zstandard.ZstdCompressor().compress(file.read_bytes())
        (folder / f"{file.name}.zstd").write_bytes(packed)
        found.append(folder)
    return found


def damage_bag(base: list[Path], source: Source, number: int, folder: Path) -> tuple[Path, bool]:
    """Cut off at `CUTS` places, one after the other; then damaged. Sometimes without metadata."""
    whole, path = base[number % len(base)], folder / "bag"
    shutil.copytree(whole, path)
    storage = [file for file in path.iterdir() if file.name != "metadata.yaml"][0]
    data, described = storage.read_bytes(), path / "metadata.yaml"
    if number < CUTS:
        storage.write_bytes(data[: len(data) * (number // len(base)) * len(base) // CUTS])
        described.unlink(missing_ok=True)
    elif described.exists() and source.random() < 0.1:
        described.write_bytes(damaged_text(described.read_text(), source))
    else:
        inside = storage.suffix == ".zstd" and source.random() < 0.5
        storage.write_bytes(_inside(data, source) if inside else damaged(data, source))
        if source.random() < 0.3:
            described.unlink(missing_ok=True)
    return path, source.random() < 0.2


def _inside(data: bytes, source: Source) -> bytes:
    """What was compressed is damaged, and compressed again."""
    unpacked = zstandard.ZstdDecompressor().decompress(data)
    return zstandard.ZstdCompressor().compress(damaged(unpacked, source))


def read_bag(given: tuple[Path, bool]) -> Any:
    """Everything that looks into bags: survey, draft, every message, frames, conversion."""
    path, converted = given
    if converted:
        return _converted(path)
    bag = open_bag(path)
    topics = survey(bag)
    text = draft(path, topics)
    history, frames = History(CONTRACT, 2), 0
    for topic, log_ns, message in bag.messages():
        message._decode(message._raw)
        if topic in CONTRACT.topics:
            frames += len(history.push(topic, message, log_ns))
    return frames, len(text)


def _converted(path: Path) -> Any:
    out = path.parent.parent / "dataset"
    try:
        report = convert([path], CONTRACT, out, options=Options(keep_idle=True))
        return report.frames, WindowDataset(out, 2, 8).batch([0]).keys()
    except UserError:
        if out.exists():
            raise RuntimeError("a refused conversion left a dataset behind") from None
        raise
    finally:
        shutil.rmtree(out, ignore_errors=True)
