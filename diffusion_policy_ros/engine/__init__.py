"""Engines: the same `sample`, faster. A new one is one file here and one line in ENGINES."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from diffusion_policy_ros.engine.cuda_graph import DTYPES as CUDA_DTYPES, cuda_graph_engine
from diffusion_policy_ros.engine.eager import EagerEngine
from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.policy.devices import pick_device
from diffusion_policy_ros.policy.diffusion_policy import Arrays, DiffusionPolicy
from diffusion_policy_ros.policy.following import Follow

# OpenVINO tells a server of its makers that it is imported and what it converts: not from a robot.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__all__ = ["ENGINES", "EXPERIMENTAL", "Engine", "build_engine", "pick_device"]


class Engine(Protocol):
    """What runs a policy. Arguments and result of `sample` are DiffusionPolicy.sample's."""

    @property
    def name(self) -> str:
        """Its key in ENGINES."""
        ...

    @property
    def dtype(self) -> str:
        """The precision that it computes in: f32, bf16, int8, ..."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def policy(self) -> DiffusionPolicy:
        """The policy that it runs; gives recipe and contract."""
        ...

    def sample(
        self,
        observation: Arrays,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        guidance: float = 1.0,
        follow: Follow | None = None,
    ) -> Tensor:
        """Observation windows -> chunks (B, H, Da)."""
        ...


Say = Callable[[str], object]
# Of policy, device, precision (None: its own choice), where the policy came from, if anywhere, and
# what is told once of whatever it goes on without.
EngineFactory = Callable[[DiffusionPolicy, torch.device, "str | None", "Path | None", Say], Engine]


def _openvino(
    policy: DiffusionPolicy,
    device: torch.device,
    dtype: str | None,
    checkpoint: Path | None,
    say: Say,
) -> Engine:
    """Imported only when it is asked for: openvino is an extra."""
    if importlib.util.find_spec("openvino") is None:
        cure = "pip install openvino, or use engine eager"
        raise UserError("openvino is not installed", "engine", cure)
    from diffusion_policy_ros.engine.openvino import OpenVinoEngine

    return OpenVinoEngine(policy, device, dtype or "f32", checkpoint, say)


ENGINES: dict[str, EngineFactory] = {
    "eager": EagerEngine,
    "openvino": _openvino,
    "cuda_graph": cuda_graph_engine,
}
EXPERIMENTAL = {"cuda_graph"}
"""Engines that "auto" does not take: nobody has measured them yet."""

PRECISIONS = {"int8", *CUDA_DTYPES}


def _to_stderr(line: str) -> None:
    """Standard output is for what a verb found."""
    print(line, file=sys.stderr, flush=True)


def build_engine(
    policy: DiffusionPolicy,
    name: str = "auto",
    device: str | torch.device | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    checkpoint: Path | None = None,
    say: Say = _to_stderr,
) -> Engine:
    """The engine `name` for `policy`.

    Args:
        policy: what to run; an engine may move it.
        name: a key of ENGINES, or "auto": on a CPU openvino, where it is installed and runs the
            policy; else eager, which needs nothing and runs everywhere.
        device: where; "auto" is the GPU when there is one and the engine computes there, None the
            policy's own.
        dtype: precision of the computation: f32, bf16, int8, tf32 or fp16, as far as the engine
            has it; None or empty is its own choice.
        threads: of the process' computation on the CPU; None or 0 leaves torch's.
        checkpoint: the policy's directory, where an engine may keep what it has compiled.
        say: told once of whatever it goes on without, in a line.

    Raises:
        UserError: unknown engine or device, a precision that the engine does not have, a
            negative number of threads, or a policy that the engine cannot run here.
    """
    if name != "auto" and name not in ENGINES:
        cure = did_you_mean(name, ["auto", *ENGINES])
        if name in PRECISIONS:
            cure = f"it is a precision: give it as dtype, as in --dtype {name}"
        raise UserError(f"unknown engine '{name}'", "engine", cure)
    if threads is not None and threads < 0:
        raise UserError(f"{threads} threads", "threads", "give 1 or more; 0 leaves torch's choice")
    if threads:
        torch.set_num_threads(threads)
    if device == "auto" and name == "openvino":
        device = "cpu"
    where = policy.device if device is None else pick_device(str(device))
    if name == "auto" and where.type == "cpu":
        try:
            return build_engine(policy, "openvino", where, dtype, None, checkpoint, say)
        except UserError as error:
            if dtype not in (None, "", "f32"):
                raise
            say(f"engine auto takes eager: {error}")
    factory = ENGINES["eager" if name == "auto" else name]
    try:
        return factory(policy, where, dtype or None, checkpoint, say)
    # A library's: out of memory, a network that it cannot compile, a module that it needs.
    except (RuntimeError, ImportError) as error:
        what = f"cannot run this policy on {where} ({first_line(error)})"
        cure = "use engine eager and device cpu, which run every policy"
        raise UserError(what, f"engine {name}", cure) from error
