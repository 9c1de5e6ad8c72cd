"""How fast datasets come from LeRobot's format and go there: raw pixels a second of one core.

    python benchmark/interop.py [--json] [--size 240x320] [--frames 200]

mb_s        MB of raw pixels a second of processor time, all threads counted, of two cameras:
            export and import, as images and as video; what is not pixels is in it, too
staged      the same pictures on the way that LeRobot's own writer takes: a PNG file each by
            Pillow (level 1), read again, then put into parquet or encoded by the same codec
            with the same settings. Rebuilt here, for LeRobot is not needed
ratio       our export to it

The pictures are smooth with noise of two steps of 255, as a camera's. Aims: images at 50 MB/s, and
a ratio of 1.2.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.formats.demonstrations import Choice, Writing
from diffusion_policy_ros.data.formats.lerobot import read, write
from diffusion_policy_ros.data.formats.matched import Matched
from diffusion_policy_ros.data.formats.matching import match
from diffusion_policy_ros.data.formats.video import encode
from diffusion_policy_ros.data.importing import import_demonstrations
from diffusion_policy_ros.data.store import Recording, adding

TEXT = """
name: two_cameras
rate_hz: 20
anchor: front
observations:
  front: {{topic: /front, type: sensor_msgs/msg/Image, shape: [{0}, {1}, 3]}}
  wrist: {{topic: /wrist, type: sensor_msgs/msg/Image, shape: [{0}, {1}, 3]}}
  state: {{topic: /state, type: std_msgs/msg/Float64MultiArray, shape: [14]}}
action:
  fields: [{{name: arm, kind: joint_position, size: 14}}]
  record: {{topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [14]}}
"""
EPISODE = 50
WAYS = ("images", "av1", "h264")


def pictures(height: int, width: int, frames: int, seed: int) -> np.ndarray[Any, Any]:
    """uint8 (frames, height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    found = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        waves = [127 + 90 * np.sin((x + 4 * i) / 60 + c) * np.cos(y / 50 - c) for c in range(3)]
        image = np.stack(waves, axis=-1) + random.normal(0, 2, (height, width, 3))
        image[40:90, 20 + 2 * (i % 60) : 80 + 2 * (i % 60)] = (200, 40, 30)
        found[i] = np.clip(image, 0, 255)
    return found


def make(out: Path, height: int, width: int, frames: int) -> Contract:
    """A dataset whose pictures are raw."""
    contract = Contract.from_text(TEXT.format(height, width))
    random = np.random.default_rng(0)
    with adding(out, contract, "raw") as new:
        for number in range(0, frames, EPISODE):
            count = min(EPISODE, frames - number)
            arrays = {
                key: pictures(height, width, count, number + side)
                for side, key in enumerate(("front", "wrist"))
            }
            vectors = random.normal(size=(2, count, 14)).astype(np.float32)
            arrays |= {"state": vectors[0], "action": vectors[1]}
            new.add(Recording(f"demo_{number}", arrays))
    return contract


def staged(folder: Path, images: np.ndarray[Any, Any], way: str) -> None:
    """One camera by way of files."""
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"frame-{i:06d}.png", compress_level=1)
    files = sorted(folder.glob("*.png"))
    if way == "images":
        data = io.BytesIO()
        for file in files:
            data.write(file.read_bytes())
        return
    loaded = (np.asarray(Image.open(file).convert("RGB")) for file in files)
    encode(folder / "video.mp4", loaded, 20, way, 1)


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of all threads."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(height: int, width: int, frames: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each way."""
    make(folder / "first", 32, 32, 2)
    write(folder / "first", folder / "warm", Writing(video="h264"))  # libraries are loaded
    contract = make(folder / "ours", height, width, frames)
    raw_mb = 2 * frames * height * width * 3 / 1e6
    some = pictures(height, width, min(frames, EPISODE), 7)
    rows = []
    for way in WAYS:
        options = Writing(video="" if way == "images" else way)
        out = folder / way
        exported = seconds(lambda out=out, options=options: write(folder / "ours", out, options))
        foreign = read(out, Choice())
        matching = match(contract, foreign.columns, ours=True)
        matched = Matched(foreign, contract, matching, images="raw")
        back = folder / f"{way}_back"
        imported = seconds(lambda m=matched, back=back: import_demonstrations(m, back))
        with tempfile.TemporaryDirectory() as files:
            theirs = seconds(lambda f=files, way=way: staged(Path(f), some, way))
        staged_mb_s = some.nbytes / 1e6 / theirs
        rows.append(
            {
                "image": f"{height}x{width}",
                "way": way,
                "export_mb_s": round(raw_mb / exported, 1),
                "import_mb_s": round(raw_mb / imported, 1),
                "staged_mb_s": round(staged_mb_s, 1),
                "ratio": round(raw_mb / exported / staged_mb_s, 2),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", default="240x320", metavar="HEIGHTxWIDTH")
    parser.add_argument("--frames", type=int, default=200)
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(height, width, args.frames, Path(folder))
    if args.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
