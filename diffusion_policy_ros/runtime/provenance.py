"""Provenance of the newest chunks: what a replay has to know of each, and no message tells.

The node reports it with its diagnostics. Each report tells of more chunks than were made since
the one before, so that a lost report costs nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, get_type_hints

KEPT = 40
"""Chunks that a report tells of; at most 20 come from one to the next at 40 Hz."""


class Provenance(NamedTuple):
    """How one chunk was made.

    Attributes:
        stamp_ns: of its newest frame.
        oldest_ns: stamp of the oldest frame of its window, which a reset may have cut short.
        run_ns: stamp of the first chunk of its run: those before it have no part in it.
        delay_frames: that it was expected to take.
        noise_seed: see `inference.noise_generator`.
        num_inference_steps, sampler, guidance_scale, chunk_join: as in `sampling.Sampling`.
    """

    stamp_ns: int
    oldest_ns: int
    run_ns: int
    delay_frames: int
    noise_seed: int
    num_inference_steps: int
    sampler: str
    guidance_scale: float
    chunk_join: str

    def __str__(self) -> str:
        """Its values with spaces between."""
        return " ".join(map(str, self))


KINDS = get_type_hints(Provenance)
"""Name → type of its value."""
SAMPLING = ("num_inference_steps", "sampler", "guidance_scale", "chunk_join")
"""What of a `sampling.Sampling` may change while it runs, and changes the chunk."""


class ProvenanceLog:
    """Keeps it of the newest chunks; one thread writes, any may read."""

    def __init__(self) -> None:
        self._newest: deque[Provenance] = deque(maxlen=KEPT)
        self._run_ns: int | None = None

    def end_run(self) -> None:
        """The next chunk follows from none before it."""
        self._run_ns = None

    def note(
        self, stamp_ns: int, oldest_ns: int, delay_frames: int, noise_seed: int, sampling: Any
    ) -> None:
        """A chunk was made, of this sampling (`sampling.Sampling`)."""
        self._run_ns = stamp_ns if self._run_ns is None else self._run_ns
        how = (getattr(sampling, name) for name in SAMPLING)
        told = (stamp_ns, oldest_ns, self._run_ns, delay_frames, noise_seed)
        self._newest.append(Provenance(*told, *how))

    def __str__(self) -> str:
        """All of them, the oldest first."""
        return "; ".join(map(str, tuple(self._newest)))


def read_provenance(text: str) -> list[Provenance]:
    """What `ProvenanceLog` told; what is not understood is left out."""
    found = []
    for entry in text.split(";"):
        words = entry.split()
        try:
            values = [kind(w) for kind, w in zip(KINDS.values(), words, strict=True)]
            found.append(Provenance(*values))
        except ValueError:
            continue
    return found
