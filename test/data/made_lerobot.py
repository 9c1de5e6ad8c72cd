"""LeRobot datasets: those that LeRobot 0.6.1 itself wrote, and copies with something broken."""

import json
import shutil
from pathlib import Path

import numpy as np

INTEROP = Path(__file__).parent.parent / "golden" / "interop"
CONTRACT = """
name: mini_arm
rate_hz: 10
anchor: front_image
observations:
  front_image: {topic: /front, type: sensor_msgs/msg/Image, shape: [64, 64, 3]}
  joints:
    topic: /joint_states
    type: sensor_msgs/msg/JointState
    field: position
    names: [joint_6, joint_0, joint_1, joint_2, joint_3, joint_4, joint_5]
  gripper: {topic: /gripper, type: sensor_msgs/msg/JointState, field: position, names: [gripper]}
action:
  fields:
    - {name: translation, kind: delta_position}
    - {name: rotation, kind: delta_axis_angle}
    - {name: gripper, kind: scalar}
  record: {topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [7]}
"""
LENGTHS = (12, 7, 20)
BY_TASK = (12, 7, 10, 10)
"""The third episode's task changes in its midst."""
SAME_ACTION = ("--map", "action=action")


def truth(name="dataset_truth"):
    """Arrays that were given to LeRobot, or that it gave back."""
    return dict(np.load(INTEROP / f"{name}.npz"))


def copied(tmp_path, name="dataset_images"):
    """A dataset that may be changed."""
    return Path(shutil.copytree(INTEROP / name, tmp_path / name))


def change_info(root, **changes):
    """Replace keys of info.json."""
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, **changes}))


def as_v21(source, root):
    """The images dataset as LeRobot 0.3 laid it out: a file an episode, JSON lines."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(source / "data/chunk-000/file-000.parquet")
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    info = json.loads((source / "meta" / "info.json").read_text())
    info |= {
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tasks = ["lift the block", "put the block down"]
    lines = [json.dumps({"task_index": i, "task": task}) for i, task in enumerate(tasks)]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(lines))
    lines, start = [], 0
    for number, length in enumerate(LENGTHS):
        part = table.slice(start, length)
        parquet.write_table(part, root / f"data/chunk-000/episode_{number:06d}.parquet")
        lines.append(json.dumps({"episode_index": number, "tasks": tasks[:1], "length": length}))
        start += length
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    return root
