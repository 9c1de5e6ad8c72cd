"""One training in several processes, as torchrun starts them; alone, all of this does nothing.

Every process holds the whole policy and computes its part of each batch; the gradients' sum is the
batch's, so each process then makes the same update. Only the first one writes and speaks.
"""

from __future__ import annotations

import gc
import importlib
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.devices import pick_device

PATIENCE = timedelta(hours=6)  # while the first process measures and writes
STARTED_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Peers:
    """The processes of a training.

    Attributes:
        device: where this one computes.
        rank: this one's number, from 0.
        count: how many there are.
    """

    device: torch.device = torch.device("cpu")
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def part(self, windows: int) -> slice:
        """This process' part of a batch."""
        return slice(windows * self.rank // self.count, windows * (self.rank + 1) // self.count)

    def sum(self, here: Tensor) -> Tensor:
        """Of all processes' tensors; this one's is replaced."""
        if self.several:
            distributed.all_reduce(here)
        return here

    def any(self, here: bool) -> bool:
        """Whether it is so in any process; waits for all of them."""
        flag = torch.tensor(float(here), device=self.device)
        if self.several:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def wait(self) -> None:
        """For all others to come here too."""
        self.any(False)

    def from_first(self, values: Sequence[float]) -> list[float]:
        """The first process' numbers, in all."""
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.several:
            distributed.broadcast(numbers, 0)
        found: list[float] = numbers.tolist()
        return found

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """Make sure that they are the same in all processes, bit for bit.

        Raises:
            UserError: they are not: the processes train different policies.
        """
        if not self.several:
            return
        sums = [t.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for t in tensors]
        own = torch.stack(sums)
        largest, smallest = own.clone(), own.clone()
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
        if not torch.equal(largest, smallest):
            what = "the processes' weights are no longer equal"
            cure = "use one kind of GPU and one version of everything; resume the last checkpoint"
            raise UserError(what, f"process {self.rank} of {self.count}", cure)


def place() -> tuple[int, int]:
    """This process' number, from 0, and how many torchrun has started; it is alone without."""
    told = all(name in os.environ for name in STARTED_BY_TORCHRUN)
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if told else (0, 1)


@contextmanager
def peers(device: str, batch_size: int) -> Iterator[Peers]:
    """Join the others that torchrun has started, where it has.

    Args:
        device: the recipe's; a GPU becomes the one of this process' number on this machine.
        batch_size: of all processes together.

    Raises:
        UserError: there is no such device, or fewer windows than processes.
    """
    picked, (rank, count) = pick_device(device), place()
    if count == 1:
        yield Peers(picked)
        return
    if batch_size < count:
        what = f"{batch_size} windows for {count} processes"
        raise UserError(what, "training.batch_size", "raise it, or start fewer processes")
    if picked.type == "cuda":
        picked = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(picked)
    # Its functions keep the group that is there when it is imported, which the optimizer does: a
    # group that is kept is still at work when Python ends, and the process then aborts.
    importlib.import_module("torch.distributed.nn")
    backend = "nccl" if picked.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Peers(picked, rank, count)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()  # what exchanges gradients must not outlive the group: it would never end
        distributed.destroy_process_group()
