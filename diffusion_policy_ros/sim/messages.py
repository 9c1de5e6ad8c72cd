"""The lift task's observations and actions as ROS messages; how they are made is `stamped.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffusion_policy_ros.sim.stamped import (
    IMAGE,
    JOINTS,
    POSE,
    TRAJECTORY,
    Arrays,
    Stamped,
    Stamper,
    Types,
    numpy_array,
    ros_array,
)

BASE_FRAME = "base"
IMAGE_TOPICS = {
    "agentview_image": ("/agentview/image_raw", "agentview"),
    "robot0_eye_in_hand_image": ("/eye_in_hand/image_raw", "eye_in_hand"),
}
COMMAND_TOPIC = "/eef_command"
TOPICS = {
    "/agentview/image_raw": IMAGE,
    "/eye_in_hand/image_raw": IMAGE,
    "/eef_pose": POSE,
    "/gripper/joint_states": JOINTS,
    "/object_pose": POSE,
    "/gripper_to_object": POSE,
}

__all__ = ["TRAJECTORY", "Stamped", "command_message", "messages", "numpy_array", "ros_array"]


def messages(
    obs: Mapping[str, np.ndarray], stamp_ns: int, types: Types, arrays: Arrays = numpy_array
) -> list[Stamped]:
    """What the robot publishes at one instant: cameras first, as far as `obs` has them.

    Args:
        obs: observation of `SimArm`.
        stamp_ns: header stamp of every message.
        types: message constructors by name.
        arrays: makes the numeric sequences; `ros_array` for rclpy.
    """
    make = Stamper(stamp_ns, types, arrays)
    offset, none = obs["gripper_to_object_pos"], np.array([0.0, 0.0, 0.0, 1.0])
    return [
        *(
            make.image(topic, frame, obs[key])
            for key, (topic, frame) in IMAGE_TOPICS.items()
            if key in obs
        ),
        make.pose("/eef_pose", BASE_FRAME, obs["robot0_eef_pos"], obs["robot0_eef_quat"]),
        make.pose("/object_pose", BASE_FRAME, obs["object_pos"], obs["object_quat"]),
        # An offset in base axes that begins at the tool: no frame of the robot's own has that.
        make.pose("/gripper_to_object", "tool_parallel_to_base", offset, none),
        make.joints(
            "/gripper/joint_states", BASE_FRAME, ("left", "right"), obs["robot0_gripper_qpos"]
        ),
    ]


def command_message(
    action: np.ndarray,
    stamp_ns: int,
    names: Sequence[str],
    types: Types,
    arrays: Arrays = numpy_array,
) -> Stamped:
    """An action (n,) as it is recorded; see `Stamper.command`."""
    return Stamper(stamp_ns, types, arrays).command(COMMAND_TOPIC, BASE_FRAME, names, action)
