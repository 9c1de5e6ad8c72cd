"""Where a chunk leads, as `nav_msgs/Path` for RViz and Foxglove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Path
from std_msgs.msg import Header

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.ros.chunks import time_msg
from diffusion_policy_ros.runtime.commander import Commander, SetPoint
from diffusion_policy_ros.runtime.playback import Chunk


def path_msg(chunk: Chunk, contract: Contract, measured: Mapping[str, Any]) -> Path:
    """The poses that playback commands after each action; empty where the action moves no pose.

    Args:
        chunk: its actions.
        contract: says what they mean, and their limits.
        measured: observation key → array, where the path begins.
    """
    frame, commander = contract.action.frame, Commander(contract)
    path = Path(header=Header(stamp=time_msg(chunk.stamp_ns), frame_id=frame))
    set_point, start = commander.anchor(measured), chunk.stamp_ns
    for i in range(len(chunk.actions) + 1):
        if set_point.position is not None:
            header = Header(stamp=time_msg(start + i * chunk.period_ns), frame_id=frame)
            path.poses.append(PoseStamped(header=header, pose=_pose(set_point)))
        if i < len(chunk.actions):
            # The lead is limited against the robot as it will be, which nobody knows yet.
            set_point = commander.apply(chunk.actions[i], {})
    return path


def _pose(set_point: SetPoint) -> Pose:
    assert set_point.position is not None, "there is a pose"
    x, y, z = (float(v) for v in set_point.position)
    pose = Pose(position=Point(x=x, y=y, z=z))
    if set_point.quaternion is not None:
        x, y, z, w = (float(v) for v in set_point.quaternion)
        pose.orientation = Quaternion(x=x, y=y, z=z, w=w)
    return pose
