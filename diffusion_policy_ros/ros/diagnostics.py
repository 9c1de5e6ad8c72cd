"""The policy node's state as `diagnostic_msgs/DiagnosticArray`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

if TYPE_CHECKING:  # the action player says how it is, too, and needs no torch
    from diffusion_policy_ros.runtime.supervisor import Supervisor


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


def level(supervisor: Supervisor) -> bytes:
    """OK while chunks flow or nobody wants them, warning when told to hold, otherwise error."""
    if not supervisor.reason or supervisor.state == "inactive":
        return DiagnosticStatus.OK
    return DiagnosticStatus.WARN if supervisor.held else DiagnosticStatus.ERROR


def values(supervisor: Supervisor, notes: Mapping[str, str], now_ns: int) -> dict[str, object]:
    """What happened, and how every stream is.

    Args:
        supervisor: counts it.
        notes: topic → what is wrong with its publishers.
        now_ns: by the clock that arrivals are of.
    """
    counts, runner = supervisor.runner.counts, supervisor.runner
    return {
        "frames": counts.frames,
        "chunks": counts.chunks,
        "chunk_ms_p50": percentile(counts.chunk_ms, 50),
        "chunk_ms_p99": percentile(counts.chunk_ms, 99),
        "latency_ms_p50": percentile(supervisor.latency_ms, 50),
        "latency_ms_p99": percentile(supervisor.latency_ms, 99),
        "deadline_misses": counts.deadline_misses,
        "replaced_windows": counts.replaced,
        "rejected_frames": supervisor.refused,
        "rejected_chunks": counts.failures,
        "late_chunks": supervisor.late,
        "clamped_actions": supervisor.clamped,
        "holds": supervisor.holds,
        "last_hold": supervisor.last_hold,
        "num_inference_steps": runner.sampling.num_inference_steps,
        "sampler": runner.sampling.sampler,
        "replan_steps": runner.sampling.replan_steps,
        "chunk_join": runner.sampling.chunk_join,
        "delay_frames": runner.delay_frames,
        "noise_seed": runner.noise_seed,
        "newest_chunks": runner.made,
        **_streams(supervisor, notes, now_ns),
    }


def _streams(supervisor: Supervisor, notes: Mapping[str, str], now_ns: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, stream in supervisor.contract.observations.items():
        arrivals = supervisor.arrivals[stream.topic]
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
