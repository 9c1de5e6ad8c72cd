"""Message → set-points: what `encoders.py` is for the other direction, as a robot's controller.

Only a simulated robot needs it, to be led by an action player.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node

from diffusion_policy_ros.contract import Contract, Output
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.message_types import message_class
from diffusion_policy_ros.sim.simulator import SetPoint, Vector


class FollowedPlayer:
    """Hears an action player's set-points, and says all that has been heard at each one.

    A gripper's message alone is none that a robot moves by: it is told with what else there is.

    Args:
        node: that subscribes.
        player: its name, as ``/action_player``.
        contract: the robot.
        on_set_point: is told field → value.

    Raises:
        UserError: set-points are sent as what cannot be followed here.
    """

    def __init__(
        self,
        node: Node,
        player: str,
        contract: Contract,
        on_set_point: Callable[[SetPoint], None],
    ) -> None:
        self._told: dict[str, Vector] = {}
        self._on_set_point = on_set_point
        self._moves = any(self._is_motion(output) for output in contract.outputs)
        for output in contract.outputs:
            if output.type not in DECODERS:
                what = f"a simulator does not follow {output.type} on {output.topic}"
                raise UserError(what, contract.name, f"send one of {', '.join(DECODERS)}")
            topic = output.topic.replace("~", player, 1)
            heard = functools.partial(self._on_message, output)
            node.create_subscription(message_class(output.type), topic, heard, 10)

    def _on_message(self, output: Output, message: Any) -> None:
        self._told |= DECODERS[output.type](output, message)
        if self._is_motion(output) or not self._moves:
            self._on_set_point(dict(self._told))

    @staticmethod
    def _is_motion(output: Output) -> bool:
        return any(part.moves_arm for part in output.fields)


def _pose(output: Output, message: Any) -> dict[str, Vector]:
    place, turn = message.pose.position, message.pose.orientation
    values = {
        "position": np.array([place.x, place.y, place.z]),
        "rotation": np.array([turn.x, turn.y, turn.z, turn.w]),
    }
    return {part.name: values[part.role] for part in output.fields}


def _values(output: Output, values: Vector) -> dict[str, Vector]:
    """Components in order; a binary is +1 at what closed is sent as."""
    found, end = {}, 0
    for part in output.fields:
        size = 1 if part.role == "binary" else part.size
        value = np.array(values[end : end + size], float)
        if part.role == "binary":
            opening = (value - part.send.open) / (part.send.closed - part.send.open)
            value = 2.0 * opening - 1.0
        elif part.send.scale:
            value = value * np.array(part.send.scale)
        found[part.name], end = value, end + size
    return found


def _first_point(output: Output, message: Any) -> dict[str, Vector]:
    return _values(output, message.points[0].positions) if message.points else {}


DECODERS: dict[str, Callable[[Output, Any], dict[str, Vector]]] = {
    "geometry_msgs/msg/PoseStamped": _pose,
    "std_msgs/msg/Float64MultiArray": lambda output, message: _values(output, message.data),
    "std_msgs/msg/Float64": lambda output, message: _values(output, np.array([message.data])),
    "sensor_msgs/msg/JointState": lambda output, message: _values(output, message.position),
    "trajectory_msgs/msg/JointTrajectory": _first_point,
}
"""Type of a message → what makes set-points of it."""
