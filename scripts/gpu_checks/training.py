"""How fast the image policy trains, and whether two processes learn the same."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import train_throughput
from torch import distributed

from diffusion_policy_ros.engine.cuda_graph import allow_tf32
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.train.batches import Data, open_data
from diffusion_policy_ros.train.distributed import Peers
from diffusion_policy_ros.train.learner import Learner
from gpu_checks.policies import TINY_UNET, eyes, recipe
from gpu_checks.run import Run, bounded

OF_PLAIN, OF_RESIDENT = 1.8, 0.95
UNET = "{name: unet1d, down_dims: [128, 256, 512], kernel_size: 5}"
BATCHES, TINY_BATCHES = (64, 256), (4,)
# name -> precision, TF32, compiled
KINDS = {
    "float32": ("float32", False, False),
    "TF32": ("float32", True, False),
    "bf16": ("bfloat16", False, False),
    "bf16 compiled": ("bfloat16", False, True),
}
PLAIN = "plain loop, float32"
QUICK, COMPILED = (PLAIN, "float32", "TF32", "bf16"), ("bf16 compiled",)
PROFILE_S = 6.0
PAIR_S = 10.0
UPDATES_OF_A_PAIR = 3


def made_of(run: Run, batch: int, precision: str = "float32", compiled: bool = False) -> Recipe:
    """The recipe of `benchmark/train_throughput.py`, or a tiny one."""
    settings = f"{{batch_size: {batch}, precision: {precision}, compile: {compiled}, seed: 1}}"
    return recipe(
        TINY_UNET if run.tiny else UNET, eyes((76, 76), run.tiny), f"training: {settings}\n"
    )


def training(run: Run, seconds: float) -> None:
    """Each in a process of its own: first the pair, which takes little, last what is compiled."""
    until, folder = time.monotonic() + seconds, run.out / "dataset"
    shutil.rmtree(folder, ignore_errors=True)
    train_throughput.make_dataset(folder)
    patience = PAIR_S * (4 if run.tiny else 1)
    bounded(run, "training pair", lambda: pair(run, folder, patience), 2 * patience + 5)
    batches = TINY_BATCHES if run.tiny else BATCHES
    for kinds, batch in itertools.product((QUICK, COMPILED), batches):
        name = f"training {kinds[-1]}, batch {batch}"
        work = partial(rates, run, folder, batch, kinds)
        bounded(run, name, work, until - time.monotonic() - (0 if run.tiny else PROFILE_S))
    missed = [batch for batch in batches if not aims(run, batch)]
    for batch in missed:
        work = partial(profile, run, folder, batch)
        bounded(run, f"training profile {batch}", work, until - time.monotonic())


def rates(run: Run, folder: Path, batch: int, kinds: tuple[str, ...]) -> None:
    """Samples a second: a loop as one writes it first, then the trainer's own ways."""
    if run.device == "cpu":  # compiling takes minutes there
        importlib.import_module("torch._dynamo").config.disable = True
    burst = 1 if run.tiny else max(4, 1280 // batch)
    data = open_data(folder, made_of(run, batch))
    allow_tf32(False)
    if PLAIN in kinds:
        plain = train_throughput.Plain(made_of(run, batch), data, torch.device(run.device))
        rate = batch / update_s(run, plain.step, burst)
        run.row("training", batch=batch, what=PLAIN, samples_per_s=round(rate, 1))
    for name in kinds:
        if name != PLAIN:
            found = of_kind(run, data, batch, name, burst)
            run.row("training", batch=batch, what=name, **found)


def aims(run: Run, batch: int) -> bool:
    """Whether the best way of the trainer is what was aimed at, of what was measured."""
    rows = [row for row in run.rows() if row.get("batch") == batch and "samples_per_s" in row]
    plain = [row["samples_per_s"] for row in rows if row["what"] == PLAIN]
    trained = [row for row in rows if row["what"] != PLAIN]
    if not (plain and trained):
        return True
    best = max(trained, key=lambda row: row["samples_per_s"])
    ratio, of_resident = best["samples_per_s"] / plain[0], best["of_resident"]
    met = [
        run.aim("training", f"{best['what']} / plain, batch {batch}", ratio, OF_PLAIN),
        run.aim("training", f"of resident, batch {batch}", of_resident, OF_RESIDENT),
    ]
    return all(met)


def profile(run: Run, folder: Path, batch: int) -> None:
    """Where the time of an update goes."""
    with ours(run, open_data(folder, made_of(run, batch)), batch, "bf16") as loop:
        loop.step()
        run.profile(f"training_{batch}", loop.step)


@contextmanager
def ours(run: Run, data: Data, batch: int, kind: str) -> Iterator[train_throughput.Ours]:
    """The trainer's loop in one of KINDS."""
    precision, tf32, compiled = KINDS[kind]
    allow_tf32(tf32)
    settings = made_of(run, batch, precision, compiled)
    learner = Learner(settings, data, Peers(torch.device(run.device)))
    with data.batches(settings.training, 0, learner.group) as batches:
        yield train_throughput.Ours(learner, batches)


def of_kind(run: Run, data: Data, batch: int, kind: str, burst: int) -> dict[str, float]:
    """Rate with data from the dataset and on the device, and the share of time waiting for it."""
    with ours(run, data, batch, kind) as loop:
        seconds = update_s(run, loop.step, burst, warm=3)
        waited = sum(loop.waits[-burst:]) / burst
        kept = next(loop.batches)
        resident = update_s(run, lambda: loop.learner.learn(kept), burst)
    return {
        "samples_per_s": round(batch / seconds, 1),
        "resident_samples_per_s": round(batch / resident, 1),
        "of_resident": resident / seconds,
        "waiting_share": round(waited / seconds, 4),
    }


def update_s(run: Run, step: Callable[[], object], burst: int, warm: int = 2) -> float:
    """Seconds of an update, the mean of a burst; compiling happens before."""
    for _ in range(1 if run.tiny else warm):
        step()
    run.wait()
    begun = time.perf_counter()
    for _ in range(burst):
        step()
    run.wait()
    return (time.perf_counter() - begun) / burst


def pair(run: Run, folder: Path, patience: float) -> None:
    """Two processes on one device: nccl if it takes that, else gloo; the weights must be equal."""
    for backend in ("nccl", "gloo") if run.device == "cuda" else ("gloo",):
        found = in_two_processes(run, folder, backend, patience)
        equal = len(found) == 2 and len(set(found)) == 1
        run.row(
            "training", what=f"two processes, {backend}", weights_equal=equal, ended=len(found)
        )
        if len(found) == 2:
            run.aim("training", f"weights equal, {backend}", float(equal), 1.0)
            return


def in_two_processes(run: Run, folder: Path, backend: str, patience: float) -> list[str]:
    """What the weights of each are at the end, of those that came there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [
        context.Process(target=learn_together, args=(run, folder, backend, rank, queue))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    until = time.monotonic() + patience
    while time.monotonic() < until and any(process.is_alive() for process in both):
        time.sleep(0.05)
    for process in both:
        process.kill()
        process.join()
    return list(itertools.islice(iter(lambda: None if queue.empty() else queue.get(), None), 2))


def learn_together(run: Run, folder: Path, backend: str, rank: int, queue: Any) -> None:
    """One of the two."""
    importlib.import_module("torch.distributed.nn")  # see train/distributed.py
    distributed.init_process_group(backend, rank=rank, world_size=2)
    try:
        settings = made_of(run, 8)
        group = Peers(torch.device(run.device), rank, 2)
        data = open_data(folder, settings)
        learner = Learner(settings, data, group)
        with data.batches(settings.training, 0, group) as batches:
            for _ in range(UPDATES_OF_A_PAIR):
                learner.learn(next(batches))
        weights = torch.cat([weight.flatten() for weight in learner.policy.parameters()])
        queue.put(hashlib.sha256(weights.detach().cpu().numpy().tobytes()).hexdigest())
    finally:
        distributed.destroy_process_group()
