"""Where a chunk leads, as `nav_msgs/Path` for RViz and Foxglove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Path
from std_msgs.msg import Header

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.ros.chunks import time_msg
from diffusion_policy_ros.runtime.axes import goals
from diffusion_policy_ros.runtime.tail import Chunk


def path_msg(chunk: Chunk, contract: Contract, measured: Mapping[str, Any]) -> Path:
    """Where the actions lead, of the first position; empty where the action moves none. Without a
    state it begins with the first action.

    Args:
        chunk: its actions.
        contract: says what they mean, and their limits.
        measured: observation key → array, where the path begins.
    """
    path = Path(header=Header(stamp=time_msg(chunk.stamp_ns), frame_id=contract.action.frame))
    position = next(iter(contract.action.of_role("position")), None)
    if position is None:
        return path
    mates = [p for p in contract.action.of_role("rotation") if p.send.topic == position.send.topic]
    start = {
        part.name: np.asarray(measured[part.state], dtype=float)
        for part in contract.action.fields
        if part.state in measured
    }
    # The lead is limited against the robot as it will be, which nobody knows yet.
    for i, goal in enumerate(goals(contract, start, chunk.actions)):
        if position.name not in goal:
            continue
        stamp = time_msg(chunk.stamp_ns + i * chunk.period_ns)
        header = Header(stamp=stamp, frame_id=position.frame)
        turn = goal.get(mates[0].name) if mates else None
        path.poses.append(PoseStamped(header=header, pose=_pose(goal[position.name], turn)))
    return path


def _pose(position: Any, quaternion: Any) -> Pose:
    x, y, z = (float(v) for v in position)
    pose = Pose(position=Point(x=x, y=y, z=z))
    if quaternion is not None:
        x, y, z, w = (float(v) for v in quaternion)
        pose.orientation = Quaternion(x=x, y=y, z=z, w=w)
    return pose
