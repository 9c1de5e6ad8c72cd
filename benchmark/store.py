"""What encoded pictures cost and save, and how a large dataset opens, against raw memory maps.

    python benchmark/store.py [--json] [--images HOW] [--frames N] [--batches N] [--folder DIR]

A row is one size of picture, two cameras, windows of two observed frames in batches of 64, and a
number of readers. `bytes_share` is what the store keeps of the raw bytes as `--images` says, whose
default `auto` leaves 84x84 raw. `warm_ratio` is windows a second, from the page cache, against a
plain loader of raw uint8 memory maps with as many readers in the same run; `cold_ratio` the same
after the files' pages were given up before each group of batches. Medians. `cpu_ratio` is the same
of processor time, from the page cache: what decoding costs, whatever else the machine does.

Pictures are smooth shades with some forty sharp-edged patches and Gaussian noise of two steps, new
in each frame: a camera in a room. Noise decides the size of a jpeg; `noise_0` is what it would be
without.

`million` is an index of 1,000,000 frames in 3,334 episodes, with true files of vectors and offsets
and picture files that are holes of the measured size, opened by a process of its own: seconds, and
the most memory that it took beyond what importing takes. `gb` is extrapolated: the bytes that two
640x480 pictures were measured to take, and the vectors', times a million.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.compaction import size_of
from diffusion_policy_ros.data.dataset import WindowDataset
from diffusion_policy_ros.data.index import FORMAT, SHARDS, Episode, Index
from diffusion_policy_ros.data.loader import prefetch
from diffusion_policy_ros.data.npy import NpyWriter
from diffusion_policy_ros.data.pictures import IMAGES, encoded
from diffusion_policy_ros.data.shards import ENDS, OFFSET, PICTURES, columns
from diffusion_policy_ros.data.store import Recording, adding

SIZES = {"84x84": (84, 84), "224x224": (224, 224), "640x480": (480, 640)}
CAMERAS, BATCH, STEPS = ("left", "right"), 64, 2
EPISODE, MILLION, SHARD = 300, 1_000_000, 20_000
NOISE, PATCHES = 2.0, 40
CONTRACT = """
name: store
rate_hz: 20
anchor: left
observations:
  left: {{topic: /left, type: sensor_msgs/msg/Image, shape: [{height}, {width}, 3]}}
  right: {{topic: /right, type: sensor_msgs/msg/Image, shape: [{height}, {width}, 3]}}
  position: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  orientation: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
action:
  fields:
    - {{name: translation, kind: position}}
    - {{name: gripper, kind: binary}}
  record: {{topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [4]}}
"""
OPEN = """
import json, sys, time
from pathlib import Path
from diffusion_policy_ros.data.dataset import WindowDataset
def peak():  # not ru_maxrss, which begins with the parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
before, begun = peak(), time.perf_counter()
windows = WindowDataset(sys.argv[1], 2, 16)
seconds = time.perf_counter() - begun
print(json.dumps({"open_s": seconds, "memory_mb": peak() - before, "windows": len(windows)}))
"""


def scene(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A picture without noise, float (H, W, 3)."""
    grid = Image.fromarray(random.integers(40, 200, (6, 8, 3), dtype=np.uint8))
    found = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    for _ in range(PATCHES):
        top, left = random.integers(0, height), random.integers(0, width)
        h, w = random.integers(height // 24, height // 5), random.integers(width // 24, width // 5)
        found[top : top + h, left : left + w] = random.uniform(20, 235, 3)
    return found


def shots(size: tuple[int, int], frames: int, noise: float, seed: int) -> Iterator[np.ndarray]:
    """Pictures of a camera that moves by a pixel a frame."""
    random = np.random.default_rng(seed)
    still = scene(*size, random)
    for frame in range(frames):
        grain = random.normal(0, noise, still.shape) if noise else 0.0
        moved = np.roll(still, frame, axis=1) + grain
        yield np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def vectors(contract: Contract, frames: int) -> dict[str, np.ndarray]:
    """Positions, unit quaternions and actions."""
    random = np.random.default_rng(0)
    turn = random.normal(size=(frames, 4)).astype(np.float32)
    return {
        "position": random.uniform(-1, 1, (frames, 3)).astype(np.float32),
        "orientation": turn / np.linalg.norm(turn, axis=1, keepdims=True),
        "action": random.uniform(-1, 1, (frames, contract.action_dim)).astype(np.float32),
    }


def write(folder: Path, contract: Contract, size: tuple[int, int], frames: int, how: Any) -> Path:
    """A dataset of one episode after another."""
    with adding(folder, contract, how) as new:
        for number, start in enumerate(range(0, frames, EPISODE)):
            count = min(EPISODE, frames - start)
            cameras = {
                key: shots(size, count, NOISE, 2 * number + place)
                for place, key in enumerate(CAMERAS)
            }
            given = {**vectors(contract, count), **cameras}
            new.add(Recording(f"{number}", given, hash=f"{number:016d}"))
    return folder


class Raw:
    """The loader that one writes first: a memory map a camera, and rows by their numbers."""

    def __init__(self, folder: Path, windows: WindowDataset) -> None:
        (shard,) = (folder / SHARDS).iterdir()
        self.maps = {key: np.load(shard / f"{key}.npy", mmap_mode="r") for key in CAMERAS}
        self.windows = windows

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures of windows; vectors cost next to nothing."""
        rows = self.windows._rows(indices)[0][:, :STEPS]
        return {key: array[rows] for key, array in self.maps.items()}


def forget(folder: Path) -> None:
    """Give the pages of all files up."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds_a_batch(
    batch: Callable[[np.ndarray], Any], count: int, readers: int, batches: int, cold: Path | None
) -> float:
    """Median over groups of as many batches as there are readers."""
    random, found = np.random.default_rng(1), []
    chosen = random.integers(0, count, (batches * readers + 2 * readers, BATCH))
    nothing = np.zeros((BATCH, 1), bool)

    def read(number: int) -> Any:
        return batch(chosen[number % len(chosen)]), nothing

    for group in range(batches):
        if cold is not None:
            forget(cold)
        begun = time.perf_counter()
        with read_some(read, group * readers, readers) as stream:
            for _ in range(readers):
                next(stream)
        found.append((time.perf_counter() - begun) / readers)
    return float(np.median(found))


def cpu_seconds(batch: Callable[[np.ndarray], Any], count: int, batches: int) -> float:
    """Processor time of a batch, median."""
    random, found = np.random.default_rng(2), []
    for _ in range(batches):
        chosen, begun = random.integers(0, count, BATCH), time.process_time()
        batch(chosen)
        found.append(time.process_time() - begun)
    return float(np.median(found))


class read_some:
    """Exactly as many batches as readers, each by one of them, as the trainer's loader reads."""

    def __init__(self, read: Callable[[int], Any], first: int, readers: int) -> None:
        stop = first + readers
        self._ahead = prefetch(lambda n: read(n) if n < stop else None, first, readers)

    def __enter__(self) -> Iterator[Any]:
        return self._ahead.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._ahead.__exit__(*error)


def row(
    name: str, folder: Path, frames: int, batches: int, images: str
) -> tuple[list[dict[str, Any]], float]:
    """Measure one size; the rows, and the bytes that the store takes a frame."""
    size = SIZES[name]
    contract = Contract.from_text(CONTRACT.format(height=size[0], width=size[1]))
    ours = write(folder / "ours", contract, size, frames, images)
    plain = write(folder / "plain", contract, size, frames, "raw")
    windows = WindowDataset(ours, STEPS, 16)
    raw = Raw(plain, WindowDataset(plain, STEPS, 16))
    share = size_of(ours / SHARDS) / size_of(plain / SHARDS)
    clean = next(shots(size, 1, 0.0, 0))
    found = []
    for readers in (1, 2):
        ratios = {}
        for kind in ("warm", "cold"):
            cold = kind == "cold"
            sides = []
            for batch, where in ((windows.batch, ours), (raw.batch, plain)):
                if not cold:
                    batch(np.arange(0, len(windows), STEPS))  # into the page cache
                each = seconds_a_batch(
                    batch, len(windows), readers, batches, where if cold else None
                )
                sides.append(each)
            ratios[f"{kind}_ratio"] = round(sides[1] / sides[0], 3)
            ratios[f"{kind}_windows_per_s"] = round(BATCH / sides[0], 1)
            ratios[f"{kind}_raw_windows_per_s"] = round(BATCH / sides[1], 1)
        found.append({"image": name, "readers": readers, "bytes_share": round(share, 4), **ratios})
    sides_cpu = [cpu_seconds(side.batch, len(windows), batches) for side in (windows, raw)]
    found[0]["cpu_ratio"] = round(sides_cpu[1] / sides_cpu[0], 3)
    found[0]["noise_0"] = round(len(encoded(clean, "jpeg")) / clean.nbytes, 4)
    return found, size_of(ours / SHARDS) / frames


def million(folder: Path, bytes_a_frame: float) -> dict[str, float]:
    """Open an index of a million frames of two 640x480 cameras."""
    size = SIZES["640x480"]
    contract = Contract.from_text(CONTRACT.format(height=size[0], width=size[1]))
    each = int(bytes_a_frame / 2)
    shards, episodes = {}, []
    for number in range(MILLION // SHARD):
        shard, name = folder / SHARDS / f"s{number}", f"s{number}"
        shard.mkdir(parents=True)
        shards[name] = SHARD
        for key, column in columns(contract).items():
            if key in CAMERAS:
                ends = NpyWriter(shard / f"{key}{ENDS}", OFFSET)
                ends.append(np.arange(1, SHARD + 1, dtype=np.int64) * each)
                with (shard / f"{key}{PICTURES}").open("wb") as hole:
                    hole.truncate(SHARD * each)
            else:
                ends = NpyWriter(shard / f"{key}.npy", column)
                ends.append(np.zeros((SHARD, *column.shape), column.dtype))
            ends.close()
        for start in range(0, SHARD, EPISODE):
            place = f"{len(episodes):016d}"
            count = min(EPISODE, SHARD - start)
            episodes.append(Episode(f"bag_{place}", place, name, start, count, True, "pick"))
    Index(FORMAT, contract.text, contract.hash, shards, tuple(episodes)).save(folder)
    ran = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    assert found["windows"] == MILLION
    return {
        "open_s": round(found["open_s"], 2),
        "memory_mb": round(found["memory_mb"]),
        "gb": round(bytes_a_frame * MILLION / 1e9, 1),
        "episodes": len(episodes),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, default=600, help="of each dataset (default 600)")
    parser.add_argument("--batches", type=int, default=9, help="groups of each kind (default 9)")
    parser.add_argument("--images", choices=IMAGES, default="auto", help="default auto")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        for name in SIZES:
            found, bytes_a_frame = row(
                name, Path(made) / name, args.frames, args.batches, args.images
            )
            rows += found
        whole = {"rows": rows, "million": million(Path(made) / "million", bytes_a_frame)}
    if args.json:
        print(json.dumps(whole, indent=1))
        return
    for one in rows:
        print("  ".join(f"{key} {value}" for key, value in one.items()))
    print("million: " + "  ".join(f"{key} {value}" for key, value in whole["million"].items()))


if __name__ == "__main__":
    main()
