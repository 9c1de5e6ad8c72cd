"""The tf tree: where one frame is in another at a time, from ``/tf`` and ``/tf_static``.

Each edge is interpolated at the time that is asked for (translation linearly, rotation by slerp,
Shoemake 1985), and the chain over the nearest common frame is composed. Past an edge's newest
transform the newest one stands, as long as it is young enough.

Whoever publishes an edge is believed about its time until a later message says otherwise: what is
stamped far ahead of it is forgotten again. A frame with two publishers, of other parents or on
both topics, is refused as long as both tell of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from diffusion_policy_ros.contract.messages import TF, TF_STATIC
from diffusion_policy_ros.contract.stream import Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import LARGEST, checked, is_unit

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
KEPT_NS = 5_000_000_000
"""How long transforms are kept where frames follow soon, and who told them is believed to go on;
nothing is known of what lies between two that are farther apart."""
BACK_NS = 1_000_000_000
"""A transform that is stamped so much before others of its edge says that those were wrong, or
that time has begun anew."""
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
    """Where a frame is in its parent, over time, as one of the topics tells it."""

    child: str
    parent: str
    static: bool
    times: list[int] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)

    def add(self, stamp: int, pose: Pose, kept_ns: int) -> None:
        if self.static:
            self.times, self.poses = [stamp], [pose]
            return
        wrong = bisect.bisect_right(self.times, stamp + BACK_NS)
        del self.times[wrong:], self.poses[wrong:]
        # Before the new one is among them: its stamp may be wrong.
        old = bisect.bisect_left(self.times, self.times[-1] - kept_ns) if self.times else 0
        del self.times[:old], self.poses[:old]
        place = bisect.bisect_right(self.times, stamp)
        if place and self.times[place - 1] == stamp:
            return
        self.times.insert(place, stamp)
        self.poses.insert(place, pose)

    def tells(self, time_ns: int) -> bool:
        """Whether it is told of about a time."""
        begin = bisect.bisect_left(self.times, time_ns - KEPT_NS)
        end = bisect.bisect_right(self.times, time_ns + KEPT_NS)
        return self.static or begin < end

    def at(self, time_ns: int) -> tuple[Pose, int]:
        """The pose at a time, and how old it is.

        Raises:
            UserError: all are later, or it is no pose.
        """
        if self.static:
            return self._pose(0), 0
        after = bisect.bisect_right(self.times, time_ns)
        if not after:
            what = f"no transform of {self.child} at or before the frame"
            ahead_s = (self.times[0] - time_ns) / 1e9
            raise UserError(f"{what}; the first is stamped {ahead_s:.3f} s after it")
        before, pose = self.times[after - 1], self._pose(after - 1)
        gap = self.times[after] - before if after < len(self.times) else KEPT_NS + 1
        if before == time_ns or gap > KEPT_NS:
            return pose, time_ns - before
        later, share = self._pose(after), (time_ns - before) / gap
        x, y, z = (a + share * (b - a) for a, b in zip(pose.at, later.at, strict=True))
        return Pose((x, y, z), slerp(pose.turn, later.turn, share)), 0

    def _pose(self, index: int) -> Pose:
        pose = self.poses[index]
        if math.hypot(*pose.at) <= LARGEST and is_unit(pose.turn):
            return pose
        what = f"the transform of {self.child} in {self.parent} is none"
        raise UserError(f"{what}: {list(pose.at)}, {list(pose.turn)}", "", "check its publisher")


class Transforms:
    """Every transform that was heard.

    Args:
        kept_ns: how long transforms are kept beyond the newest of their edge.
    """

    def __init__(self, kept_ns: int = KEPT_NS) -> None:
        self._kept_ns = kept_ns
        self._edges: dict[str, dict[tuple[str, bool], _Edge]] = {}

    def clear(self) -> None:
        """Forget what moves; what is static holds, as it was told last."""
        static = {
            child: [told for told in edges.items() if told[1].static][-1:]
            for child, edges in self._edges.items()
        }
        self._edges = {child: dict(told) for child, told in static.items() if told}

    def push(self, topic: str, msg: Any) -> None:
        """Take a ``tf2_msgs/TFMessage`` of ``/tf`` or ``/tf_static``."""
        static = topic == TF_STATIC
        for one in msg.transforms:
            parent, child = _name(one.header.frame_id), _name(one.child_frame_id)
            stamp = one.header.stamp.sec * 1_000_000_000 + one.header.stamp.nanosec
            t, r = one.transform.translation, one.transform.rotation
            edges = self._edges.setdefault(child, {})
            edge = edges.pop((parent, static), None) or _Edge(child, parent, static)
            edges[parent, static] = edge  # the last one is the newest
            edge.add(stamp, Pose((t.x, t.y, t.z), (r.x, r.y, r.z, r.w)), self._kept_ns)

    def newest_ns(self, stream: Stream, time_ns: int) -> int | None:
        """Up to when a stream's chain, as it is at a time, is known; None where it is not
        connected.
        """
        try:
            ways = self._ways(stream, time_ns)
            chain = [self._edge(child, time_ns) for way in ways for child in way]
        except UserError:
            return None
        return min((edge.times[-1] for edge in chain if not edge.static), default=1 << 62)

    def at(self, stream: Stream, time_ns: int) -> tuple[np.ndarray[Any, Any], int]:
        """Where a stream's child is in its parent, or how turned; and how old that is, ns.

        Raises:
            UserError: they are not connected, or nothing is known of then; a loop, two publishers
                of a frame, or numbers that are no pose.
        """
        oldest, ends = 0, []
        for way in self._ways(stream, time_ns):
            pose = IDENTITY
            for child in way:
                found, age = self._edge(child, time_ns).at(time_ns)
                pose, oldest = found.then(pose), max(oldest, age)
            ends.append(pose)
        whole = ends[0].inverse().then(ends[1])
        values = whole.at if stream.field == "translation" else whole.turn
        return checked(stream, np.array(values)), oldest

    def _edge(self, child: str, time_ns: int) -> _Edge:
        """Where a frame is, as it is told at a time.

        Raises:
            UserError: two tell it.
        """
        edges = list(self._edges[child].values())
        telling = [edge for edge in edges if edge.tells(time_ns)] if len(edges) > 1 else edges
        if len(telling) <= 1:
            return telling[0] if telling else edges[-1]
        parents = sorted({edge.parent for edge in telling})
        what = f"{child} has two parents, {' and '.join(parents)}"
        if len(parents) == 1:
            what = f"{child} is told of on {TF} and on {TF_STATIC}"
        cure = "end one of the two publishers"
        if any(edge.static for edge in telling):
            cure += f"; what {TF_STATIC} told is known until a node is configured anew"
        raise UserError(what, "", cure)

    def _up(self, frame: str, time_ns: int) -> Iterator[str]:
        """A frame and those above it.

        Raises:
            UserError: they come round again, or two tell where one is.
        """
        seen = [frame]
        yield frame
        while frame in self._edges:
            frame = self._edge(frame, time_ns).parent
            if frame in seen or len(seen) > LONGEST:
                way = " in ".join([*seen, frame])
                raise UserError(f"tf goes round: {way}", "", "mend its publisher")
            seen.append(frame)
            yield frame

    def _ways(self, stream: Stream, time_ns: int) -> list[list[str]]:
        """The frames whose edges lead from the parent, and from the child, to what both are in.

        Raises:
            UserError: there is no such way.
        """
        assert stream.tf is not None
        parent, child = stream.tf.parent, stream.tf.child
        ups = [list(self._up(end, time_ns)) for end in (parent, child)]
        common = next((frame for frame in ups[1] if frame in ups[0]), None)
        if common is not None:
            return [up[: up.index(common)] for up in ups]
        for frame in (parent, child):
            if frame not in self._edges and frame not in self._roots():
                known = ", ".join(sorted({*self._edges, *self._roots()}))[:200]
                raise UserError(f"tf has no frame {frame}", "", f"it has {known or 'none'}")
        raise UserError(
            f"tf does not connect {child} with {parent}", "", "publish what is between"
        )

    def _roots(self) -> set[str]:
        return {parent for edges in self._edges.values() for parent, _ in edges}


def _name(frame: str) -> str:
    """Without the slash that tf1 wrote."""
    return frame.removeprefix("/")
