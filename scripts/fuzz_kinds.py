"""What `fuzz.py` feeds: for each kind of input something whole, ways to damage it, and its reader.

A new kind is one line in `KINDS`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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

from diffusion_policy_ros.contract import MESSAGE_TYPES, Contract, Stream
from diffusion_policy_ros.data.bags import (
    BagWriter,
    _maker,
    message_types,
    open_bag,
    serialize,
)
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.data.draft import draft
from diffusion_policy_ros.data.mcap_file import Schema
from diffusion_policy_ros.data.survey import survey
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import decode, stamp_ns
from diffusion_policy_ros.observe.history import History
from diffusion_policy_ros.policy.checkpoint import (
    MANIFEST,
    RUNS,
    WEIGHTS,
    TrainingState,
    load_policy,
    load_training_state,
    save_checkpoint,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.replay.summary import load_expected
from diffusion_policy_ros.runtime.playback import Playback
from diffusion_policy_ros.runtime.runner import Sampling
from diffusion_policy_ros.shipped import config_names, config_path
from diffusion_policy_ros.sim.messages import command_message, messages

Source = random.Random
CUTS = 200
"""Every bag is cut off at so many places before other damage is done."""
TINY = """
policy:
  num_inference_steps: 2
  denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}
  image_encoder: {name: small_conv, keypoints: 4, features: 0}
"""
CONTRACT = Contract.from_text(Contract.load("mini_lift").text.replace("[84, 84, 3]", "[8, 8, 3]"))
SMALL = Contract.load("mini_lift_state")
LARGEST_NET = 600
"""Recipes with greater numbers are read, but not built: who asks for a large network gets one."""


class Kind(NamedTuple):
    """One kind of input.

    Attributes:
        name: of the kind.
        make: folder → what is whole.
        damage: whole, source of chance, number of the input, empty folder → what to read.
        read: reads it; gives whatever there is to give.
    """

    name: str
    make: Callable[[Path], Any]
    damage: Callable[[Any, Source, int, Path], Any]
    read: Callable[[Any], Any]


# Damage


def damaged(data: bytes, source: Source) -> bytes:
    """Some bytes, damaged in one of several ways."""
    ways = (_flip, _flip, _extreme, _extreme, _cut, _insert, _remove, _swap, _blank)
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        data = source.choice(ways)(data, source) if data else data
    return data


def _place(data: bytes, source: Source) -> int:
    """Heads and tails hold what matters: every second place is there."""
    near = min(len(data), 300)
    if source.random() < 0.5:
        return (
            source.randrange(near)
            if source.random() < 0.5
            else len(data) - 1 - (source.randrange(near))
        )
    return source.randrange(len(data))


def _flip(data: bytes, source: Source) -> bytes:
    found = bytearray(data)
    for _ in range(source.choice((1, 2, 8))):
        found[_place(data, source)] ^= 1 << source.randrange(8)
    return bytes(found)


def _extreme(data: bytes, source: Source) -> bytes:
    """A length, a count or a stamp becomes the largest, the smallest, or one too many."""
    size, place = source.choice((1, 2, 4, 8)), _place(data, source)
    values = (2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 0, 1, 255)
    value = source.choice(values) % 2 ** (8 * size)
    return (data[:place] + value.to_bytes(size, "little") + data[place + size :])[: len(data)]


def _cut(data: bytes, source: Source) -> bytes:
    return data[: _place(data, source)]


def _insert(data: bytes, source: Source) -> bytes:
    place = _place(data, source)
    return data[:place] + source.randbytes(source.choice((1, 4, 100))) + data[place:]


def _remove(data: bytes, source: Source) -> bytes:
    place = _place(data, source)
    return data[:place] + data[place + source.choice((1, 4, 100)) :]


def _swap(data: bytes, source: Source) -> bytes:
    a, b = sorted((_place(data, source), _place(data, source)))
    size = min(source.choice((4, 16, 64)), b - a)
    moved = bytearray(data)
    moved[a : a + size], moved[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(moved[: len(data)])


def _blank(data: bytes, source: Source) -> bytes:
    place, size = _place(data, source), source.choice((8, 64, 512))
    return (data[:place] + bytes(size) + data[place + size :])[: len(data)]


# Text

VALUES = r"""
nan .inf -.inf -1 0 1 1e400 1e-400 99999999999999999999 0x7fffffff 1_000 2024-13-45 yes ~ null
2024-11-21T00:00:00Z '' "" [] {} [[]] {a:b} *a &a !!python/object:os.system !!int !!binary !!set
!!timestamp << ? | > - : # @ ` % \ é 机 𝄞 ${HOME} "\x1b[2J" "\0" "\u2028" "\ud800"
"""
VALUES = VALUES.split()
VALUES += ["a" * 5000, "[" * 3000, "{a: " * 1500, "1" * 5000, "\t", "&a [*a]"]
VALUES += ["\x00", "\x07", "\x1b[2J", "\u2028", "\ufeff", "\ud800"]
BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def damaged_text(text: str, source: Source) -> bytes:
    """YAML with its keys, values or lines mixed up, or its bytes damaged."""
    if source.random() < 0.25:
        return damaged(text.encode(), source)
    for _ in range(source.choice((1, 1, 2, 4))):
        text = source.choice((_value, _value, _value, _key, _line, _lines, _indent, _bomb))(
            text, source
        )
    return text.encode("utf-8", "surrogatepass")


def _value(text: str, source: Source) -> str:
    """Some value becomes another one, of this text or of none."""
    found = list(re.finditer(r"[^\s\[\]{},:]+(?=\s*(?:[,\]}\n]|$))", text))
    if not found:
        return text
    at = source.choice(found)
    new = source.choice(VALUES) if source.random() < 0.7 else source.choice(found).group()
    return text[: at.start()] + new + text[at.end() :]


def _key(text: str, source: Source) -> str:
    """Two keys change places, or one is misspelt."""
    found = list(re.finditer(r"\w+(?=:)", text))
    if len(found) < 2:
        return text
    a, b = sorted(source.sample(found, 2), key=lambda match: match.start())
    if source.random() < 0.5:
        return text[: a.start()] + a.group()[:-1] + "x" + text[a.end() :]
    between = text[a.end() : b.start()]
    return text[: a.start()] + b.group() + between + a.group() + text[b.end() :]


def _line(text: str, source: Source) -> str:
    lines = text.splitlines()
    at = source.randrange(max(len(lines), 1))
    lines[at : at + 1] = [[], lines[at : at + 1] * 2][source.randrange(2)]
    return "\n".join(lines)


def _lines(text: str, source: Source) -> str:
    lines = text.splitlines()
    source.shuffle(lines)
    return "\n".join(lines)


def _indent(text: str, source: Source) -> str:
    lines = text.splitlines()
    at = source.randrange(max(len(lines), 1))
    lines[at : at + 1] = [source.choice(("  ", "\t", " ")) + line for line in lines[at : at + 1]]
    return "\n".join(lines)


def _bomb(text: str, source: Source) -> str:
    """Aliases of aliases: nine lists of nine lists of …"""
    return BOMB + text.replace("rate_hz: 20", "rate_hz: *i") if source.random() < 0.3 else text


def _shipped(folder: str) -> Callable[[Path], list[str]]:
    return lambda _: [
        config_path(folder, f"{name}.yaml").read_text() for name in config_names(folder)
    ]


def _text_file(base: list[str], source: Source, _number: int, folder: Path) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(damaged_text(source.choice(base), source))
    return path


def _read_contract(path: Path) -> Any:
    contract = Contract.load(path)
    History(contract, 2)
    Playback(contract)
    return contract.hash, contract.action_names, contract.recorded_topics, contract.period_ns


def _read_recipe(path: Path) -> Any:
    recipe = Recipe.load(path)
    Sampling.of(recipe.policy)
    net = json.dumps(dataclasses.asdict(recipe.policy))
    sizes = [int(n) for n in re.findall(r"(?<![\w.])\d+(?![\w.])", net)]
    if max(sizes, default=0) <= LARGEST_NET:
        DiffusionPolicy(recipe, SMALL)
    return Recipe.from_text(recipe.to_text())


# Checkpoints


def _make_checkpoint(root: Path) -> Path:
    policy = DiffusionPolicy(Recipe.from_text(TINY), SMALL)
    state = TrainingState(dict(policy.state_dict()), {"update": 3, "seed": [1, 2]})
    return save_checkpoint(root / "policy", policy, state=state)


def _damage_checkpoint(base: Path, source: Source, _number: int, folder: Path) -> Path:
    """A file is damaged, lost, or another one's; mostly the manifest says that it is whole."""
    path = folder / "policy"
    shutil.copytree(base, path)
    file = source.choice(sorted(path.iterdir()))
    way = source.random()
    if way < 0.05:
        file.unlink()
    elif way < 0.1:
        file.write_bytes(source.choice(sorted(base.iterdir())).read_bytes())
    elif file.suffix == ".yaml":
        file.write_bytes(damaged_text(file.read_text(), source))
    elif file.suffix == ".safetensors" and way < 0.5:
        file.write_bytes(_damaged_head(file.read_bytes(), source))
    else:
        file.write_bytes(damaged(file.read_bytes(), source))
    if file.name != MANIFEST and source.random() < 0.8:
        manifest = json.loads((path / MANIFEST).read_text())
        for other in path.iterdir():
            if other.name in manifest["sha256"]:
                manifest["sha256"][other.name] = hashlib.sha256(other.read_bytes()).hexdigest()
        (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def _damaged_head(data: bytes, source: Source) -> bytes:
    """A tensor's name, type, shape or place is another one's."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    a, b = source.sample([name for name in head if name != "__metadata__"], 2)
    part = source.choice(("name", "dtype", "shape", "data_offsets"))
    if part == "name":
        head[a], head[b] = head[b], head[a]
    else:
        values = {
            "dtype": source.choice(("I64", "F16", "BF16", "BOOL", "X")),
            "shape": source.choice(([], [0], [2**40], [-1], head[b]["shape"])),
            "data_offsets": source.choice(([0, 4], [0, 2**62], [8, 0], head[b]["data_offsets"])),
        }
        head[a][part] = values[part]
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _read_checkpoint(path: Path) -> Any:
    failed: list[UserError] = []
    for read in (load_policy, load_training_state):
        try:
            _refuse_large(path)
            read(path)
        except UserError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return sorted(file.name for file in path.iterdir())


def _refuse_large(path: Path) -> None:
    """As for recipes: whoever asks for a large network gets one."""
    known = set(_large(f"{Recipe.from_text(TINY).to_text()}{SMALL.text}".encode()))
    for name in RUNS:
        file = path / name
        if name != WEIGHTS and file.is_file() and set(_large(file.read_bytes())) - known:
            raise UserError("large numbers are not tried")


def _large(text: bytes) -> list[bytes]:
    return re.findall(rb"[1-9][\d_]{3,}|0x[0-9a-f]{3,}", text)


# Bags


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
def _recorded() -> list[tuple[str, str, int, bytes]]:
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


def _make_mcaps(root: Path) -> list[Path]:
    """Ours, and chunked ones with each compression."""
    types = {topic: kind for topic, kind, _, _ in _recorded()}
    with BagWriter(root / "ours", types, {"contract": CONTRACT.text}) as ours:
        for topic, _, log_ns, data in _recorded():
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
        for topic, kind, log_ns, data in _recorded():
            if topic not in channels:
                text, _ = get_typestore(Stores.ROS2_JAZZY).generate_msgdef(kind, ros_version=2)
                schema = writer.register_schema(kind, "ros2msg", text.encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], log_ns, data, log_ns)
        writer.finish()


def _make_sqlites(root: Path) -> list[Path]:
    """As rosbag2 writes them; whole, and compressed message by message."""
    found = []
    for name, mode in (("sqlite", None), ("by_message", CompressionMode.MESSAGE)):
        writer = ForeignWriter(root / name, version=9, storage_plugin=StoragePlugin.SQLITE3)
        if mode is not None:
            writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            store, channels = get_typestore(Stores.ROS2_JAZZY), {}
            for topic, kind, log_ns, data in _recorded():
                if topic not in channels:
                    channels[topic] = writer.add_connection(topic, kind, typestore=store)
                writer.write(channels[topic], log_ns, data)
        found.append(root / name)
    return found


def _make_zstds(root: Path) -> list[Path]:
    """Whole files, compressed."""
    (root / "zstd").mkdir()
    files = [next(_make_mcaps(root)[0].glob("*.mcap")), next(_make_sqlites(root)[0].glob("*.db3"))]
    found = []
    for file in files:
        folder = root / "zstd" / file.suffix[1:]
        folder.mkdir()
        packed = zstandard.ZstdCompressor().compress(file.read_bytes())
        (folder / f"{file.name}.zstd").write_bytes(packed)
        found.append(folder)
    return found


def _damage_bag(base: list[Path], source: Source, number: int, folder: Path) -> tuple[Path, bool]:
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


def _read_bag(given: tuple[Path, bool]) -> Any:
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


# Messages


def _make_messages(_root: Path) -> list[tuple[str, bytes]]:
    return sorted({kind: data for _, kind, _, data in _recorded()}.items()) + _other_messages()


def _other_messages() -> list[tuple[str, bytes]]:
    """One of each other type that a contract may name."""
    store, found = get_typestore(Stores.ROS2_JAZZY), []
    known = {kind for _, kind, _, _ in _recorded()}
    for kind in sorted(MESSAGE_TYPES.keys() - known):
        found.append((kind, bytes(store.serialize_cdr(_filled(store, kind), kind))))
    return found


def _filled(store: Any, kind: str) -> Any:
    """A message with something in every field."""
    plain = {"string": "base", "bool": True, "float64": 0.5, "float32": 0.5}
    arrays = {"float64": np.float64, "float32": np.float32, "uint8": np.uint8}
    values = {}
    for name, (node, of) in store.fielddefs[kind][1]:
        if node.name == "BASE":
            values[name] = plain.get(of[0], 1)
        elif node.name == "NAME":
            values[name] = _filled(store, of)
        else:
            part = of[0][1]
            inner = part[0] if isinstance(part, tuple) else part
            dtype = arrays.get(inner)
            values[name] = np.ones(7, dtype) if dtype else [_filled(store, part)]
    return store.types[kind](**values)


def _damage_message(
    base: list[tuple[str, bytes]], source: Source, number: int, _folder: Path
) -> tuple[str, bytes, Source]:
    kind, data = base[number % len(base)]
    return kind, damaged(data, source), source


def _read_message(given: tuple[str, bytes, Source]) -> Any:
    """As a bag's message and as a stream's, whatever the contract says of it."""
    kind, data, source = given
    message = _maker(kind, Schema("", "", ""))(memoryview(data))
    stamp = stamp_ns(message)
    about = MESSAGE_TYPES[kind]
    field = source.choice(list(about.fields))
    shape = (8, 8, 3) if about.image else (about.fields[field] or 7,)
    if kind == "sensor_msgs/msg/JointState":
        shape = (2,)
    stream = Stream("/topic", kind, shape, "" if about.image else field, name="stream")
    return stamp, decode(stream, message).shape


# Datasets and figures


def _make_dataset(root: Path) -> Path:
    convert([_make_mcaps(root)[0]], CONTRACT, root / "dataset", options=Options(keep_idle=True))
    return root / "dataset"


def _damage_dataset(base: Path, source: Source, _number: int, folder: Path) -> Path:
    path = folder / "dataset"
    shutil.copytree(base, path)
    file = source.choice([f for f in sorted(path.rglob("*")) if f.is_file() and f.stat().st_size])
    data = file.read_bytes()
    if file.suffix == ".yaml":
        file.write_bytes(damaged_text(data.decode(), source))
    else:
        file.write_bytes(damaged(data[:256], source) + data[256:])
    return path


def _read_dataset(path: Path) -> Any:
    windows = WindowDataset(path, 2, 8)
    windows.statistics()
    return {key: array.shape for key, array in windows.batch([0, len(windows) - 1]).items()}


def _make_figures(_root: Path) -> str:
    return json.dumps(
        {"format": 1, "tolerances": {"actions": 1e-4}, "error": {}, "frames": {},
         "first_actions": [[[0.0]]]}
    )  # fmt: skip


def _damage_figures(base: str, source: Source, _number: int, folder: Path) -> Path:
    path = folder / "replay.json"
    path.write_bytes(damaged_text(base, source))
    return path


KINDS = {
    kind.name: kind
    for kind in (
        Kind("contract", _shipped("contracts"), _text_file, _read_contract),
        Kind("recipe", _shipped("recipes"), _text_file, _read_recipe),
        Kind("checkpoint", _make_checkpoint, _damage_checkpoint, _read_checkpoint),
        Kind("mcap", _make_mcaps, _damage_bag, _read_bag),
        Kind("sqlite", _make_sqlites, _damage_bag, _read_bag),
        Kind("zstd", _make_zstds, _damage_bag, _read_bag),
        Kind("message", _make_messages, _damage_message, _read_message),
        Kind("dataset", _make_dataset, _damage_dataset, _read_dataset),
        Kind("figures", _make_figures, _damage_figures, load_expected),
    )
}
