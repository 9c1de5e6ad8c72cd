"""What is odd about a recording, and why frames of it were refused, in one line each."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.check import FRAMED, FRAMED_ROLES, UNSAID, recorded
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.receipt import APART_NS

FASTER = 1.1
"""Frames wanted faster than the anchor comes by this factor are a mistake, not jitter."""
WHOLE = 0.05
"""How far from a whole number of frames the anchor may come, as a share."""
SILENT_S = 1.0
"""A stream that ends this much before the recording does has died."""
VELOCITIES = ("linear_velocity", "angular_velocity")
QUICK = 1.5
"""Commands a frame above which most are passed over."""
KNOWN = 0.1
"""Share of a depth picture below which its scale is doubted."""


def rate(anchor_ns: Sequence[int], contract: Contract) -> str:
    """That the anchor is slower than frames are wanted, or no multiple of them; or nothing."""
    intervals = np.diff(np.array(anchor_ns, dtype=np.int64))
    intervals = intervals[intervals > 0]
    if not len(intervals):
        return ""
    hz, wanted = 1e9 / float(np.median(intervals)), contract.rate_hz
    topic = contract.observations[contract.anchor].topic
    if wanted > hz * FASTER:
        came = f"{hz:.1f} Hz at which {topic} comes"
        return f"rate_hz {wanted:g} is above the {came}: give the contract this rate or less"
    messages = hz / wanted
    if messages < 1 or abs(messages - round(messages)) <= WHOLE * messages:
        return ""
    steps = [f"{1e3 * n / hz:.0f}" for n in (math.floor(messages), math.ceil(messages))]
    better = f"{hz / math.ceil(messages):.3g} or {hz / math.floor(messages):.3g}"
    apart = f"frames are {steps[0]} and {steps[1]} ms apart in turn"
    came = f"{hz:.1f} Hz at which {topic} comes"
    return f"rate_hz {wanted:g} does not divide the {came}: {apart}; {better} Hz would be even"


def frames(told_in: Mapping[str, str], contract: Contract) -> Iterator[str]:
    """Poses and commands in another frame than their field's, where reading did not refuse them.

    The field says none, or the message does not say what it measures.
    """
    for part in contract.action.fields:
        state = contract.observations.get(part.state)
        streams = [s for _, s, _ in recorded(contract, part) if part.role in FRAMED_ROLES]
        streams += [state] if state is not None and state.quantity in FRAMED else []
        for topic in dict.fromkeys(s.topic for s in streams if part.check_frame):
            told = told_in.get(topic, "")
            checked = any(s.frame_id for s in streams if s.topic == topic)
            if told not in ("", UNSAID, part.frame) and not checked:
                yield f"{topic} is told in '{told}': give {part.name} frame: {told}"


def sampled(counts: Mapping[str, int], frames: int, contract: Contract) -> Iterator[str]:
    """Velocities of which most are passed over, though the robot followed all of them."""
    for stream in contract.action.commands:
        share = counts[stream.topic] / max(frames, 1)
        if stream.combine == "first" and stream.quantity in VELOCITIES and share > QUICK:
            what = f"{stream.topic} has {share:.1f} commands a frame, of which one is taken"
            yield f"{what}: combine: mean takes all"


def depth(arrays: Mapping[str, Array], contract: Contract) -> Iterator[str]:
    """Pictures of depth in which next to nothing lies between near and far."""
    for key, stream in contract.observations.items():
        known = float((arrays[key] > 0).mean()) if stream.is_depth else 1.0
        if known < KNOWN:
            what = f"{key}: {1 - known:.0%} of its pixels are not between near and far"
            yield f"{what}: is its scale right?"


def other_clock(apart_ns: Mapping[str, int], contract: Contract) -> str:
    """The topic whose stamps are of another clock than most; empty where all are of one.

    Args:
        apart_ns: topic → its first stamp less its log time.
        contract: the robot.
    """
    streams = [s for group in contract.topics.values() for s in group]
    used = {
        stream.topic for stream in (*streams, *contract.action.commands) if stream.goes_by_stamp
    }
    found = {topic: ns for topic, ns in apart_ns.items() if topic in used}

    def trust(ns: int) -> tuple[int, int]:
        alike = sum(abs(ns - other) <= APART_NS for other in found.values())
        return alike, -abs(ns)

    usual_ns = max(found.values(), key=trust, default=0)
    for topic, ns in found.items():
        if abs(ns - usual_ns) > APART_NS:
            far_s = abs(ns - usual_ns) / 1e9
            return f"the stamps of {topic} are {far_s:.0f} s from the others': of another clock"
    return ""


def silent(last_ns: Mapping[str, int], contract: Contract) -> Iterator[str]:
    """Streams that ended before the others, as a camera that died."""
    end_ns = max(last_ns.values())
    for topic, streams in contract.topics.items():
        silent_s = (end_ns - last_ns.get(topic, end_ns)) / 1e9
        limit_s = max(SILENT_S, *(stream.max_age_s for stream in streams))
        if silent_s > limit_s and not streams[0].static:
            yield f"{topic} says nothing in the last {silent_s:.1f} s: did it die?"


def most_refused(counts: Mapping[str, int]) -> str:
    """The reason of most refusals, and of how many others there are; empty where there is none."""
    if not counts:
        return ""
    reason, others = max(counts, key=lambda reason: counts[reason]), len(counts) - 1
    more = f" ({counts[reason]} of {sum(counts.values())} frames)" if others else ""
    return f"{reason}{more}"


def by_kind(counts: Mapping[str, int]) -> dict[str, int]:
    """Reasons that differ in their numbers only are counted together, under the first of them."""
    first: dict[str, str] = {}
    found: Counter[str] = Counter()
    for reason, count in counts.items():
        found[first.setdefault(reason_kind(reason), reason)] += count
    return dict(found)


def reason_kind(reason: str) -> str:
    """A reason without its numbers: ages and sizes differ from frame to frame."""
    return re.sub(r"[-+.\d]+", "#", reason)
