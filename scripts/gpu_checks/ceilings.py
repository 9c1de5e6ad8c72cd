"""What the card can do at most: copies and products."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from gpu_checks.run import Run


def best_s(run: Run, work: Callable[[], object], times: int = 5) -> float:
    """Seconds of `work` alone, the best of some."""
    work()
    found = []
    for _ in range(times):
        run.wait()
        begun = time.perf_counter()
        work()
        run.wait()
        found.append(time.perf_counter() - begun)
    return min(found)


def read_bandwidth(run: Run) -> float:
    """Bytes a second of reading the device's memory once."""
    data = torch.ones((4 if run.tiny else 2048) << 18, device=run.device)
    return data.numel() * 4 / best_s(run, data.sum)


def ceilings(run: Run) -> None:
    """Bandwidth of copies in GB/s, products in TFLOP/s."""
    size = (4 if run.tiny else 2048) << 20
    here = torch.empty(size, dtype=torch.uint8, pin_memory=run.device == "cuda")
    there, other = (torch.empty(size, dtype=torch.uint8, device=run.device) for _ in range(2))
    copies = {
        "read, GB/s": (lambda: None, read_bandwidth(run)),
        "copy on the device, GB/s": (lambda: other.copy_(there), 2 * size),
        "upload from pinned memory, GB/s": (lambda: there.copy_(here, non_blocking=True), size),
        "download to pinned memory, GB/s": (lambda: here.copy_(there, non_blocking=True), size),
    }
    for what, (copy, count) in copies.items():
        rate = count if what.startswith("read") else count / best_s(run, copy)
        run.row("ceilings", what=what, value=round(rate / 1e9, 1))
    side = 128 if run.tiny else 8192
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device=run.device, dtype=dtype) for _ in range(2))
        rate = 2 * side**3 / best_s(run, lambda a=a, b=b: a @ b)
        run.row("ceilings", what=f"{name} products, TFLOP/s", value=round(rate / 1e12, 2))
