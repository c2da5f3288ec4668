"""What ranks tell each other inside a loss. Everything here is the identity in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def counts(n: int, device: torch.device) -> list[int]:
    """What every rank passed as `n`, by rank."""
    if world_size() == 1:
        return [n]
    mine = torch.tensor([n], device=device)
    every = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(every, mine)
    return [int(count) for count in every]


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
