"""The action player's parameters: what they are, and what they make of a contract's limits.

All but those of `Settings` may be changed while it runs. A limit may be made tighter than the
contract's; looser only with `loosen_limits`, and that is said loudly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node

from diffusion_policy_ros.contract import LIMITS_OF, Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.parameters import declare

LIMITS = {
    "velocity": ("speed of the set-point, m/s", 10.0),
    "acceleration": ("acceleration of the set-point, m/s2", 100.0),
    "angular_velocity": ("turning speed of the set-point, rad/s", 50.0),
    "angular_acceleration": ("turning acceleration of the set-point, rad/s2", 500.0),
    "joint_velocity": ("speed of every joint, rad/s or m/s", 50.0),
    "joint_acceleration": ("acceleration of every joint, rad/s2 or m/s2", 500.0),
    "lead": ("distance of the set-point from the measured position, m", 1.0),
    "lead_rotation": ("angle of the set-point to the measured orientation, rad", 3.14),
    "joint_lead": ("distance of every joint's set-point from the measured joint, rad or m", 3.14),
    "jump": ("distance of a chunk's first action from the measured position, m", 1.0),
    "jump_rotation": ("angle of a chunk's first action to the measured orientation, rad", 3.14),
    "joint_jump": ("distance of a chunk's first joints from the measured ones, rad or m", 3.14),
    "chunk_timeout_s": ("age of the newest chunk, s", 60.0),
    "observation_timeout_s": ("age of the measured state, s", 60.0),
}
"""Limits of the contract that a parameter can tighten: what it limits, and the highest value."""
GONE = {
    "action_topic": "policy:=NODE, or remap policy_node/action_chunk",
    "publish_twist": "send: {type: geometry_msgs/msg/TwistStamped} in the contract's fields",
    "gripper_joint": "send: {type: trajectory_msgs/msg/JointTrajectory, names: [JOINT]} in the "
    "contract's gripper",
    "gripper_open": "send: {open: VALUE} in the contract's gripper",
    "gripper_closed": "send: {closed: VALUE} in the contract's gripper",
}
"""Parameters that there were once → what to write instead."""
LIVE = ("speed_scale", "on_stop", "on_stale", "time_from_start", "loosen_limits", *LIMITS)


@dataclass(frozen=True)
class Settings:
    """The parameters that stay as they are; `declare_all` has their descriptions."""

    contract: str
    policy: str
    rate_hz: float
    armed: bool
    autostart: bool
    enable_topic: str
    enable_timeout_s: float


def declare_all(node: Node) -> Settings:
    """Declare the node's parameters.

    Raises:
        UserError: one is of another type, out of its range, or there is no such any more.
    """
    add = functools.partial(declare, node)
    for name, instead in GONE.items():
        if name in getattr(node, "_parameter_overrides", {}):
            raise UserError("there is no such parameter", name, f"give {instead}")
    for name, (what, highest) in LIMITS.items():
        about = f"greatest {what}; 0: the contract's"
        add(name, 0.0, about, low=0.0, high=highest, live=True)
    add("on_stale", "", "after a time-out: hold or stop; empty: the contract's", live=True)
    add("on_stop", "keep", "~/stop: keep repeats the set-point, release goes quiet", live=True)
    add("loosen_limits", False, "let limits be looser than the contract's", live=True)
    add(
        "speed_scale",
        1.0,
        "share of the speed limits, also ~/speed_scale",
        low=0,
        high=1,
        live=True,
    )
    add("time_from_start", 0.1, "of a trajectory's last point, s", low=0.01, high=10, live=True)
    return Settings(
        contract=add("contract", "", "the robot's: a file or a shipped name; empty: the policy's"),
        policy=add(
            "policy", "policy_node", "node whose chunks are played and whose contract says"
        ),
        rate_hz=add("rate_hz", 100.0, "set-points a second, Hz", low=20.0, high=500.0),
        armed=add("armed", False, "released from the start, for simulators; else by ~/resume"),
        autostart=add("autostart", True, "configure and activate at the start"),
        enable_topic=add(
            "enable_topic", "", "dead-man switch, a Bool that must be true and go on"
        ),
        enable_timeout_s=add("enable_timeout_s", 0.25, "its time-out, s", low=0.02, high=10.0),
    )


def check(new: Mapping[str, Any]) -> None:
    """Refuse what cannot be meant.

    Args:
        new: name → value.

    Raises:
        UserError: a value is none of those that there are.
    """
    for name, allowed in {
        "on_stale": ("", "hold", "stop"),
        "on_stop": ("keep", "release"),
    }.items():
        if new.get(name, allowed[0]) not in allowed:
            cure = f"give {' or '.join(filter(None, allowed))}"
            raise UserError(f"'{new[name]}'", f"parameter {name}", cure)


def declare_limits(node: Node, contract: Contract) -> None:
    """Declare the limits of each field, as ``translation.velocity``.

    Args:
        node: the player.
        contract: names the fields.

    Raises:
        UserError: one was given that is no number, or out of its range.
    """
    for part in contract.action.fields:
        for limit in LIMITS_OF[part.role]:
            name = f"{part.name}.{limit}"
            if limit not in ("min", "max") and not node.has_parameter(name):
                about = f"greatest {limit} of {part.name}; 0: the contract's"
                declare(node, name, 0.0, about, low=0.0, high=1000.0, live=True)


def limits(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of all parameters that limit something, as `Action.tightened` takes them.

    Args:
        values: name → value of all.
    """
    named = {name for name in values if name in LIMITS or name.partition(".")[2]}
    return {name: values[name] for name in (*sorted(named), "on_stale") if values.get(name)}
