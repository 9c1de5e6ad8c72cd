"""How fast a policy trains: two cameras, ResNet-18 encoders, U-Net 128/256/512, batch 16.

    python benchmark/train_throughput.py [--json] [--device cuda] [--seconds 40] [KEY=VALUE ...]

`samples_per_s`         windows a second, by the trainer
`plain_samples_per_s`   the same networks, contiguous, default AdamW, EMA as a loop over parameters
`ratio`                 the one by the other; both took turns, so what else runs slowed both
`data_wait_share`       of the trainer's time spent waiting for a batch, in updates one after
                        another, once what had been read ahead is used up
`read_share`            processor time of reading a batch, of that of an update
`loader_windows_per_s`  windows read in one thread, without a model
`peak_mb`               memory at the highest: of the process on a CPU, of the GPU's on one
`resident_samples_per_s`  on a GPU only: with the data already in its memory

Both sides are timed update by update; the medians count. Two threads of one batch collapse beside
other busy processes, which flatters the trainer's shares: on a machine that others use, compare
one thread with one (--threads 1 training.batch_shares=1). KEY=VALUE changes the recipe. With
`--encoded 224` pictures are of that size and kept as jpeg, so that waiting includes decoding.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store import NOISE, shots
from torch import nn

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.shards import STAMP, columns
from diffusion_policy_ros.data.store import Recording, adding
from diffusion_policy_ros.policy import convolutions
from diffusion_policy_ros.policy.recipe import Recipe, parse_overrides
from diffusion_policy_ros.train.batches import Data, open_data
from diffusion_policy_ros.train.distributed import Peers
from diffusion_policy_ros.train.learner import Learner

EPISODES, FRAMES = 10, 100
WAITED = 8  # updates of which the waiting is measured
AIMS = {"ratio": 1.2, "data_wait_share": 0.02, "loader_share": 20.0}
RECIPE = """
name: train_throughput
policy:
  denoiser: {name: unet1d, down_dims: [128, 256, 512], kernel_size: 5}
  image_encoder: {name: resnet18, keypoints: 32, features: 64, crop: [76, 76]}
training:
  batch_size: 16
  batch_shares: 2
  warmup_updates: 0
"""


def make_dataset(folder: Path, size: int = 0) -> Path:
    """In the demo's contract: noise for images, raw, or with a size a room's pictures as jpeg."""
    contract, random = Contract.load("mini_lift"), np.random.default_rng(0)
    if size:
        text = re.sub(r"shape: \[\d+, \d+, 3\]", f"shape: [{size}, {size}, 3]", contract.text)
        contract = Contract.from_text(text)
    with adding(folder, contract, "jpeg" if size else "raw") as new:
        for number in range(EPISODES):
            arrays: dict[str, Any] = {}
            for place, (key, column) in enumerate(columns(contract).items()):
                shape = (FRAMES, *column.shape)
                if len(column.shape) < 3:
                    arrays[key] = random.uniform(-1, 1, shape).astype(column.dtype)
                elif size:
                    arrays[key] = shots((size, size), FRAMES, NOISE, 10 * number + place)
                else:
                    arrays[key] = random.integers(0, 256, shape, dtype=np.uint8)
            del arrays[STAMP]
            assert new.add(Recording(f"bag{number}", arrays)).status == "kept"
    return folder


class Plain:
    """The training loop that one writes first."""

    def __init__(self, recipe: Recipe, data: Data, device: torch.device) -> None:
        self.data, self.settings, self.update = data, recipe.training, 0
        learner = Learner(recipe, data, Peers(device))
        self.policy, self.average = learner.policy, learner.average
        for part in self.policy.modules():
            if isinstance(part, nn.Conv1d | nn.Conv2d):
                part.weight.data = part.weight.data.contiguous()
                if isinstance(part, convolutions.Conv1d | convolutions.Conv2d):
                    part.__class__ = part.__class__.__mro__[1]  # torch's own
                part.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=self.settings.lr)

    def step(self) -> None:
        """One update."""
        indices = self.data.indices(self.settings, self.update)
        self.optimizer.zero_grad()
        self.policy.loss(self.data.training.batch(indices)).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.policy.parameters(), strict=True)
            for average, weight in pairs:
                average.mul_(self.settings.ema_decay).add_(
                    weight, alpha=1 - self.settings.ema_decay
                )
        self.update += 1


class Ours:
    """The trainer's own loop, with the time that it waits for data."""

    def __init__(self, learner: Learner, batches: Iterator[Any]) -> None:
        self.learner, self.batches, self.waits = learner, batches, [0.0]

    def step(self) -> None:
        """One update."""
        begun = time.perf_counter()
        batch = next(self.batches)
        self.waits.append(time.perf_counter() - begun)
        self.learner.learn(batch)


def timed(step: Callable[[], None], updates: int, device: torch.device) -> list[float]:
    """Seconds of each update; on a GPU the mean of all, since it is only waited for at the end."""
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(updates):
            step()
            times.append(time.perf_counter())
        return np.diff(times).tolist()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(updates):
        step()
    torch.cuda.synchronize()
    return [(time.perf_counter() - begun) / updates]


def loader_windows_per_s(data: Data, batch_size: int) -> float:
    """Reading alone."""
    random, count, begun = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - begun < 1.0:
        data.training.batch(random.integers(0, len(data.training), batch_size))
        count += batch_size
    return count / (time.perf_counter() - begun)


def read_cpu_s(data: Data, batch_size: int) -> float:
    """Processor time of reading a batch, the mean of some."""
    random, begun = np.random.default_rng(1), time.process_time()
    for _ in range(WAITED):
        data.training.batch(random.integers(0, len(data.training), batch_size))
    return (time.process_time() - begun) / WAITED


def peak_mb(device: torch.device) -> float:
    """Memory at its highest so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(
    folder: Path, recipe: Recipe, device: torch.device, seconds: float, size: int
) -> dict[str, Any]:
    """Trainer and plain loop in turns, each with all threads that it asks for."""
    settings, data = recipe.training, open_data(make_dataset(folder, size), recipe)
    loader, threads = loader_windows_per_s(data, settings.batch_size), torch.get_num_threads()
    learner = Learner(recipe, data, Peers(device))
    burst = 50 if device.type == "cuda" else 1
    ours_s, plain_s, resident_s = [], [], []
    with data.batches(settings, 0, learner.group) as batches:
        ours = Ours(learner, batches)
        shared = max(1, threads // settings.batch_shares) if device.type == "cpu" else threads
        torch.set_num_threads(settings.threads or shared)
        timed(ours.step, 3, device)
        peak = peak_mb(device)
        plain = Plain(recipe, data, device)
        torch.set_num_threads(threads)
        timed(plain.step, 2, device)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(ours_s) < 3:
            torch.set_num_threads(settings.threads or shared)
            ours_s += timed(ours.step, burst, device)
            if device.type == "cuda":
                batch = next(batches)
                resident_s += timed(lambda batch=batch: learner.learn(batch), burst, device)
            torch.set_num_threads(threads)
            plain_s += timed(plain.step, burst, device)
        torch.set_num_threads(settings.threads or shared)
        timed(ours.step, settings.readers + 1, device)
        ours.waits.clear()
        begun = time.process_time()
        together_s = sum(timed(ours.step, WAITED, device)) * (WAITED if burst > 1 else 1)
        update_cpu_s = (time.process_time() - begun) / WAITED
    torch.set_num_threads(threads)
    rate, plain_rate = (settings.batch_size / statistics.median(s) for s in (ours_s, plain_s))
    row = {
        "device": str(device),
        "threads": threads,
        "samples_per_s": round(rate, 2),
        "plain_samples_per_s": round(plain_rate, 2),
        "ratio": round(rate / plain_rate, 3),
        "data_wait_share": round(sum(ours.waits) / together_s, 5),
        "read_share": round(read_cpu_s(data, settings.batch_size) / update_cpu_s, 4),
        "loader_windows_per_s": round(loader),
        "loader_share": round(loader / rate, 1),
        "peak_mb": round(peak),
        "updates": len(ours_s) * burst,
    }
    if resident_s:
        resident = settings.batch_size / statistics.median(resident_s)
        row |= {"resident_samples_per_s": round(resident, 2), "of_resident": rate / resident}
    return row


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seconds", type=float, default=40.0, help="to measure (default 40)")
    parser.add_argument("--threads", type=int, help="of torch (default: as many as it would take)")
    parser.add_argument(
        "--encoded", type=int, default=0, metavar="N", help="pictures of N x N pixels, as jpeg"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="change the recipe")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = Recipe.from_text(RECIPE, overrides=parse_overrides(args.settings))
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        row = measure(Path(folder), recipe, torch.device(args.device), args.seconds, args.encoded)
    if args.json:
        print(json.dumps(row, indent=2))
        return 0
    for name, value in row.items():
        aim = f"  (aim {AIMS[name]:g})" if name in AIMS else ""
        print(f"{name:>24}  {value}{aim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
