"""The policy on a GPU as CUDA graphs: a chunk is one launch, not one for each small operation.

Experimental: no GPU has run it yet. What `DiffusionPolicy.sample` computes between the two ways of
`policy/frames.py`, encoders and all denoising steps, is captured once for each way in which it is
called, and replayed from then on, see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Inputs are copied to where the
graph reads them; noise is drawn outside, in the order in which the policy draws it. What cannot be
captured is computed by the plain modules.

The first way is captured before its first chunk is handed over. A later one, such as another
number of denoising steps, is captured beside, by a thread of its own; until it is done the
denoiser's graph, captured with the first and good for any number of steps, is replayed at each
step: what was asked for is sampled all the time.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_policy_ros.engine.eager import EagerEngine
from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.policy.denoisers import Condition
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


class Steps:
    """The denoiser in its own place: its graph for the sizes of batch that have one.

    Args:
        network: the denoiser; computes what has no graph.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.graphs: dict[int, tuple[list[Tensor], Callable[[], Tensor]]] = {}

    def __call__(self, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """As the denoiser."""
        if len(sample) not in self.graphs:
            out: Tensor = self._network(sample, timestep, condition)
            return out
        there, replay = self.graphs[len(sample)]
        given = [part for part in (sample, timestep, *condition) if part is not None]
        for place, part in zip(there, given, strict=True):
            place.copy_(part)
        return replay().clone()

    def learn(self, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """As the denoiser, which has a graph for this size of batch from now on.

        It is not replayed here: it may be, by the thread that samples.
        """
        if len(sample) not in self.graphs:
            given = (sample, timestep, *condition)
            there = [None if part is None else torch.zeros_like(part) for part in given]
            places, known = [part for part in there if part is not None], Condition(*there[2:])
            replay = record(lambda: self._network(there[0], there[1], known))
            self.graphs[len(sample)] = places, replay
        out: Tensor = self._network(sample, timestep, condition)
        return out


class CudaGraphEngine:
    """Replays captured chunks, see above.

    Whether float32 products may be rounded to TF32 is the process' own setting; the engine sets
    it where it computes or captures, so that the engine that came last has it.

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
        self._steps = Steps(self._fast.denoiser)
        self._graphs: dict[Hashable, Captured | None] = {}  # None: cannot be captured
        self._capturing = threading.Thread()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.policy.device

    def sample(
        self, observation: Arrays, *, follow: Follow | None = None, **options: Any
    ) -> Tensor:
        """See DiffusionPolicy.sample. A chunk that follows another is computed plainly."""

        def run(seen: Arrays, follow: Follow | None) -> Tensor:
            return self._sample_seen(seen, follow=follow, **options)

        return self.policy.through_frames(run, observation, follow)

    def _sample_seen(
        self,
        observation: Arrays,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        follow: Follow | None = None,
        **how: Any,
    ) -> Tensor:
        keys = [key for key in self.policy.frames.seen.observations if key in observation]
        given = {key: torch.as_tensor(observation[key]) for key in keys}
        shapes = tuple((key, part.shape, part.dtype) for key, part in given.items())
        kind = (shapes, noise if noise is None else noise.shape, *sorted(how.items()))
        draw = noise_source(generator or self.policy.generator)
        graph = self._graphs.get(kind)
        if graph is not None and follow is None:
            self._graphs[kind] = self._graphs.pop(kind)  # the one used last goes last
            return graph.chunk(given, draw, noise)
        drawn: list[Tensor] = []

        def remember(like: Tensor) -> Tensor:
            drawn.append(draw(like))
            return drawn[-1]

        allow_tf32(self.dtype == "tf32")
        options = {"generator": remember, "noise": noise, **how}
        if follow is not None:
            return self.policy.sample_seen(given, follow=follow, **options)
        new = kind not in self._graphs
        if new and self._steps.graphs:
            with self._precision():
                chunk = _with_denoiser(self._fast, self._steps).sample_seen(given, **options)
        else:
            chunk = self.policy.sample_seen(given, **options)
        if new:
            start = [] if noise is None else [noise]
            self._capture_beside(kind, given, torch.stack(start + drawn), how)
        return chunk

    def settle(self) -> None:
        """Wait for the graph that is being captured."""
        if self._capturing.ident is not None:
            self._capturing.join()

    def _capture_beside(
        self, kind: Hashable, given: Mapping[str, Tensor], noise: Tensor, how: Mapping[str, Any]
    ) -> None:
        """Begin with a graph for such calls; the first one is waited for.

        One at a time: where another is in the making, the next chunk asks again.
        """
        if self._capturing.is_alive() or kind in self._graphs:
            return
        first = not self._graphs
        if len(self._graphs) >= MOST:
            del self._graphs[next(iter(self._graphs))]
        there = {key: torch.zeros_like(x, device=self.device) for key, x in given.items()}
        read = (there, torch.zeros_like(noise, device=self.device, dtype=FULL))
        work = (kind, *read, dict(how))
        self._capturing = threading.Thread(target=self._capture, args=work, name="capture")
        self._capturing.start()
        if first:
            self.settle()

    def _capture(
        self, kind: Hashable, given: dict[str, Tensor], noise: Tensor, how: dict[str, Any]
    ) -> None:
        """Keep a graph for such calls; None, and that is said once, where there can be none."""

        def run(policy: DiffusionPolicy = self._fast) -> Tensor:
            later = iter(noise[1:])
            options: dict[str, Any] = {
                "generator": lambda _: next(later),
                "noise": noise[0],
                **how,
            }
            with self._precision():
                return policy.sample_seen(given, **options)

        try:
            with torch.cuda.device_of(noise):  # type: ignore[no-untyped-call]
                run(_with_denoiser(self._fast, self._steps.learn))
                self._graphs[kind] = Captured(given, noise, record(run))
        except Exception as error:  # whatever it is: nobody else hears of it in this thread
            self._graphs[kind] = None
            why, say, self._say = first_line(error), self._say, lambda _: None
            say(f"engine cuda_graph: cannot capture ({why}); the plain modules compute, in f32")

    def _precision(self) -> AbstractContextManager[object]:
        lower = DTYPES[self.dtype]
        return torch.autocast(self.device.type, lower, enabled=lower != FULL)


def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture what `run` does on the GPU, after three runs in which libraries make their choices.

    Others may compute on the GPU, allocate and replay meanwhile: only this thread is held to what
    can be captured, and `torch.cuda.graph` is not used because it waits for everybody's work and
    gives back all memory that is kept for reuse. The runs have another stream than the capture:
    cuBLAS has one workspace for each stream and thread, a graph keeps that of the capture, and no
    later run may write to it while the graph is replayed.

    Returns:
        What does the same again, into the same memory.
    """
    warm_up, capture = _streams(torch.cuda.current_device())
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            run()
    warm_up.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(capture):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            out = run()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what ended it says more
                graph.capture_end()
            raise
        graph.capture_end()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


@functools.cache
def _streams(device: int) -> tuple[Any, Any]:
    """Two streams, always the same: torch has 32 a GPU and gives them out again."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _with_denoiser(policy: DiffusionPolicy, denoiser: Callable[..., Tensor]) -> DiffusionPolicy:
    """The policy, asking something else in its denoiser's place."""
    other = copy.copy(policy)
    other.__dict__["_modules"] = {**policy._modules, "denoiser": denoiser}
    return other


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


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products may be rounded to TF32, in all of the process."""
    parts: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    for part in parts:
        part.allow_tf32 = allowed
