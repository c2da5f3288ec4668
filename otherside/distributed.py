"""What ranks tell each other, and how long they wait for it. Everything here is the identity in a single process."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def say(text: str) -> None:
    """A line for people, once, whatever the number of ranks."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)


def counts(n: int, device: torch.device) -> list[int]:
    """What every rank passed as `n`, by rank."""
    if world_size() == 1:
        return [n]
    every = torch.empty(world_size(), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(every, torch.full((1,), n, device=device))
    return every.tolist()


def most(n: int, device: torch.device) -> int:
    """The largest number that any rank passed."""
    return max(counts(n, device))


def least(x: float, device: torch.device) -> float:
    """The smallest x of any rank."""
    return min(counts(int(x), device))


def total(n: int, device: torch.device) -> Tensor:
    """Sum of what every rank passed, an int64 scalar on the device: nobody waits for it."""
    summed = torch.full((), n, device=device)
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def mean(x: Tensor) -> Tensor:
    """Of what every rank passed; without gradients."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / world_size()


class Largest:
    """The largest number that any rank passes, told a call later, so that nobody waits for ranks or for a device.

    A single process is told at once.
    """

    def __init__(self) -> None:
        self._told: tuple[Any, Tensor] | None = None  # when it is there; what was said

    def __call__(self, n: int, device: torch.device) -> int:
        """What was passed to the last call; 0 at the first. All ranks must call."""
        if world_size() == 1:
            return n
        there, largest = self._told or (None, torch.tensor(0))
        if there is not None:
            there()
        self._told = self._ask(n, device)
        return int(largest)

    def _ask(self, n: int, device: torch.device) -> tuple[Any, Tensor]:
        if device.type != "cuda":
            told = torch.tensor(n)
            return dist.all_reduce(told, dist.ReduceOp.MAX, async_op=True).wait, told
        told = torch.tensor(n).pin_memory()
        shared = told.to(device, non_blocking=True)
        work = dist.all_reduce(shared, dist.ReduceOp.MAX, async_op=True)
        with torch.cuda.stream(torch.cuda.Stream(device)):  # behind the step so far, and before the next
            work.wait()
            told.copy_(shared, non_blocking=True)
            shared.record_stream(torch.cuda.current_stream(device))
            return torch.cuda.current_stream(device).record_event().synchronize, told


def meet(seconds: float) -> None:
    """Wait until all ranks are here, longer than their collectives wait.

    Raises:
        RuntimeError: one is not, after so many seconds.
    """
    if world_size() == 1:
        return
    store = dist.PrefixStore("meet", dist.distributed_c10d._get_default_store())
    meeting, last = divmod(store.add("ranks", 1) - 1, world_size())  # nobody is at the next one before all were here
    if last == world_size() - 1:
        store.set(f"all{meeting}", "here")
    store.wait([f"all{meeting}"], timedelta(seconds=seconds))


def wait_at_most(timeout: timedelta, groups: Iterable[Any] | None = None) -> None:
    """Collectives of these groups raise after so long from now on.

    Args:
        timeout: of each.
        groups: process groups that this rank is in; None: all, and its store.
    """
    if world_size() == 1:
        return
    if groups is None:
        dist.distributed_c10d._get_default_store().set_timeout(timeout)  # where NCCL looks at a group's first use
        groups = dist.distributed_c10d._world.pg_map
    for group in groups:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def from_first(value: T) -> T:
    """What rank 0 passed."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def from_all(value: T) -> list[T]:
    """What every rank passed, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all ranks, rank by rank: (n, D) -> (sum of sizes, D), with gradients.

    Each rank's gradient is the sum over all ranks' losses, so with DDP's mean over ranks no factor of the world size
    is needed.

    Args:
        x: this rank's rows.
        sizes: every rank's number of rows, from `counts`.
    """
    if world_size() == 1 or not any(sizes):
        return x
    most = max(sizes)
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    return torch.cat([part[:size] for part, size in zip(all_gather(padded), sizes, strict=True)])
