"""Loaders whose index is the step: workers may finish in any order and never change what a step holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.plan import Plan, balanced, rank_slice
from datamodules.sources import Table
from otherside.batching import Batch

Item = TypeVar("Item")
MakeBatch = Callable[[int, int, dict[str, list[Any]], NDArray[np.int64]], Batch]
"""(step, source, columns of the rank's rows, their row ids) -> batch; runs in the workers."""


class PlannedBatches(Dataset[Batch]):
    """`self[step]` is this rank's part of the global batch of that step, with about as much text as the others have.

    Args:
        plan: decides the rows.
        tables: one for each source of the plan.
        make: rows to batch.
        rank: global rank.
        world_size: number of ranks.
        longest: bytes that a text counts at most where ranks' parts are balanced.
    """

    def __init__(
        self,
        plan: Plan,
        tables: Sequence[Table],
        make: MakeBatch,
        rank: int = 0,
        world_size: int = 1,
        longest: int = 4 * 512,
    ) -> None:
        rank_slice(np.arange(plan.global_batch_size), rank, world_size)  # refuse now, not in a worker
        self.plan, self.tables, self.make, self.rank, self.world_size = plan, tables, make, rank, world_size
        self.sizes = [table.sizes(longest) for table in tables] if world_size > 1 else []

    def __len__(self) -> int:
        """Steps of one epoch; larger steps exist too."""
        return self.plan.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        batch = self.plan.batch(step)
        rows, ids = batch.rows, self.plan.row_ids(batch)
        if self.world_size > 1:
            order = balanced(self.sizes[batch.source][rows], self.world_size)
            rows, ids = (rank_slice(part[order], self.rank, self.world_size) for part in (rows, ids))
        return self.make(step, batch.source, self.tables[batch.source].read(rows, ids), ids)


class OrderedBatches(Dataset[Batch]):
    """Every row once, in file order, for validation and prediction.

    Ranks must have the same number of batches, or collectives hang, and no batch may be empty. So a source of N rows
    is cut into `ceil(N / global_batch_size)` batches whose sizes differ by at most one, and each rank takes its
    contiguous slice of each: no small rest, no repeated row. (With a global batch of nearly one row a rank there may
    be fewer, larger batches, so that every rank has a row in each.)

    Args:
        tables: sources, one after the other.
        global_batch_size: most rows of one batch, all ranks together.
        make: rows to batch.
        rank: global rank.
        world_size: number of ranks.

    Raises:
        ValueError: a source has fewer rows than there are ranks.
    """

    def __init__(
        self, tables: Sequence[Table], global_batch_size: int, make: MakeBatch, rank: int = 0, world_size: int = 1
    ) -> None:
        self.tables, self.make, self.rank, self.world_size = tables, make, rank, world_size
        self.batches: list[tuple[int, int, int]] = []  # source, first row, row after the last
        for source, table in enumerate(tables):
            if len(table) < world_size:
                raise ValueError(
                    f"{table.source} must have a row for each of the {world_size} ranks; got {len(table)} rows. "
                    "Use fewer devices or more rows."
                )
            count = min(-(-len(table) // global_batch_size), len(table) // world_size)
            borders = [len(table) * i // count for i in range(count + 1)]
            self.batches += [(source, *pair) for pair in pairwise(borders)]
        self.first_ids = np.cumsum([0, *(table.extent for table in tables)])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        source, start, stop = self.batches[step]
        rows = rank_slice(np.arange(start, stop), self.rank, self.world_size)
        table = self.tables[source]
        ids = self.first_ids[source] + table.numbers(rows)
        return self.make(step, source, table.read(rows, ids), ids)


class StepSampler(Sampler[int]):
    """The steps of one Lightning epoch, counted on from the batches already trained.

    It always offers a whole epoch: after a resume inside one, Lightning stops asking where the epoch ends.

    Args:
        length: steps of an epoch.
        first_step: number of batches already trained; asked at the start of every epoch.
    """

    def __init__(self, length: int, first_step: Callable[[], int]) -> None:
        self.length, self.first_step = length, first_step

    def __iter__(self) -> Iterator[int]:
        first = self.first_step()
        return iter(range(first, first + self.length))

    def __len__(self) -> int:
        return self.length


class ResumableLoader(DataLoader[Batch]):
    """A `DataLoader` that starts its workers at the first `next()`.

    `Trainer.estimated_stepping_batches`, as learning-rate schedules read it, calls `iter()` before the checkpoint is
    restored; prefetching workers would start at step 0 then. `state_dict` is empty and tells Lightning that it need
    not warn: the position is read from the trainer's own counters.
    """

    waited = 0.0  # seconds in which batches were asked for and not there

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from self._timed(super().__iter__())

    def _timed(self, items: Iterator[Item]) -> Iterator[Item]:
        while True:
            begun = time.perf_counter()
            found = list(islice(items, 1))
            self.waited += time.perf_counter() - begun
            if not found:
                return
            yield found[0]

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is the trainer's batch counter."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""
