"""Contracts for other projects' policies, and how far two arrays are apart."""

import numpy as np
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.interop.foreign import Camera


def contract_of(foreign, order=None):
    """A robot that is observed as the policy is, its observations in this order or theirs."""
    observations = list(foreign.observations)
    observations = observations if order is None else [observations[i] for i in order]
    lines = []
    for theirs in observations:
        key = theirs.name.rpartition(".")[2]
        if isinstance(theirs, Camera):
            kind, shape = "sensor_msgs/msg/Image", list(theirs.shape)
        else:
            kind, shape = "sensor_msgs/msg/JointState", [theirs.size]
        lines.append(f"  {key}: {{topic: /{key}, type: {kind}, shape: {shape}}}")
    size = foreign.action.size
    return Contract.from_text(
        "\n".join(
            [
                "name: foreign",
                "rate_hz: 10",
                f"anchor: {observations[0].name.rpartition('.')[2]}",
                "observations:",
                *lines,
                "action:",
                f"  fields: [{{name: joints, kind: joint_position, size: {size}}}]",
                f"  record: {{topic: /c, type: std_msgs/msg/Float64MultiArray, shape: [{size}]}}",
            ]
        )
    )


def window(arrays, matches, frames, batch=slice(None)):
    """Frames of the raw windows, under the contract's keys."""
    found = {}
    for theirs, (key,) in matches.items():
        value = arrays[f"input/{theirs}"]
        value = value if value.ndim in (3, 5) else value[None]
        found[key] = value[batch][:, frames]
    return found


def noise_of(noises):
    """A source that gives these, one after another."""
    left = iter(torch.from_numpy(np.asarray(noises)))
    return lambda like: next(left)


def apart(ours, theirs):
    """Relative distance."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
