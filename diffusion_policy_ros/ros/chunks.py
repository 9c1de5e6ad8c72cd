"""Chunk ↔ `trajectory_msgs/JointTrajectory`.

`header.stamp` is the time of the newest observed frame, `header.frame_id` the contract's base
frame, `joint_names` the action's component names. Each point is one action, meant for the stamp
plus its `time_from_start`. Without any point it means: hold.
"""

from __future__ import annotations

import array
import struct

import numpy as np
from builtin_interfaces.msg import Duration, Time
from rclpy.serialization import serialize_message
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.playback import Chunk

SECOND_NS = 1_000_000_000
JITTER_NS = 1_000_000  # how far a point may lie from the even grid: others round to ms
STAMP, STAMP_AT = struct.Struct("=iI"), 4
"""A header's stamp in a serialized message, after the four bytes that say how it is serialized."""


def time_msg(time_ns: int) -> Time:
    """The time as ROS writes it; one before zero becomes zero."""
    sec, nanosec = divmod(max(time_ns, 0), SECOND_NS)
    return Time(sec=sec, nanosec=nanosec)


def chunk_msg(chunk: Chunk, contract: Contract) -> JointTrajectory:
    """The message of a chunk."""
    message = hold_msg(chunk.stamp_ns, contract)
    for i, action in enumerate(chunk.actions):
        point = JointTrajectoryPoint(positions=array.array("d", action))
        sec, nanosec = divmod(i * chunk.period_ns, SECOND_NS)
        point.time_from_start = Duration(sec=sec, nanosec=nanosec)
        message.points.append(point)
    return message


class ChunkBytes:
    """The message of every chunk of a contract, serialized.

    All of one shape differ only in their stamp and numbers, which are written in place: it takes
    half the time of filling a message and having it serialized.

    Args:
        contract: gives names and frame.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._shape: tuple[int, int] = (0, 0)

    def of(self, chunk: Chunk) -> bytes:
        """What to publish of a chunk."""
        shape = (len(chunk.actions), chunk.period_ns)
        if shape != self._shape:
            self._lay_out(*shape)
        STAMP.pack_into(self._data, STAMP_AT, *divmod(max(chunk.stamp_ns, 0), SECOND_NS))
        self._numbers[:] = chunk.actions
        return bytes(self._data)

    def _lay_out(self, n: int, period_ns: int) -> None:
        """A message of this shape, and a view of its actions: they are found by their numbers."""
        actions = np.pi + np.arange(n * self._contract.action_dim, dtype=np.float64)
        actions = actions.reshape(n, -1)
        message = chunk_msg(Chunk(0, actions, period_ns), self._contract)
        self._data = bytearray(serialize_message(message))
        places = [self._data.index(action.tobytes()) for action in actions]
        step = places[-1] - places[-2] if n > 1 else 0  # all points are as long
        strides = (step, actions.itemsize)
        self._numbers = np.ndarray(actions.shape, np.float64, self._data, places[0], strides)
        self._shape = (n, period_ns)


def hold_msg(time_ns: int, contract: Contract) -> JointTrajectory:
    """The message that means: hold where you are."""
    header = Header(stamp=time_msg(time_ns), frame_id=contract.action.frame)
    return JointTrajectory(header=header, joint_names=contract.action_names)


def chunk_of(message: JointTrajectory, contract: Contract) -> Chunk:
    """The chunk of a message; one without actions means hold.

    Raises:
        UserError: the actions are another robot's, or not evenly spaced in time.
    """
    if message.points and list(message.joint_names) != contract.action_names:
        raise UserError(
            f"a chunk of {', '.join(message.joint_names)[:200] or 'no names'}",
            "action chunk",
            f"publish {', '.join(contract.action_names)}",
        )
    stamp = message.header.stamp
    stamp_ns = stamp.sec * SECOND_NS + stamp.nanosec
    if not message.points:
        return Chunk(stamp_ns, np.empty((0, contract.action_dim)), contract.period_ns)
    offsets = [
        p.time_from_start.sec * SECOND_NS + p.time_from_start.nanosec for p in message.points
    ]
    period_ns = offsets[1] - offsets[0] if len(offsets) > 1 else contract.period_ns
    return Chunk(stamp_ns + offsets[0], _actions(message, contract, offsets, period_ns), period_ns)


def _actions(
    message: JointTrajectory, contract: Contract, offsets: list[int], period_ns: int
) -> np.ndarray:
    """(n, Da), after checking the points' sizes and times."""
    sizes = {len(point.positions) for point in message.points}
    if sizes != {contract.action_dim}:
        raise UserError(
            f"points of {sorted(sizes)} values", "action chunk", f"give {contract.action_dim}"
        )
    even = [offsets[0] + i * period_ns for i in range(len(offsets))]
    if period_ns <= 0 or max(abs(a - b) for a, b in zip(even, offsets, strict=True)) > JITTER_NS:
        raise UserError(
            "points are not evenly spaced in time",
            "action chunk",
            "set time_from_start to i / rate",
        )
    return np.array([point.positions for point in message.points], dtype=np.float64)
