"""A card that is full when a policy is loaded, captured or running: one line, and it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from diffusion_policy_ros.engine import build_engine, cuda_graph
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from gpu_checks.engines import Variant, build
from gpu_checks.mission import SIDES, Robot
from gpu_checks.policies import make_policy, windows
from gpu_checks.run import Run, bounded

GRAPH = Variant("cuda_graph", "f32")
PIECES = tuple(1 << bits for bits in (30, 26, 22, 21, 16, 9))


def out_of_memory(*_: object, **__: object) -> None:
    """What torch raises, where there is no card to fill."""
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nand more")


@contextmanager
def full(run: Run, of: object, stand_in_at: str) -> Iterator[None]:
    """A card without a free byte; without a card, `of.stand_in_at` is out of memory."""
    if run.device == "cpu":
        with mock.patch.object(of, stand_in_at, out_of_memory):
            yield
        return
    torch.cuda.empty_cache()
    taken = []
    for size in PIECES:
        try:
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.cuda.OutOfMemoryError:
            pass
    yield
    taken.clear()
    torch.cuda.empty_cache()


def full_card(run: Run) -> None:
    """Each in a process of its own, which must come to its end."""
    cases = {"load": at_load, "capture": at_capture, "running": while_running}
    for name, work in cases.items():
        lived = bounded(run, f"full {name}", lambda work=work: work(run), 30 if run.tiny else 7)
        run.aim("full", f"process alive, full at {name}", float(lived), 1.0)


def at_load(run: Run) -> None:
    """A user's error of one line."""
    policy, line = make_policy("unet_256", run.tiny), ""
    with full(run, DiffusionPolicy, "to"):
        try:
            build_engine(policy, "eager", run.device)
        except UserError as error:
            line = str(error)
    said_in_one_line(run, "load", [line])


def at_capture(run: Run) -> None:
    """Said, and the chunk is the plain modules'."""
    policy, said = make_policy("unet_256", run.tiny), []
    engine = build(policy, GRAPH, run, said.append)
    capture = cuda_graph.record

    def capture_on_a_full_card(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        with full(run, cuda_graph, "_streams"):
            return capture(work) if run.device == "cuda" else out_of_memory()

    with mock.patch.object(cuda_graph, "record", capture_on_a_full_card):
        shown = windows(policy.contract, 2)
        chunks = [engine.sample(window, steps=2).cpu() for window in shown]
    said_in_one_line(run, "capture", said)
    finite = all(bool(chunk.isfinite().all()) for chunk in chunks)
    run.aim("full", "chunks after a capture that failed", float(finite), 1.0)


def while_running(run: Run) -> None:
    """Chunks go on, or it holds and says why; with memory they come again."""
    robot = Robot(run, SIDES[0], 20)
    robot.play(0.3)
    with full(run, robot.engine, "sample"):
        robot.play(0.3)
    made, held = robot.counts.chunks, robot.faults[:]
    robot.play(0.5)
    run.row("full", what="running", held=held[:3])
    one_line = all("\n" not in line for line in held)
    run.aim("full", "one line each time it holds", float(one_line), 1.0)
    more = robot.counts.chunks - made
    run.aim("full", "chunks once there is memory again", more, 1.0)


def said_in_one_line(run: Run, when: str, said: list[str]) -> None:
    """What a user reads."""
    good = len(said) == 1 and bool(said[0]) and "\n" not in said[0]
    run.row("full", what=when, said=said)
    run.aim("full", f"one line, full at {when}", float(good), 1.0)
