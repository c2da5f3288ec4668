"""The plan: which rows make the global batch of a step, as a pure function of (seed, step).

Nothing is stored but sizes, weights and the seed. Without weights an epoch is a seeded permutation of all whole batches
of all sources; with weights a step finds its source in a seeded permutation of fixed quotas, so the number of earlier
batches of that source is arithmetic. A row comes from a seeded permutation of [0, size). Permutations are computed
value by value (a Feistel network), so a source of any size costs no memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUOTA_STEPS = 1 << 16  # steps in which every source is drawn exactly as often as its weight says, up to rounding
ROUNDS = 6

_SOURCES, _ROWS = 0, 1  # what a key is for


@dataclass(frozen=True)
class PlannedBatch:
    """One global batch.

    Args:
        source: number of the source all rows come from.
        rows: (global_batch_size,) int64, row numbers in that source.
        epochs: (global_batch_size,) int64, how often the source had been read to its end before each row.
    """

    source: int
    rows: NDArray[np.int64]
    epochs: NDArray[np.int64]


class Plan:
    """Global batches, computed and never stored. The same on every rank and in every worker.

    Several sources without weights: an epoch holds every row once, but for those that do not fill a source's last
    batch; every epoch leaves out others. One source, or weights: each source is read on and on. Within one epoch of a
    source no row comes twice. A batch may hold the end of one epoch and the start of the next, so that only in such a
    batch a row may come twice.

    Args:
        sizes: number of rows of each source.
        weights: how often each source is drawn, in any unit; None means as often as an epoch needs.
        global_batch_size: rows of one batch, all ranks together.
        seed: another seed is another order.

    Raises:
        ValueError: a source has fewer rows than one global batch, or a weight is not positive.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float] | None, global_batch_size: int, seed: int
    ) -> None:
        shares = np.array(sizes if weights is None else weights, dtype=np.float64)
        if not len(sizes) or len(shares) != len(sizes):
            raise ValueError(f"a plan needs one weight a source; got {len(sizes)} sources and {len(shares)} weights")
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise ValueError(
                f"weight must be a positive number; got {shares.tolist()}. Leave a source of weight 0 out."
            )
        if not 0 < global_batch_size <= min(sizes):
            raise ValueError(
                f"global_batch_size must be between 1 and the rows of the smallest source, {min(sizes)}; got "
                f"{global_batch_size}. Lower global_batch_size or give the source more rows."
            )
        self.sizes = [int(size) for size in sizes]
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._quotas = np.maximum(1, np.rint(shares / shares.sum() * QUOTA_STEPS)).astype(np.int64)
        self._period = int(self._quotas.sum())
        self._first_ids = np.cumsum([0, *self.sizes])
        self._by_epochs = weights is None and len(self.sizes) > 1
        self._first_batches = np.cumsum([0, *(size // global_batch_size for size in self.sizes)])
        self._block = -1  # the draws of one block of steps are kept, only to save time
        self._draws: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of all sources; with weights, those after which as many rows were read as all sources have."""
        return int(self._first_batches[-1]) if self._by_epochs else sum(self.sizes) // self.global_batch_size

    def batch(self, step: int) -> PlannedBatch:
        """The global batch of `step` (from 0)."""
        source, first = self._in_epoch(step) if self._by_epochs else self._by_weight(step)
        positions = first + np.arange(self.global_batch_size)
        epochs, offsets = np.divmod(positions, self.sizes[source])
        rows = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            keys = permutation_keys(self.seed, _ROWS, source, int(epoch))
            rows[here] = permute(offsets[here], self.sizes[source], keys)
        return PlannedBatch(source, rows, epochs)

    def row_ids(self, batch: PlannedBatch) -> NDArray[np.int64]:
        """(global_batch_size,) int64, unique for every (source, epoch, row).

        With N rows in all sources: `epoch * N + rows of the sources before + row`.
        """
        return batch.epochs * self._first_ids[-1] + self._first_ids[batch.source] + batch.rows

    def _in_epoch(self, step: int) -> tuple[int, int]:
        """The source of `step` and where its rows begin in that source, read on and on."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        keys = permutation_keys(self.seed, _SOURCES, epoch)
        batch = int(permute(np.array([offset]), self.steps_per_epoch, keys)[0])
        source = int(np.searchsorted(self._first_batches, batch, side="right")) - 1
        earlier = batch - int(self._first_batches[source])
        return source, epoch * self.sizes[source] + earlier * self.global_batch_size

    def _by_weight(self, step: int) -> tuple[int, int]:
        """The same; behind the rows of the earlier steps that had this source."""
        block, offset = divmod(step, self._period)
        if block != self._block:
            order = permute(np.arange(self._period), self._period, permutation_keys(self.seed, _SOURCES, block))
            self._draws = np.searchsorted(np.cumsum(self._quotas), order, side="right")
            self._block = block
        source = int(self._draws[offset])
        earlier = block * int(self._quotas[source]) + int(np.count_nonzero(self._draws[:offset] == source))
        return source, earlier * self.global_batch_size


def rank_slice(rows: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The contiguous part of a global batch that belongs to `rank`; sizes differ by at most one.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    if len(rows) < world_size:
        raise ValueError(
            f"a global batch must have a row for each of the {world_size} ranks; got {len(rows)} rows. "
            "Raise global_batch_size or use fewer devices."
        )
    return rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]


def balanced(sizes: NDArray[np.signedinteger], world_size: int) -> NDArray[np.int64]:
    """An order of a global batch's rows in which each rank's `rank_slice` holds about as much as any other's.

    From the largest row on, each goes to the rank that holds least so far and still has room (Graham, 1969).

    Args:
        sizes: (N,) of the rows, in any unit.
        world_size: number of ranks, at most N.

    Returns:
        (N,) int64, places in `sizes`.
    """
    counts = np.diff(len(sizes) * np.arange(world_size + 1) // world_size)
    held: list[list[int]] = [[] for _ in range(world_size)]
    lightest = [(0, rank) for rank in range(world_size)]  # a heap
    for place in np.argsort(-sizes, kind="stable").tolist():
        load, rank = heapq.heappop(lightest)
        held[rank].append(place)
        if len(held[rank]) < counts[rank]:
            heapq.heappush(lightest, (load + int(sizes[place]), rank))
    return np.array([place for places in held for place in places])


def permutation_keys(*entropy: int) -> NDArray[np.uint64]:
    """(ROUNDS,) keys of one permutation, drawn from non-negative integers (a seed and what it is for)."""
    return np.asarray(np.random.SeedSequence(entropy).generate_state(ROUNDS, np.uint64), dtype=np.uint64)


def permute(positions: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a keyed permutation of [0, size) sends each of `positions`, without building the permutation.

    A Feistel network permutes [0, 4^h), the smallest such range that holds `size`; a value that falls outside is sent
    on until it comes back inside ("cycle walking"; Black and Rogaway, 2002), which is again a permutation.
    """
    half = np.uint64((int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)

    def network(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << half) | right

    values = network(positions.astype(np.uint64))
    while (outside := values >= size).any():
        values[outside] = network(values[outside])
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
