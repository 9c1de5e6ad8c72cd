"""An engine whose policy runs in a process of its own, for `ros_latency.py --inference process`.

Arrays go through a pipe as bytes, in the contract's order. The noise follows from the generator's
seed, so that both give the same chunks.
"""

from __future__ import annotations

import struct
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

REQUEST = struct.Struct("<IdQ16s")
"""Steps, guidance, seed, sampler."""


class OwnProcessEngine:
    """Asks a process that runs the same checkpoint.

    Args:
        engine: gives policy and device.
        checkpoint: that the process loads.
        threads: of its computation.
        noop: whether it only answers.
    """

    def __init__(self, engine: Any, checkpoint: str, threads: int, noop: bool) -> None:
        self.policy, self.device, self.name = engine.policy, engine.device, "own process"
        self.dtype = engine.dtype
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, checkpoint, threads, noop)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def sample(
        self,
        observation: dict[str, np.ndarray],
        *,
        steps: int,
        sampler: str,
        generator: torch.Generator,
        guidance: float = 1.0,
        **_: object,
    ) -> torch.Tensor:
        """As `DiffusionPolicy.sample`, for one window."""
        seed = generator.initial_seed() % 2**64
        head = REQUEST.pack(steps, guidance, seed, sampler.encode())
        arrays = (observation[key] for key in self.policy.contract.observations)
        self._pipe.send_bytes(b"".join([head, *(array.tobytes() for array in arrays)]))
        actions = np.frombuffer(self._pipe.recv_bytes(), np.float32)
        return torch.from_numpy(actions.copy()).view(1, -1, self.policy.contract.action_dim)


def serve(pipe: Connection, checkpoint: str, threads: int, noop: bool) -> None:
    """The other process: answer until the pipe is closed."""
    from diffusion_policy_ros.engine import build_engine
    from diffusion_policy_ros.policy.checkpoint import load_policy

    engine = build_engine(load_policy(checkpoint), threads=threads)
    nothing = torch.zeros(
        1, engine.policy.recipe.policy.horizon, engine.policy.contract.action_dim
    )
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        steps, guidance, seed, sampler = REQUEST.unpack_from(request)
        actions = nothing
        if not noop:
            actions = engine.sample(
                _observation(request, engine.policy),
                steps=steps,
                sampler=sampler.rstrip(b"\0").decode(),
                guidance=guidance,
                generator=torch.Generator().manual_seed(seed),
            )
        pipe.send_bytes(actions.numpy().tobytes())


def _observation(request: bytes, policy: Any) -> dict[str, np.ndarray]:
    at, found, frames = REQUEST.size, {}, policy.recipe.policy.n_obs_steps
    for key, stream in policy.contract.observations.items():
        kind = np.uint8 if stream.is_image else np.float32
        count = frames * stream.size
        values = np.frombuffer(request, kind, count, at).reshape(1, frames, *stream.shape)
        found[key] = values.copy()
        at += values.nbytes
    return found
