"""The policy node's state as `diagnostic_msgs/DiagnosticArray`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

if TYPE_CHECKING:  # the action player says how it is, too, and needs no torch
    from diffusion_policy_ros.runtime.policy_loop import PolicyLoop


def message(
    name: str, hardware_id: str, level: bytes, text: str, values: Mapping[str, object], now: Time
) -> DiagnosticArray:
    """One status with its values; the name says of whom and what: `/policy_node: policy`."""
    status = DiagnosticStatus(
        level=level,
        name=name,
        message=text,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    array = DiagnosticArray(status=[status])
    array.header.stamp = now
    return array


def level(loop: PolicyLoop) -> bytes:
    """OK while chunks flow or nobody wants them; an error for a hold that nobody asked for."""
    if loop.active and loop.reason and not loop.held:
        return DiagnosticStatus.ERROR
    warns = loop.held or (loop.active and loop.outdated)
    return DiagnosticStatus.WARN if warns else DiagnosticStatus.OK


def values(loop: PolicyLoop, notes: Mapping[str, str], now_ns: int) -> dict[str, object]:
    """What happened, and how every stream is.

    Args:
        loop: counts it.
        notes: topic → what is wrong with its publishers.
        now_ns: by the clock that arrivals are of.
    """
    counts = loop.counts
    return {
        "frames": counts.frames,
        "chunks": counts.chunks,
        "chunk_ms_p50": percentile(counts.chunk_ms, 50),
        "chunk_ms_p99": percentile(counts.chunk_ms, 99),
        "latency_ms_p50": percentile(counts.latency_ms, 50),
        "latency_ms_p99": percentile(counts.latency_ms, 99),
        "deadline_misses": counts.deadline_misses,
        "replaced_windows": counts.replaced,
        "rejected_frames": counts.refused,
        "rejected_chunks": counts.failures,
        "late_chunks": counts.late,
        "clamped_actions": counts.clamped,
        "holds": counts.holds,
        "last_hold": loop.last_hold,
        "num_inference_steps": loop.sampling.num_inference_steps,
        "sampler": loop.sampling.sampler,
        "replan_steps": loop.sampling.replan_steps,
        "chunk_join": loop.sampling.chunk_join,
        "delay_frames": loop.delay_frames,
        "noise_seed": loop.noise_seed,
        "newest_chunks": loop.provenance,
        **_streams(loop, notes, now_ns),
    }


def _streams(loop: PolicyLoop, notes: Mapping[str, str], now_ns: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, stream in loop.contract.observations.items():
        arrivals = loop.arrivals[stream.topic]
        age_s = arrivals.age_s(now_ns)
        found[f"{key}.age_s"] = "never" if age_s is None else f"{age_s:.3f}"
        found[f"{key}.rate_hz"] = f"{arrivals.rate_hz(now_ns):.1f}"
        if arrivals.delay_s is not None:
            found[f"{key}.delay_s"] = f"{arrivals.delay_s:.4f}"
        if notes.get(stream.topic):
            found[f"{key}.problem"] = f"{stream.topic}: {notes[stream.topic]}"
    return found


def percentile(recent: Iterable[float], q: float) -> str:
    """Of recent times in ms, as text; a dash before the first."""
    times = list(recent)
    return f"{np.percentile(times, q):.2f}" if times else "-"
