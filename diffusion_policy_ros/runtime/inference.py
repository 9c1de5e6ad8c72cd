"""One window made into one chunk."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.errors import UserError, first_line
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.policy.following import KINDS
from diffusion_policy_ros.policy.tasks import TASK
from diffusion_policy_ros.runtime.joining import Joiner
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.runtime.tail import Chunk


class Request(NamedTuple):
    """A window to be sampled from, and all that decides what comes of it.

    Attributes:
        time_ns: its newest frame's time.
        window: observation key → (To, ...).
        sampling: how.
        noise_seed: what the noise follows from, see `noise_generator`.
        joiner: knows the chunks before it.
        delay_frames: so many actions will have been sent, as planned before, when it arrives.
        epoch: which run of frames it belongs to; chunks of an ended one are dropped.
        oldest_ns: its oldest frame's time.
        arrived_ns: when its anchor came, by a steady clock.
        closed_ns: when it was ready, by that clock.
    """

    time_ns: int
    window: Mapping[str, Array]
    sampling: Sampling
    noise_seed: int
    joiner: Joiner
    delay_frames: int = 0
    epoch: int = 0
    oldest_ns: int = 0
    arrived_ns: int = 0
    closed_ns: int = 0


class Inference(NamedTuple):
    """What came of a request.

    Attributes:
        request: it.
        chunk: None where sampling failed.
        failure: why it did.
        begun_ns: when sampling began, by a steady clock.
        ended_ns: when it ended.
    """

    request: Request
    chunk: Chunk | None
    failure: str
    begun_ns: int
    ended_ns: int


def infer(engine: Engine, contract: Contract, request: Request) -> Inference:
    """Sample a request's chunk; whatever an inference raises is told as its failure."""
    begun_ns, chunk, failure = time.monotonic_ns(), None, ""
    noise = noise_generator(request.noise_seed, request.time_ns)
    how = (request.sampling, noise, request.joiner, request.delay_frames)
    try:
        chunk = make_chunk(engine, contract, request.window, request.time_ns, *how)
    except NotFiniteError as error:
        failure = str(error)
    except Exception as error:  # whatever it is: the next window is tried
        failure = f"inference raised {error!r}"
    return Inference(request, chunk, failure, begun_ns, time.monotonic_ns())


class NotFiniteError(RuntimeError):
    """The network's output is NaN or infinite."""


def make_chunk(
    engine: Engine,
    contract: Contract,
    window: Mapping[str, Array],
    time_ns: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    joiner: Joiner | None = None,
    delay_frames: int = 0,
) -> Chunk:
    """Sample the chunk that follows a window.

    Args:
        engine: samples the policy.
        contract: gives the period.
        window: observation key → (To, ...).
        time_ns: the newest frame's time, which the first action is meant for.
        sampling: how.
        generator: source of noise, on the CPU.
        joiner: knows the chunks before it, and takes note of this one; without, there are none.
        delay_frames: how many frames after `time_ns` the chunk will arrive.

    Raises:
        NotFiniteError: the network's output is not finite.
    """
    joiner, join = joiner or Joiner(contract), sampling.chunk_join
    observation: dict[str, Any] = {key: array[None] for key, array in window.items()}
    if sampling.task:
        observation[TASK] = [sampling.task]
    seen, first = len(next(iter(window.values()))), sampling.first_action
    first = seen - 1 if first is None else first
    actions = engine.sample(
        observation,
        steps=sampling.num_inference_steps,
        sampler=sampling.sampler,
        guidance=sampling.guidance_scale,
        generator=generator,
        follow=joiner.follow(join, time_ns, first, delay_frames),
    )
    every = actions.cpu().numpy()[0].astype(np.float64)
    if not np.isfinite(every).all():
        raise NotFiniteError("the network's output is not finite")
    predicted = Chunk(time_ns - first * contract.period_ns, every, contract.period_ns)
    joined = joiner.join(join, predicted, first + delay_frames)[first:]
    return Chunk(time_ns, joined[: sampling.n_action_steps], contract.period_ns)


def noise_generator(seed: int, time_ns: int) -> torch.Generator:
    """The source of one chunk's noise, whichever chunks were sampled before it.

    So a recording of a run, replayed with its seed, gives the same chunks although some frames
    were skipped live.

    Args:
        seed: of the whole run.
        time_ns: of the newest frame.
    """
    digest = hashlib.blake2b(struct.pack("<qq", seed, time_ns), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def warm_up(engine: Engine, sampling: Sampling) -> None:
    """Sample some times from a window of zeros: the first times take longer than all later ones.

    Raises:
        UserError: the network's output is not finite, or the GPU's memory is too small.
    """
    contract, window = engine.policy.contract, engine.policy.frames.blank()
    joiner, generator = Joiner(contract), torch.Generator().manual_seed(0)
    try:
        for _ in range(2 + (sampling.chunk_join in KINDS)):  # the first one follows none
            make_chunk(engine, contract, window, 0, sampling, generator, joiner)
        getattr(engine, "settle", lambda: None)()  # one that goes on with it beside
    except NotFiniteError as error:
        raise UserError(str(error), "checkpoint", "train again") from None
    except torch.cuda.OutOfMemoryError as error:
        cure = "end what else uses the GPU, or use device cpu"
        raise UserError(first_line(error), f"engine {engine.name}", cure) from error
