"""The policy on a GPU as CUDA graphs: a chunk is one launch, not one for each small operation.

`DiffusionPolicy.sample`, encoders and all denoising steps, is captured once for each way in which
it is called, and replayed from then on, see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Inputs are copied to where the
graph reads them; noise is drawn outside, in the order in which the policy draws it. What cannot be
captured is computed by the plain modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_policy_ros.engine.eager import EagerEngine
from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.policy.diffusion_policy import Arrays, DiffusionPolicy
from diffusion_policy_ros.policy.following import Follow
from diffusion_policy_ros.policy.samplers import DrawNoise, noise_source

FULL = torch.float32
DTYPES = {"f32": FULL, "tf32": FULL, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST = 16
"""Graphs that are kept: each has memory of its own, and somebody may turn at the guidance."""
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.MultiheadAttention)


class Captured(NamedTuple):
    """One way of calling the policy.

    Attributes:
        given: where the graph reads the observation window.
        noise: where it reads all noise of a chunk, (N, B, H, A), the start first.
        replay: computes the chunk anew, into the same memory.
    """

    given: Mapping[str, Tensor]
    noise: Tensor
    replay: Callable[[], Tensor]

    def fill(self, given: Mapping[str, Tensor], noise: Tensor) -> None:
        """Without waiting: torch keeps pinned memory until it has been copied."""
        pairs = [(self.given[key], part) for key, part in given.items()]
        for there, part in [*pairs, (self.noise, noise)]:
            pinned = part.pin_memory() if part.is_cpu and there.is_cuda else part
            there.copy_(pinned, non_blocking=True)

    def chunk(self, given: Mapping[str, Tensor], draw: DrawNoise, start: Tensor | None) -> Tensor:
        """(B, H, Da), of new inputs."""
        one = torch.empty(self.noise.shape[1:])
        noise = [] if start is None else [start.to(one)]
        noise += [draw(one) for _ in range(len(self.noise) - len(noise))]
        self.fill(given, torch.stack(noise))
        return self.replay().clone()


def capabilities() -> set[str]:
    """The precisions that it computes in here.

    Raises:
        UserError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError("needs a GPU", "engine cuda_graph", "use another engine")
    return set(DTYPES)


def cuda_graph_engine(
    policy: DiffusionPolicy,
    device: torch.device,
    dtype: str | None,
    checkpoint: Path | None,
    say: Callable[[str], object],
) -> CudaGraphEngine | EagerEngine:
    """The engine where there is a GPU; elsewhere the eager one, and that is said.

    Raises:
        UserError: for an unknown precision.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown precision '{dtype}'", "dtype", did_you_mean(dtype, DTYPES))
    if device.type != "cuda":
        say(f"engine cuda_graph: needs a GPU and gets {device}; the eager engine computes, in f32")
        return EagerEngine(policy, device)
    return CudaGraphEngine(policy, device, dtype or "f32", say)


class CudaGraphEngine:
    """Replays captured chunks; the first of each kind is computed by the plain modules.

    Args:
        policy: moved to `device` and put into eval mode; its weights are learned no more.
        device: a GPU.
        dtype: a key of DTYPES; "f32" has TF32 off.
        say: told once when something cannot be captured.
    """

    name = "cuda_graph"

    def __init__(
        self,
        policy: DiffusionPolicy,
        device: torch.device,
        dtype: str = "f32",
        say: Callable[[str], object] = print,
    ) -> None:
        self.policy = policy.to(device).eval().requires_grad_(False)
        self.dtype, self._say = dtype, say
        self._fast = lowered(self.policy, DTYPES[dtype])
        # Tensor cores want images so.
        self._fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._graphs: dict[Hashable, Captured | None] = {}  # None: cannot be captured

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.policy.device

    def sample(
        self,
        observation: Arrays,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        follow: Follow | None = None,
        **how: Any,
    ) -> Tensor:
        """See DiffusionPolicy.sample. A chunk that follows another is computed plainly."""
        keys = [key for key in self.policy.contract.observations if key in observation]
        given = {key: torch.as_tensor(observation[key]) for key in keys}
        shapes = tuple((key, part.shape, part.dtype) for key, part in given.items())
        kind = (shapes, noise if noise is None else noise.shape, *sorted(how.items()))
        draw = noise_source(generator or self.policy.generator)
        graph = self._graphs.get(kind)
        if graph is not None and follow is None:
            return graph.chunk(given, draw, noise)
        drawn: list[Tensor] = []

        def remember(like: Tensor) -> Tensor:
            drawn.append(draw(like))
            return drawn[-1]

        chunk = self.policy.sample(given, generator=remember, noise=noise, follow=follow, **how)
        if follow is None and kind not in self._graphs:
            start = [] if noise is None else [noise.to(self.device, FULL)]
            self._graphs[kind] = self._capture(given, torch.stack(start + drawn), how)
        return chunk

    def _capture(
        self, given: Mapping[str, Tensor], noise: Tensor, how: Mapping[str, Any]
    ) -> Captured | None:
        """A graph for such a call; None, and that is said once, where there can be none."""
        if len(self._graphs) >= MOST:
            del self._graphs[next(iter(self._graphs))]
        lower = DTYPES[self.dtype]

        def run() -> Tensor:
            later = iter(graph.noise[1:])
            options = {"generator": lambda like: next(later), "noise": graph.noise[0], **how}
            with torch.autocast(self.device.type, lower, enabled=lower != FULL):
                return self._fast.sample(graph.given, **options)

        try:
            there = {key: torch.empty_like(x, device=self.device) for key, x in given.items()}
            graph = Captured(there, torch.empty_like(noise), run)
            graph.fill(given, noise)
            with _tf32(self.dtype == "tf32"), torch.cuda.device_of(noise):  # type: ignore[no-untyped-call]
                return graph._replace(replay=record(run))
        except RuntimeError as error:  # out of memory is one, too
            why, say, self._say = first_line(error), self._say, lambda _: None
            say(f"engine cuda_graph: cannot capture ({why}); the plain modules compute, in f32")
            return None


def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture what `run` does on the GPU, after three runs in which libraries make their choices.

    What it gives does the same again, into the same memory.
    """
    aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def lowered(policy: DiffusionPolicy, dtype: torch.dtype) -> DiffusionPolicy:
    """For autocast: a copy with the products' weights in `dtype`; all else stays float32.

    Autocast would read float32 weights and cast them anew at every step.
    """
    if dtype == FULL:
        return policy
    fast = copy.deepcopy(policy)
    for part in fast.modules():
        if isinstance(part, PRODUCTS):
            part.to(dtype)
    for network in (fast.encoder, fast.temporal, fast.denoiser):
        if network is not None:
            network.register_forward_hook(lambda _, __, out: out.float())
    return fast


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products may be rounded to TF32; it is decided when they are captured."""
    parts: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [part.allow_tf32 for part in parts]
    try:
        for part in parts:
            part.allow_tf32 = allowed
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.allow_tf32 = was
