"""The tf tree: where one frame is in another at a time, from ``/tf`` and ``/tf_static``.

Each edge is interpolated at the time that is asked for (translation linearly, rotation by slerp,
Shoemake 1985), and the chain over the nearest common frame is composed. Past an edge's newest
transform the newest one stands, as long as it is young enough.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.contract.messages import TF_STATIC
from diffusion_policy_ros.contract.stream import Stream
from diffusion_policy_ros.errors import UserError

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
KEPT_NS = 5_000_000_000
"""How long transforms are kept where frames follow soon."""
LONGEST = 100
"""Frames of a chain beyond which it is a loop."""


class Pose(NamedTuple):
    """A rigid transform: translation, and rotation x y z w."""

    at: Vector
    turn: Quaternion

    def then(self, inner: Pose) -> Pose:
        """This, and the inner one in it."""
        x, y, z = rotated(self.turn, inner.at)
        a, b, c = self.at
        return Pose((a + x, b + y, c + z), product(self.turn, inner.turn))

    def inverse(self) -> Pose:
        """The same from the other end."""
        x, y, z, w = self.turn
        back = (-x, -y, -z, w)
        a, b, c = rotated(back, self.at)
        return Pose((-a, -b, -c), back)


IDENTITY = Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def product(p: Quaternion, q: Quaternion) -> Quaternion:
    """The turn q, then p."""
    a, b, c, d = p
    x, y, z, w = q
    return (
        d * x + a * w + b * z - c * y,
        d * y - a * z + b * w + c * x,
        d * z + a * y - b * x + c * w,
        d * w - a * x - b * y - c * z,
    )


def rotated(q: Quaternion, v: Vector) -> Vector:
    """A vector turned."""
    x, y, z, w = q
    a, b, c = v
    s, t, u = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
    return (
        a + w * s + y * u - z * t,
        b + w * t + z * s - x * u,
        c + w * u + x * t - y * s,
    )


def slerp(p: Quaternion, q: Quaternion, share: float) -> Quaternion:
    """Between two turns, the short way."""
    dot = sum(a * b for a, b in zip(p, q, strict=True))
    sign = 1.0 if dot >= 0 else -1.0
    angle = math.acos(min(1.0, abs(dot)))
    if angle < 1e-6:
        first, second = 1.0 - share, share
    else:
        first, second = (math.sin(s * angle) / math.sin(angle) for s in (1.0 - share, share))
    mixed = [first * a + sign * second * b for a, b in zip(p, q, strict=True)]
    size = math.sqrt(sum(a * a for a in mixed))
    x, y, z, w = (a / size for a in mixed)
    return (x, y, z, w)


@dataclass
class _Edge:
    """Where a frame is in its parent, over time."""

    parent: str
    static: bool
    times: list[int] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)

    def add(self, stamp: int, pose: Pose, kept_ns: int) -> None:
        if self.static:
            self.times, self.poses = [stamp], [pose]
            return
        place = bisect.bisect_right(self.times, stamp)
        if place and self.times[place - 1] == stamp:
            return
        self.times.insert(place, stamp)
        self.poses.insert(place, pose)
        old = bisect.bisect_left(self.times, self.times[-1] - kept_ns)
        del self.times[:old], self.poses[:old]

    def at(self, time_ns: int) -> tuple[Pose, int] | None:
        """The pose at a time, and how old it is; None where all are later."""
        if self.static:
            return self.poses[0], 0
        after = bisect.bisect_right(self.times, time_ns)
        if not after:
            return None
        before, pose = self.times[after - 1], self.poses[after - 1]
        if after == len(self.times) or before == time_ns:
            return pose, time_ns - before
        later = self.poses[after]
        share = (time_ns - before) / (self.times[after] - before)
        x, y, z = (a + share * (b - a) for a, b in zip(pose.at, later.at, strict=True))
        return Pose((x, y, z), slerp(pose.turn, later.turn, share)), 0


class Transforms:
    """Every transform that was heard.

    Args:
        kept_ns: how long transforms are kept beyond the newest of their edge.
    """

    def __init__(self, kept_ns: int = KEPT_NS) -> None:
        self._kept_ns = kept_ns
        self._edges: dict[str, _Edge] = {}
        self._parents: dict[str, set[str]] = {}

    def clear(self) -> None:
        """Forget what moves; what is static holds."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.static}
        self._parents = {child: {edge.parent} for child, edge in self._edges.items()}

    def push(self, topic: str, msg: Any) -> None:
        """Take a ``tf2_msgs/TFMessage`` of ``/tf`` or ``/tf_static``."""
        for one in msg.transforms:
            parent, child = _name(one.header.frame_id), _name(one.child_frame_id)
            stamp = one.header.stamp.sec * 1_000_000_000 + one.header.stamp.nanosec
            t, r = one.transform.translation, one.transform.rotation
            edge = self._edges.get(child)
            if edge is None or edge.parent != parent:
                edge = self._edges[child] = _Edge(parent, topic == TF_STATIC)
            self._parents.setdefault(child, set()).add(parent)
            edge.add(stamp, Pose((t.x, t.y, t.z), (r.x, r.y, r.z, r.w)), self._kept_ns)

    def newest_ns(self, stream: Stream) -> int | None:
        """Up to when a stream's chain is known; None where it is not connected."""
        try:
            moving = [self._edges[c] for c in self._chain(stream) if not self._edges[c].static]
        except UserError:
            return None
        return min((edge.times[-1] for edge in moving), default=1 << 62)

    def at(self, stream: Stream, time_ns: int) -> tuple[np.ndarray[Any, Any], int]:
        """Where a stream's child is in its parent, or how turned; and how old that is, ns.

        Raises:
            UserError: they are not connected, or nothing is known of then; a loop, two parents.
        """
        assert stream.tf is not None
        self._chain(stream)
        oldest, ends = 0, []
        common = self._common(stream)
        for frame in (stream.tf.parent, stream.tf.child):
            pose = IDENTITY
            for child in self._up(frame):
                if child == common:
                    break
                edge = self._edges[child]
                found = edge.at(time_ns)
                if found is None:
                    raise UserError(f"no transform of {child} at or before the frame")
                pose, oldest = found[0].then(pose), max(oldest, found[1])
            ends.append(pose)
        whole = ends[0].inverse().then(ends[1])
        values = whole.at if stream.field == "translation" else whole.turn
        return np.array(values, np.float32), oldest

    def _up(self, frame: str) -> Iterator[str]:
        """A frame and those above it.

        Raises:
            UserError: they come round again, or one has two parents.
        """
        seen = [frame]
        yield frame
        while frame in self._edges:
            if len(parents := self._parents[frame]) > 1:
                what = f"{frame} has two parents, {' and '.join(sorted(parents))}"
                raise UserError(what, "", "end one of the two publishers")
            frame = self._edges[frame].parent
            if frame in seen or len(seen) > LONGEST:
                way = " in ".join([*seen, frame])
                raise UserError(f"tf goes round: {way}", "", "mend its publisher")
            seen.append(frame)
            yield frame

    def _common(self, stream: Stream) -> str:
        assert stream.tf is not None
        above = list(self._up(stream.tf.parent))
        return next((frame for frame in self._up(stream.tf.child) if frame in above), "")

    def _chain(self, stream: Stream) -> list[str]:
        """The frames whose edges lead from one to the other.

        Raises:
            UserError: there is no such way.
        """
        assert stream.tf is not None
        parent, child, common = stream.tf.parent, stream.tf.child, self._common(stream)
        if not common:
            for frame in (parent, child):
                if frame not in self._edges and frame not in self._roots():
                    known = ", ".join(sorted({*self._edges, *self._roots()}))[:200]
                    raise UserError(f"tf has no frame {frame}", "", f"it has {known or 'none'}")
            raise UserError(
                f"tf does not connect {child} with {parent}", "", "publish what is between"
            )
        return [frame for end in (parent, child) for frame in _until(self._up(end), common)]

    def _roots(self) -> set[str]:
        return {edge.parent for edge in self._edges.values()}


def _until(frames: Iterator[str], last: str) -> Iterator[str]:
    for frame in frames:
        if frame == last:
            return
        yield frame


def _name(frame: str) -> str:
    """Without the slash that tf1 wrote."""
    return frame.removeprefix("/")
