"""What grows with the number of ranks, measured in one process as one rank of many would see it.

    python benchmarks/thousand_ranks.py

The loss: memory for the vectors that 1,024 ranks gather, in copies of all candidates; other ranks are simulated by
copies of this one's tensors. The plan: time to work out the rows of a global batch, which every rank does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from harness import held
from torch import Tensor

from datamodules.plan import Plan, rank_slice
from otherside import distributed
from otherside.losses import InfoNCE

PAIRS = 64  # of one rank


class Gathered(torch.autograd.Function):
    """An all-gather whose other ranks say the same; backward copies gradients as NCCL's reduce-scatter does."""

    ranks = 1

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for _ in range(Gathered.ranks))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.cat(gradients).view(Gathered.ranks, *gradients[0].shape).sum(0)


def loss_memory(ranks: int, negatives: int, width: int, loss: InfoNCE) -> float:
    """Peak of loss and backward, in copies of all candidates."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.waitpid(child, 0)
        os.close(writer)
        return float(os.read(reader, 100))
    Gathered.ranks = ranks
    distributed.world_size, distributed.rank = lambda: ranks, lambda: 0
    distributed.counts = lambda n, device: [n] * ranks
    distributed.all_gather = Gathered.apply
    rows = [torch.randn(PAIRS * k, width, requires_grad=True) for k in (1, 1, negatives)]
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    loss(*rows).backward()
    os.write(writer, str((held("VmHWM") - before) / (ranks * PAIRS * (1 + negatives) * width * 4)).encode())
    os._exit(0)


def milliseconds(run: Any, times: int = 20) -> float:
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(found)


def plan_line(batch: int) -> str:
    begun = time.perf_counter()
    plan = Plan([107_000] * 14, None, batch, seed=42)
    plan.batch(0)
    first, steps = 1e3 * (time.perf_counter() - begun), iter(range(1, 1000))
    ms = milliseconds(lambda: rank_slice(plan.batch(next(steps)).rows, batch // 128, batch // 64))
    return f"| {batch:,} | {ms:.1f} | {first:.0f} |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    print("| loss on 1,024 ranks, 64 pairs each | copies of all candidates at the peak |\n| --- | --- |")
    for negatives, loss in [
        (1, InfoNCE()),
        (0, InfoNCE()),
        (0, InfoNCE(symmetric=True)),
        (0, InfoNCE(matryoshka=(128,))),
    ]:
        print(f"| {negatives} negatives, {loss} | {loss_memory(1024, negatives, 256, loss):.1f} |", flush=True)
    print("\n| plan of 14 sources, 1.5M rows: global batch | ms a batch | ms of the first |\n| --- | --- | --- |")
    for batch in (512, 4096, 65_536):
        print(plan_line(batch), flush=True)
    numbers = [torch.tensor([64])] * 1024
    together = torch.cat(numbers)
    print(
        f"\ncounts of 1,024 ranks: {milliseconds(lambda: [int(n) for n in numbers]):.2f} ms one by one, "
        f"{milliseconds(together.tolist):.2f} ms at once"
    )


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
