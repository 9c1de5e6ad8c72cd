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
from diffusion_policy_ros.runtime.tail import Chunk

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
    """The chunk of a message; one without actions means hold, whoever sends it.

    Raises:
        UserError: the actions are another robot's: other components, another frame or rate.
    """
    stamp = message.header.stamp
    stamp_ns = stamp.sec * SECOND_NS + stamp.nanosec
    if not message.points:
        return Chunk(stamp_ns, np.empty((0, contract.action_dim)), contract.period_ns)
    _check_origin(message, contract)
    offsets_ns = np.array([_offset_ns(point) for point in message.points])
    even_ns = offsets_ns[0] + contract.period_ns * np.arange(len(offsets_ns))
    if np.abs(offsets_ns - even_ns).max() > JITTER_NS:
        step_s = (offsets_ns[-1] - offsets_ns[0]) / max(len(offsets_ns) - 1, 1) / SECOND_NS
        cure = f"{contract.name} has {contract.rate_hz:g} Hz: set time_from_start to i / rate"
        raise UserError(f"points {step_s:.4g} s apart, or uneven", "action chunk", cure)
    actions = np.array([point.positions for point in message.points], dtype=np.float64)
    return Chunk(stamp_ns + int(offsets_ns[0]), actions, contract.period_ns)


def _offset_ns(point: JointTrajectoryPoint) -> int:
    return int(point.time_from_start.sec * SECOND_NS + point.time_from_start.nanosec)


def _check_origin(message: JointTrajectory, contract: Contract) -> None:
    """Refuse what says itself that it is not this contract's."""
    names, frame = list(message.joint_names), message.header.frame_id
    if names != contract.action_names:
        what = f"a chunk of {', '.join(names)[:200] or 'no names'}"
        raise UserError(what, "action chunk", f"publish {', '.join(contract.action_names)}")
    if frame != contract.action.frame:
        cure = f"the actions of {contract.name} are in '{contract.action.frame}'"
        raise UserError(f"a chunk in frame '{frame[:60]}'", "action chunk", cure)
    sizes = {len(point.positions) for point in message.points}
    if sizes != {contract.action_dim}:
        cure = f"give {contract.action_dim}"
        raise UserError(f"points of {sorted(sizes)} values", "action chunk", cure)
