"""How fast bags become a dataset: two cameras, a pose and a gripper at 20 Hz, on one core.

    python benchmark/convert.py [--json] [--seconds S] [--folder DIR]

A row is one size of image. `realtime_factor` is seconds of recording converted in a second and
`mb_per_s` megabytes of bag, both of the fastest run; `median_realtime_factor` is of the middle.
`rosbags_read_factor` is what rosbags needs only to read and decode the same bag, in the same run:
machines differ, ratios less. Images are kept at their size but for the row that says otherwise;
there nearly all the time goes into averaging pixels. The bag was just written, so it is cached.
`windows_per_s` are windows drawn at random for training, images included, and
`state_windows_per_s` those of the same dataset without its images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rosbags.highlevel import AnyReader

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, serialize
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import WindowDataset

RATE_HZ = 20
PERIOD_NS = 1_000_000_000 // RATE_HZ
SECONDS = {"84x84": 120.0, "640x480": 20.0, "640x480 to 84x84": 20.0}
AIMS = {"84x84": 300.0, "640x480": 50.0}
CASES = {
    "84x84": (84, 84, (84, 84)),
    "640x480": (640, 480, (640, 480)),
    "640x480 to 84x84": (640, 480, (84, 84)),
}
CONTRACT = """
name: benchmark
rate_hz: 20
anchor: left
observations:
  left: {{topic: /left/image_raw, type: sensor_msgs/msg/Image, shape: [{height}, {width}, 3]}}
  right: {{topic: /right/image_raw, type: sensor_msgs/msg/Image, shape: [{height}, {width}, 3]}}
  position: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  orientation: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
  gripper: {{topic: /gripper, type: sensor_msgs/msg/JointState, names: [finger]}}
action:
  fields:
    - {{name: translation, kind: delta_position, state: position}}
    - {{name: rotation, kind: delta_axis_angle, state: orientation}}
    - {{name: gripper, kind: binary}}
  record: {{topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}}
"""


def make_bag(path: Path, contract: Contract, width: int, height: int, frames: int) -> int:
    """Write a recording and return its bytes."""
    make = {
        name: message_types(name)
        for name in (
            "builtin_interfaces/msg/Time",
            "builtin_interfaces/msg/Duration",
            "std_msgs/msg/Header",
            "geometry_msgs/msg/Point",
            "geometry_msgs/msg/Quaternion",
            "geometry_msgs/msg/Pose",
            "geometry_msgs/msg/PoseStamped",
            "sensor_msgs/msg/Image",
            "sensor_msgs/msg/JointState",
            "trajectory_msgs/msg/JointTrajectory",
            "trajectory_msgs/msg/JointTrajectoryPoint",
        )
    }
    rng, none = np.random.default_rng(0), np.zeros(0)
    pixels = rng.integers(0, 256, (4, height * width * 3), dtype=np.uint8)
    with BagWriter(path, contract.recorded_topics) as writer:
        for i in range(frames):
            ns = 1_000_000_000 + i * PERIOD_NS
            stamp = make["builtin_interfaces/msg/Time"](sec=ns // 10**9, nanosec=ns % 10**9)
            header = make["std_msgs/msg/Header"](stamp=stamp, frame_id="base")
            at = make["geometry_msgs/msg/Point"](x=0.01 * i, y=0.0, z=0.2)
            turn = make["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0)
            point = make["trajectory_msgs/msg/JointTrajectoryPoint"](
                positions=np.full(7, 0.01),
                velocities=none,
                accelerations=none,
                effort=none,
                time_from_start=make["builtin_interfaces/msg/Duration"](sec=0, nanosec=0),
            )
            image = make["sensor_msgs/msg/Image"](
                header=header,
                height=height,
                width=width,
                encoding="rgb8",
                is_bigendian=0,
                step=3 * width,
                data=pixels[i % 4],
            )
            messages = {
                "/pose": make["geometry_msgs/msg/PoseStamped"](
                    header=header,
                    pose=make["geometry_msgs/msg/Pose"](position=at, orientation=turn),
                ),
                "/gripper": make["sensor_msgs/msg/JointState"](
                    header=header,
                    name=["finger"],
                    position=np.zeros(1),
                    velocity=none,
                    effort=none,
                ),
                "/left/image_raw": image,
                "/right/image_raw": image,
                "/command": make["trajectory_msgs/msg/JointTrajectory"](
                    header=header, joint_names=[f"a{n}" for n in range(7)], points=[point]
                ),
            }
            for n, (topic, msg) in enumerate(messages.items()):
                writer.write(
                    topic, ns + n * 1_000_000, serialize(contract.recorded_topics[topic], msg)
                )
    return sum(file.stat().st_size for file in path.iterdir())


def measure(
    folder: Path, image: str, seconds: float, repeats: int
) -> dict[str, float | str | int]:
    """Convert one bag several times; the fastest run counts."""
    width, height, stored = CASES[image]
    contract = Contract.from_text(CONTRACT.format(width=stored[0], height=stored[1]))
    bag, frames = folder / "bag", round(seconds * RATE_HZ)
    size = make_bag(bag, contract, width, height, frames)
    times = []
    for number in range(repeats + 1):
        out = folder / f"dataset{number}"
        start = time.perf_counter()
        report = convert([bag], contract, out, options=Options(images="raw"))
        times.append(time.perf_counter() - start)
        assert report.frames == frames, report
        if number == repeats:
            windows, states = windows_per_s(out, True), windows_per_s(out, False)
        shutil.rmtree(out)
    read = read_with_rosbags(bag)
    shutil.rmtree(bag)
    best, middle = min(times[1:]), float(np.median(times[1:]))  # the first run warms up
    return {
        "image": image,
        "stored": "x".join(map(str, stored)),
        "realtime_factor": round(seconds / best, 1),
        "median_realtime_factor": round(seconds / middle, 1),
        "mb_per_s": round(size / 1e6 / best, 1),
        "rosbags_read_factor": round(seconds / read, 1),
        "frames": frames,
        "seconds": round(best, 3),
        "repeats": repeats,
        "windows_per_s": round(windows),
        "state_windows_per_s": round(states),
    }


def read_with_rosbags(bag: Path) -> float:
    """Seconds that rosbags takes to read and decode every message, the faster of two runs."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        with AnyReader([bag]) as reader:
            for connection, _, raw in reader.messages():
                reader.deserialize(raw, connection.msgtype)
        times.append(time.perf_counter() - start)
    return min(times)


def windows_per_s(path: Path, images: bool, batch: int = 64) -> float:
    """Windows of two frames and 16 actions a second, drawn at random."""
    windows = WindowDataset(path, n_obs_steps=2, horizon=16)
    if not images:
        streams = windows.contract.observations
        vectors = {key: stream for key, stream in streams.items() if not stream.is_image}
        windows.contract = dataclasses.replace(windows.contract, observations=vectors)
    rng, count = np.random.default_rng(0), 0
    start = time.perf_counter()
    while time.perf_counter() - start < 1.0:
        windows.batch(rng.integers(0, len(windows), batch))
        count += batch
    return count / (time.perf_counter() - start)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument(
        "--seconds", type=float, help="length of the recordings (default 120, of large images 20)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="conversions, of which the fastest counts (default 5)",
    )
    parser.add_argument("--folder", help="where to write the bag and the dataset")
    args = parser.parse_args()
    rows = []
    for image in CASES:
        with tempfile.TemporaryDirectory(prefix="benchmark_", dir=args.folder) as folder:
            rows.append(measure(Path(folder), image, args.seconds or SECONDS[image], args.repeats))
        if not args.json:
            aim = f" (aim {AIMS[image]:g})" if image in AIMS else ""
            row = rows[-1]
            print(
                f"{image:>18}  {row['realtime_factor']:>7} x real time{aim}, "
                f"{row['mb_per_s']} MB/s",
                flush=True,
            )
    if args.json:
        print(json.dumps(rows, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
