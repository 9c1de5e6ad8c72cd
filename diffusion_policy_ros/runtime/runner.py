"""Windows become chunks, in time.

The thread that receives messages only leaves a due window in a mailbox of one, where the newest
wins; one inference thread samples and hands the chunk over. Nothing blocks, and what does not go
as meant is counted and named.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.policy.following import KINDS
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.policy.samplers import SAMPLERS
from diffusion_policy_ros.runtime.joining import JOINS, Joiner
from diffusion_policy_ros.runtime.made import NewestMade
from diffusion_policy_ros.runtime.playback import Chunk
from diffusion_policy_ros.runtime.trace import ChunkTimes, chunk_times

RECENT = 1000
"""Chunks whose times are kept."""
DELAYS = 21
"""Chunks that the delay to reckon with is the median of: few, for it follows what changes."""
SEEDS = 2**31
"""How many seeds of the noise there are: as many as a parameter of the node can tell."""
STOP_S = 3.0
"""How long an inference is waited for that cannot be interrupted: whoever started the node kills
it when it takes much longer to end."""
HANDOVER_S = 0.0005
"""How long the thread that offers a window steps aside: Python runs one thread at a time, and the
inference is the urgent one now. It makes chunks come half a millisecond earlier."""


@dataclass(frozen=True)
class Sampling:
    """How chunks are sampled; a whole new one replaces it, so that a change takes effect between
    two chunks.

    Attributes:
        num_inference_steps: K, denoising steps.
        sampler: a name in ``policy.samplers.SAMPLERS``.
        guidance_scale: of classifier-free guidance; 1 is none.
        replan_steps: frames between inferences.
        n_action_steps: Ta, actions of a chunk.
        first_action: which of the predicted actions belongs to the newest observed frame; where
            not given, there is one for each observed frame before it.
        chunk_join: how chunks join, of ``runtime.joining.JOINS``.
    """

    num_inference_steps: int
    sampler: str
    replan_steps: int
    n_action_steps: int
    guidance_scale: float = 1.0
    first_action: int | None = None
    chunk_join: str = "replace"

    @classmethod
    def of(cls, settings: PolicySettings, **changes: Any) -> Sampling:
        """A policy's own way of sampling, changed where something is given.

        Args:
            settings: the policy's recipe.
            changes: attribute → value; None leaves the policy's own.

        Raises:
            UserError: a value that the policy cannot be sampled with.
        """
        own = cls(
            num_inference_steps=settings.num_inference_steps,
            sampler=settings.sampler,
            replan_steps=settings.frames_between_inferences,
            n_action_steps=settings.n_action_steps,
            first_action=settings.executed.start,
        )
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(own, **given).checked(settings)

    def checked(self, settings: PolicySettings) -> Sampling:
        """Itself, if the policy can be sampled so.

        Raises:
            UserError: it cannot.
        """
        for name, highest in (
            ("num_inference_steps", settings.num_train_timesteps),
            ("replan_steps", self.n_action_steps),
        ):
            value = getattr(self, name)
            if not 1 <= value <= highest:
                raise UserError(f"{value} is out of range", name, f"use 1 to {highest}")
        if self.sampler not in SAMPLERS:
            cure = did_you_mean(self.sampler, SAMPLERS)
            raise UserError(f"no sampler '{self.sampler}'", "sampler", cure)
        if self.chunk_join not in JOINS:
            cure = did_you_mean(self.chunk_join, JOINS)
            raise UserError(f"no way to join '{self.chunk_join}'", "chunk_join", cure)
        settings.check_guidance(self.guidance_scale, "guidance_scale")
        return self


class Job(NamedTuple):
    """A window to be sampled from.

    Attributes:
        time_ns: its newest frame's time.
        window: observation key → (To, ...).
        epoch: which run of frames it belongs to; chunks of an ended one are dropped.
        arrived_ns: when its anchor came, by a steady clock.
        closed_ns: when it was ready, by that clock.
        oldest_ns: its oldest frame's time.
    """

    time_ns: int
    window: Mapping[str, Array]
    epoch: int
    arrived_ns: int
    closed_ns: int
    oldest_ns: int


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
    observation = {key: array[None] for key, array in window.items()}
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
    contract, n_obs_steps = engine.policy.contract, engine.policy.recipe.policy.n_obs_steps
    window = {
        key: np.zeros((n_obs_steps, *s.shape), dtype=np.uint8 if s.is_image else np.float32)
        for key, s in contract.observations.items()
    }
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


@dataclass
class Counts:
    """What happened since the start.

    Attributes:
        frames: windows offered.
        chunks: chunks handed over.
        deadline_misses: chunks that came after the previous one had run out.
        replaced: windows that a newer one replaced before they were used.
        failures: inferences that raised or were not finite.
        chunk_ms: computing time of recent chunks.
    """

    frames: int = 0
    chunks: int = 0
    deadline_misses: int = 0
    replaced: int = 0
    failures: int = 0
    chunk_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class Runner:
    """Samples chunks on a thread of its own.

    Args:
        engine: samples the policy.
        contract: the robot.
        sampling: how; replace the attribute to change it from the next chunk on.
        on_chunk: called on the inference thread with each chunk.
        on_fault: called on the inference thread with the reason when an inference fails.
        now_ns: the clock that frames are stamped by, for deadline misses.
        seed: of the noise; None draws one.

    Attributes:
        noise_seed: what the noise follows from, see `noise_generator`.
        made: how the newest chunks were made.
        delay_frames: frames from a chunk's newest one to its publication: the median of late,
            rounded up.
        on_times: called on the inference thread with when each chunk came to pass.
    """

    def __init__(
        self,
        engine: Engine,
        contract: Contract,
        sampling: Sampling,
        on_chunk: Callable[[Chunk], None],
        on_fault: Callable[[str], None],
        now_ns: Callable[[], int],
        seed: int | None = None,
    ) -> None:
        self.engine, self.contract, self.sampling = engine, contract, sampling
        self.counts = Counts()
        self._on_chunk, self._on_fault, self._now_ns = on_chunk, on_fault, now_ns
        self.seed(seed)
        self._change = threading.Condition()
        self._mailbox: Job | None = None
        self._epoch = 0
        self._frames_to_wait = 0
        self._end_ns: int | None = None
        self._joiner, self.made = Joiner(contract), NewestMade()
        self._delays_ns: deque[int] = deque(maxlen=DELAYS)
        self.delay_frames = 0
        self._thread: threading.Thread | None = None
        self._ending: threading.Thread | None = None
        self._engine_is_free = threading.Lock()
        self.on_times: Callable[[ChunkTimes], None] | None = None

    def seed(self, seed: int | None) -> None:
        """Take the noise of all chunks from now on from a seed; None draws one."""
        drawn = torch.Generator().seed() % SEEDS
        self.noise_seed = drawn if seed is None else seed

    def start(self) -> None:
        """Start the inference thread."""
        self._thread = threading.Thread(target=self._loop, name="inference", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """End the inference thread after what it is doing; whether it has ended, by then."""
        self.cancel()
        self._ending, self._thread = self._thread or self._ending, None
        if self._ending is None:
            return True
        with self._change:
            self._change.notify_all()
        self._ending.join(timeout_s)
        return not self._ending.is_alive()

    def cancel(self) -> None:
        """Drop the waiting window and the chunk in the making; the next frame is sampled."""
        with self._change:
            self._mailbox = None
            self._epoch += 1
            self._frames_to_wait = 0
            self._end_ns = None
            # A new one, so that the chunk in the making tells only the old one.
            self._joiner = Joiner(self.contract)
            self.made.end_run()

    def _note_delay(self, delay_ns: int) -> None:
        """After the publication: before it, 0.15 ms more would be a part of the delay."""
        self._delays_ns.append(delay_ns)
        frames = float(np.median(self._delays_ns)) / self.contract.period_ns
        self.delay_frames = max(math.ceil(frames), 0)

    def offer(
        self,
        time_ns: int,
        window: Callable[[], Mapping[str, Array]],
        arrived_ns: int = 0,
        oldest_ns: int = 0,
    ) -> None:
        """Tell of a new frame; takes HANDOVER_S at most.

        Args:
            time_ns: the frame's time.
            window: makes the window; called only when a chunk is due.
            arrived_ns: when its anchor came, by ``time.monotonic_ns``; 0: now.
            oldest_ns: time of the window's oldest frame.
        """
        self.counts.frames += 1
        if self._frames_to_wait > 0:
            self._frames_to_wait -= 1
            return
        self._frames_to_wait = self.sampling.replan_steps - 1
        arrays, now_ns = window(), time.monotonic_ns()
        with self._change:
            self.counts.replaced += self._mailbox is not None
            came_ns = arrived_ns or now_ns
            self._mailbox = Job(time_ns, arrays, self._epoch, came_ns, now_ns, oldest_ns)
            self._change.notify()
        time.sleep(HANDOVER_S)

    def _loop(self) -> None:
        # Not a flag: one that is still sampling when the next is started must end all the same.
        me = threading.current_thread()
        while True:
            with self._change:
                self._change.wait_for(lambda: self._thread is not me or self._mailbox is not None)
                if self._thread is not me or self._mailbox is None:
                    return
                job, self._mailbox = self._mailbox, None
                joiner = self._joiner
            self._infer(job, joiner)

    def _infer(self, job: Job, joiner: Joiner) -> None:
        begun_ns, delay_frames = time.monotonic_ns(), self.delay_frames
        seed, how = self.noise_seed, self.sampling
        noise = noise_generator(seed, job.time_ns)
        made_of = (job.window, job.time_ns, how, noise, joiner, delay_frames)
        try:
            with self._engine_is_free:  # a thread that was stopped may still be in it
                chunk = make_chunk(self.engine, self.contract, *made_of)
        except Exception as error:  # whatever it is: hold, say so, and try the next window
            if job.epoch != self._epoch:
                return
            self.counts.failures += 1
            known = isinstance(error, NotFiniteError)
            self._on_fault(str(error) if known else f"inference raised {error!r}")
            return
        ended_ns = time.monotonic_ns()
        self.counts.chunk_ms.append((ended_ns - begun_ns) / 1e6)
        with self._change:
            if job.epoch != self._epoch:
                return
            missed = self._end_ns is not None and self._now_ns() > self._end_ns
            self.counts.deadline_misses += missed
            self._end_ns = chunk.end_ns
            self.counts.chunks += 1
            self.made.note(job.time_ns, job.oldest_ns, delay_frames, seed, how)
            self._on_chunk(chunk)
            self._note_delay(self._now_ns() - job.time_ns)
        if self.on_times is not None:
            steady_ns = (job.arrived_ns, job.closed_ns, begun_ns, ended_ns)
            self.on_times(chunk_times(chunk, steady_ns, self._now_ns(), missed))
