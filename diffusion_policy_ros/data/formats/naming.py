"""What the elements of a contract's arrays are called elsewhere.

LeRobot's arms say ``shoulder.pos``; poses are told axis by axis. An action's names say what it
means: ``translation.delta_x`` is a way, ``translation.x`` a place. The same names are written when
a dataset is exported and looked for when one is imported.
"""

from __future__ import annotations

from collections import Counter

from diffusion_policy_ros.contract import ActionField, Contract, Stream
from diffusion_policy_ros.contract.action import apart

XYZ = ("x", "y", "z")
_AXES: dict[str, tuple[str, ...]] = {
    "position": XYZ,
    "delta_position": ("delta_x", "delta_y", "delta_z"),
    "axis_angle": ("rx", "ry", "rz"),
    "delta_axis_angle": ("delta_rx", "delta_ry", "delta_rz"),
    "quaternion": ("qx", "qy", "qz", "qw"),
    "orientation": ("qx", "qy", "qz", "qw"),
    "rotation_6d": ("r11", "r12", "r13", "r21", "r22", "r23"),
    "twist": ("vx", "vy", "vz", "wx", "wy", "wz"),
    "linear_velocity": ("vx", "vy", "vz"),
    "angular_velocity": ("wx", "wy", "wz"),
    "force": ("fx", "fy", "fz"),
    "torque": ("tx", "ty", "tz"),
}
"""Kind of an action field, or quantity of an observation → its elements."""
_JOINTS = {
    "joint_position": "pos",
    "delta_joint_position": "delta_pos",
    "joint_velocity": "vel",
    "joint_effort": "effort",
}
"""The same of joints → what follows a joint's name."""
UNITS = {
    "position": "m",
    "delta_position": "m",
    "joint_position": "rad or m",
    "delta_joint_position": "rad or m",
    "joint_velocity": "rad/s or m/s",
    "axis_angle": "rad",
    "delta_axis_angle": "rad",
    "quaternion": "unit quaternion x y z w",
    "rotation_6d": "first two rows of the rotation matrix",
    "twist": "m/s, then rad/s",
    "scalar": "as recorded",
    "binary": "-1 open, +1 closed",
}
"""Kind of an action field → what its numbers are."""


def observed_names(contract: Contract) -> dict[str, list[str]]:
    """Key → one name an element of each observed vector; no name stands twice."""
    vectors = {key: s for key, s in contract.observations.items() if not s.is_image}
    return apart({key: stream_names(key, stream) for key, stream in vectors.items()})


def camera_names(contract: Contract) -> dict[str, str]:
    """Key → LeRobot's feature of each camera."""
    return {key: f"observation.images.{name}" for key, name in short_names(contract).items()}


def short_names(contract: Contract) -> dict[str, str]:
    """Key of each camera → what it is called in other projects; no name stands twice."""
    keys = [key for key, stream in contract.observations.items() if stream.is_image]
    often = Counter(map(plain, keys))
    return {key: plain(key) if often[plain(key)] == 1 else key for key in keys}


def action_names(contract: Contract) -> dict[str, list[str]]:
    """Field → one name an element of the action; no name stands twice."""
    fields = contract.action.fields
    return apart({part.name: field_names(contract, part) for part in fields})


def stream_names(key: str, stream: Stream) -> list[str]:
    """One name an element of an observed vector."""
    if stream.quantity in _JOINTS and len(stream.names) == stream.size:
        return [f"{joint}.{_JOINTS[stream.quantity]}" for joint in stream.names]
    return _elements(key, stream.quantity, stream.size)


def field_names(contract: Contract, part: ActionField) -> list[str]:
    """One name an element of an action field."""
    state = contract.observations.get(part.state)
    if part.kind in _JOINTS and state is not None and len(state.names) == part.size:
        return [f"{joint}.{_JOINTS[part.kind]}" for joint in state.names]
    return _elements(part.name, part.kind, part.size)


def _elements(key: str, kind: str, size: int) -> list[str]:
    axes = _AXES.get(kind, ())
    if len(axes) == size:
        return [f"{key}.{axis}" for axis in axes]
    if size == 1:
        return [key]
    return [f"{key}.{_JOINTS[kind]}.{i}" if kind in _JOINTS else f"{key}.{i}" for i in range(size)]


def meaning(contract: Contract, part: ActionField) -> dict[str, str]:
    """What an action field means, for people and programs."""
    what = "absolute"
    if part.is_delta:
        before = "measured" if part.deltas_from == "measured" else "commanded"
        what = f"delta a frame, from what is {before}"
    elif part.kind in ("joint_velocity", "twist"):
        what = "velocity"
    elif part.kind == "binary":
        what = "open or closed"
    return {
        "field": part.name,
        "kind": part.kind,
        "meaning": what,
        "frame": part.frame,
        "unit": UNITS.get(part.kind, ""),
    }


def plain(name: str) -> str:
    """A name without what projects put around it, to compare by."""
    low = name.lower()
    for prefix in ("observation.images.", "observation.image.", "observation.", "images."):
        low = low.removeprefix(prefix)
    for suffix in ("_quat", "_orientation", "_rot_axis_angle"):
        if low.endswith(suffix):
            return low.removesuffix(suffix) + "_rot"
    for suffix in (".pos", ".position", "_pos", "_position", "_image", "_rgb", ".image", ".rgb"):
        low = low.removesuffix(suffix)
    return low
