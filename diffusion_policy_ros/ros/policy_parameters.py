"""The policy node's parameters: names, ranges, and what each may be set to when.

Those of `FIXED` are read by configure and refuse to change until the node is cleaned up. Those of
`LIVE` begin as what the checkpoint says and take effect with the next chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from diffusion_policy_ros.engine import ENGINES
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.policy.samplers import SAMPLERS
from diffusion_policy_ros.ros.parameters import check_overrides, declare_described
from diffusion_policy_ros.runtime.joining import JOINS
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.sampling import Sampling


class _Entry(NamedTuple):
    default: Any  # a value, or only a type: then the checkpoint gives the value
    description: str
    lowest: float | None = None
    highest: float | None = None
    constraint: str = ""


_WHEN = "Read by configure; refused while the node is configured."
FIXED = {
    "checkpoint": _Entry("", "Directory of a trained policy, or of a run.", constraint=_WHEN),
    "contract": _Entry(
        "",
        "Contract of this robot, a file or a shipped name: of the checkpoint's meaning, with its "
        "own topics, types and limits. Empty: the checkpoint's.",
        constraint=_WHEN,
    ),
    "device": _Entry("auto", "Where to compute: auto, cpu, cuda, cuda:1.", constraint=_WHEN),
    "engine": _Entry(
        "auto", f"What computes: auto, {', '.join(ENGINES)} (experimental).", constraint=_WHEN
    ),
    "dtype": _Entry(
        "",
        "Precision: f32, or int8, bf16, tf32, fp16 where the engine has it. Empty: f32.",
        constraint=_WHEN,
    ),
    "threads": _Entry(
        0, "Threads of the computation on a CPU; 0: as many as cores.", 0, 1024, _WHEN
    ),
    "trace": _Entry(
        "",
        "CSV file for when each chunk came to pass, overwritten; `diffusion-policy latency` draws "
        "it. Empty: none.",
        constraint=_WHEN,
    ),
    "autostart": _Entry(True, "Configure and activate at the start.", constraint="At the start."),
}
LIVE = {
    "num_inference_steps": _Entry(
        Parameter.Type.INTEGER,
        "K, denoising steps of a chunk: fewer are faster. Unset: the checkpoint's.",
        1,
        100_000,
    ),
    "sampler": _Entry(
        Parameter.Type.STRING,
        "How a chunk is sampled. Unset: the checkpoint's.",
        constraint=f"One of: {', '.join(SAMPLERS)}",
    ),
    "guidance_scale": _Entry(1.0, "Scale of classifier-free guidance; 1 is none.", 0.0, 20.0),
    "replan_steps": _Entry(
        Parameter.Type.INTEGER,
        "Frames between two inferences. Unset: the checkpoint's.",
        1,
        10_000,
    ),
    "chunk_join": _Entry(
        "replace",
        "How a chunk joins the ones before it; see doc/how-chunks-join.md.",
        constraint=f"One of: {', '.join(JOINS)}",
    ),
    "task": _Entry(
        "", "Which of the tasks that were trained is meant. Empty: the only one, if it is one."
    ),
    "seed": _Entry(
        -1,
        "Seed of the noise: each chunk's follows from it and the frame's time. -1 draws one.",
        -1,
        2**31 - 1,
    ),
}
SAMPLING = tuple(name for name in LIVE if name != "seed")


def declare(node: Node) -> None:
    """Declare all; values of command line and parameter files are taken over.

    Raises:
        UserError: one of those is of another type, out of its range, or misspelt.
    """
    for name, entry in {**FIXED, **LIVE}.items():
        declare_described(node, name, entry.default, _descriptor(entry))
    check_overrides(node)


def forget(node: Node) -> None:
    """Put the live ones back to what the node was started with."""
    for name in LIVE:
        node.undeclare_parameter(name)
        node.declare_parameter(name, LIVE[name].default, _descriptor(LIVE[name]))


def value(node: Node, name: str) -> Any:
    """Its value; None where it is unset."""
    return node.get_parameter_or(name).value


def seed(node: Node) -> int | None:
    """The seed of the noise; None to draw one."""
    return _seed(value(node, "seed"))


def sampling(node: Node, settings: PolicySettings) -> Sampling:
    """How to sample: the policy's own way, changed by the parameters that are set.

    Raises:
        UserError: the policy cannot be sampled so.
    """
    return Sampling.of(settings, **{name: value(node, name) for name in SAMPLING})


def check_types(node: Node, parameters: Sequence[Parameter]) -> None:
    """Say in words what rclpy says in numbers: that a value is of another type.

    Raises:
        UserError: one is.
    """
    for parameter in parameters:
        entry = {**FIXED, **LIVE}.get(parameter.name)
        if entry is None or not node.has_parameter(parameter.name):
            continue
        descriptor = node.describe_parameter(parameter.name)
        if parameter.type_.value != descriptor.type:
            wanted = Parameter.Type(descriptor.type).name.lower()
            limits = [*descriptor.integer_range, *descriptor.floating_point_range]
            span = f" from {limits[0].from_value:g} to {limits[0].to_value:g}" if limits else ""
            got = parameter.type_.name.lower()
            what = f"{parameter.value!r} is of type {got}"
            cure = f"give one of type {wanted}{span}"
            if (wanted, got) == ("double", "integer"):
                cure = f"write {float(parameter.value)}"
            raise UserError(what, f"parameter {parameter.name}", cure)


def checked(loop: PolicyLoop, parameters: Sequence[Parameter]) -> Sampling:
    """How the loop would sample with changed parameters.

    Raises:
        UserError: one of them is of `FIXED`, or the policy cannot be sampled so.
    """
    new = {parameter.name: parameter.value for parameter in parameters}
    for name in FIXED:
        if name in new:
            cure = "deactivate and clean up the node first"
            raise UserError("is read by configure", f"parameter {name}", cure)
    changes = {name: new[name] for name in SAMPLING if name in new}
    changed = dataclasses.replace(loop.sampling, **changes)
    return changed.checked(loop.engine.policy.recipe.policy)


def apply(loop: PolicyLoop, parameters: Sequence[Parameter]) -> None:
    """Let parameters that were `checked` and set take effect from the next chunk on."""
    loop.sampling = checked(loop, parameters)
    for parameter in parameters:
        if parameter.name == "seed":
            loop.seed(_seed(parameter.value))


def _seed(number: int) -> int | None:
    return None if number < 0 else number


def adopt(node: Node, settings: PolicySettings, chosen: Sampling) -> None:
    """Show the policy's values and its ranges, for get, describe and the next set."""
    values = dataclasses.asdict(chosen)
    node.set_parameters([Parameter(name, value=values[name]) for name in SAMPLING])
    highest = {
        "num_inference_steps": settings.num_train_timesteps,
        "replan_steps": settings.n_action_steps,
    }
    for name, limit in highest.items():
        node.set_descriptor(name, _descriptor(LIVE[name]._replace(highest=limit)))


def _descriptor(entry: _Entry) -> ParameterDescriptor:
    kind = entry.default
    if not isinstance(kind, Parameter.Type):
        kind = Parameter.Type.from_parameter_value(kind)
    found = ParameterDescriptor(
        type=kind.value, description=entry.description, additional_constraints=entry.constraint
    )
    if entry.lowest is None or entry.highest is None:
        return found
    if isinstance(entry.default, float):
        limits = FloatingPointRange(from_value=entry.lowest, to_value=entry.highest)
        found.floating_point_range = [limits]
    else:
        found.integer_range = [IntegerRange(from_value=entry.lowest, to_value=entry.highest)]
    return found
