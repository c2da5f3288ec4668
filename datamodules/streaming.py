"""One source as an endless stream, for data that does not fit on disk.

Each rank reads a share (whole shards if their number allows it, else every n-th row), in every pass another, so that
after as many passes as there are ranks it has read every row once, however uneven the shards. It shuffles window by
window: the next `WINDOW` rows in a seeded order. The position is where the window starts in the stream, and how much
of the window is used; so it is small and exact, and resuming reads one window again, behind the rows of its shard that
it skips. It holds only for the same number of ranks; another number is refused. A stream has no length: it starts again
at its end, and `stream_epoch` batches are one Lightning epoch. The next epoch goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from copy import copy
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset

from datamodules import workers
from datamodules.loading import Batch, MakeBatch, ResumableLoader
from datamodules.plan import permutation_keys, permute, rank_slice
from datamodules.rows import BadRow, Check, Record, Skipped, checked_rows, read_file
from datamodules.sources import Source, find_files, is_remote, load_remote

log = logging.getLogger(__name__)

WINDOW = 10_000  # rows that are shuffled together
RANK_IDS = 1 << 40  # row ids of one rank

_STREAM = 2  # what a permutation key is for; `plan` has 0 and 1

Position = dict[str, Any]
START: Position = {"passes": 0, "rows": None, "read": 0, "rest": [], "windows": 0, "items": 0, "used": 0}


class Expand(Protocol):
    """Rows to what batches are made of, with what it keeps for the next call in `rest`."""

    rest: list[int]

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What `rows` complete."""


class WholeRows:
    """Rows as they are."""

    def __init__(self) -> None:
        self.rest: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Nothing changes."""
        return rows


class StreamBatches(IterableDataset[Any]):
    """This rank's batches, without end, each with the position behind it.

    `TextBatch.rows` is `rank * 2^40 +` how many rows the rank had read before.

    Args:
        source: what to stream.
        check: of its rows.
        on_bad_row: "raise" or "skip".
        expand: what is done to rows before they are shuffled; blocks are cut here.
        make: rows to batch.
        global_batch_size: rows of a batch, all ranks together.
        seed: of the windows' order.
        rank: global rank.
        world_size: number of ranks.
    """

    def __init__(
        self,
        source: Source,
        check: Check,
        on_bad_row: str,
        expand: Expand,
        make: MakeBatch,
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source, self.check, self.on_bad_row, self.expand, self.make = source, check, on_bad_row, expand, make
        self.batch_size = len(rank_slice(np.arange(global_batch_size), rank, world_size))
        self.global_batch_size, self.seed, self.rank = global_batch_size, seed, rank
        self.first_step, self.position = 0, START
        self.remote = is_remote(source)
        rows = load_remote(source, streaming=True) if self.remote else _local_rows(source)
        self.shares = [split_dataset_by_node(rows, rank=i, world_size=world_size) for i in range(world_size)]
        self._read = 0

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        items = self._items(self.position)
        for step in count(self.first_step):
            rows, ids, positions = zip(*(next(items) for _ in range(self.batch_size)), strict=True)
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            yield self.make(step, 0, columns, np.array(ids) + self.rank * RANK_IDS), positions[-1]

    def _items(self, position: Position) -> Iterator[tuple[dict[str, Any], int, Position]]:
        used = position["used"]
        for start, window in self._windows(position):
            keys = permutation_keys(self.seed, _STREAM, self.rank, start["windows"])
            order = permute(np.arange(len(window)), len(window), keys).tolist()
            for i in range(used, len(window)):
                row = order[i]
                yield window[row], start["items"] + row, {**start, "used": i + 1}
            used = 0

    def _windows(self, position: Position) -> Iterator[tuple[Position, list[dict[str, Any]]]]:
        """Each window with the position of its start."""
        start = {**position, "used": 0}
        expand = copy(self.expand)
        expand.rest = list(start["rest"])
        faults: list[Skipped] = []  # of this turn's passes without a good row
        while True:
            turn, shift = divmod(start["passes"], len(self.shares))  # within a turn every rank reads every share
            if shift == 0:
                faults = []
            self.rows = self.shares[(self.rank + shift) % len(self.shares)]
            self.rows.set_epoch(turn)  # by which `datasets` shuffles files and shards from the second turn on
            self.rows.load_state_dict(start["rows"])
            self._read, whole_pass = start["read"], start["rows"] is None
            window: list[dict[str, Any]] = []
            good, skipped = 0, Skipped()
            for rows in checked_rows(self._records(), self.check, self.on_bad_row, skipped):
                good += len(rows)
                window += expand(rows)
                if len(window) >= WINDOW:
                    yield start, window
                    start = self._next(start, len(window), expand, self.rows.state_dict())
                    window = []
            if whole_pass and not good:
                faults.append(skipped)
            if len(faults) == len(self.shares):
                bad = sum(each.count for each in faults)
                first = next((message for each in faults for message in each.first), "every text is blank")
                raise BadRow(f"{self.source}: at least one row must be good; got none, {bad} bad. The first: {first}.")
            if skipped.count:
                log.warning("%s: %d bad rows skipped: %s", self.source, skipped.count, "; ".join(skipped.first))
            if window:
                yield start, window
            start = {**self._next(start, len(window), expand, None), "passes": start["passes"] + 1, "read": 0}
            if start["passes"] == len(self.shares) and start["items"] < self.global_batch_size:
                raise ValueError(
                    f"{self.source} must have enough rows for one global batch of {self.global_batch_size}; got "
                    f"{start['items']}. Lower global_batch_size or give it more rows."
                )

    def _next(self, start: Position, size: int, expand: Expand, rows: Any) -> Position:
        return {
            **start,
            "rows": rows,
            "read": self._read,
            "rest": list(expand.rest),
            "windows": start["windows"] + 1,
            "items": start["items"] + size,
        }

    def _records(self) -> Iterator[Record]:
        for values in self.rows:
            self._read += 1
            if self.remote:
                yield Record(f"{self.source}, row {self._read} of rank {self.rank}'s share", values)
            else:
                yield Record(**values)


def stream_content(source: Source) -> str:
    """What a stream reads, as far as can be said without reading it."""
    if is_remote(source):
        return " ".join(str(part) for part in (source, source.split, source.revision) if part)
    return ", ".join(f"{file.name} of {file.stat().st_size} bytes" for file in find_files(source.path))


def _local_rows(source: Source) -> datasets.IterableDataset:
    files = [str(file) for file in find_files(source.path)]
    return datasets.IterableDataset.from_generator(_read_files, gen_kwargs={"files": files})


def _read_files(files: list[str]) -> Iterator[dict[str, Any]]:
    for file in files:
        for record in read_file(Path(file)):
            yield {"place": record.place, "values": record.values, "fault": record.fault}


class StreamLoader(ResumableLoader):
    """`length` batches at each `iter()`, and the positions behind the last ones, by step.

    Two are kept: the one of the last batch, and the one before it, for a checkpoint written when a batch failed.
    """

    length: int
    first_step: Callable[[], int]
    positions: dict[int, Position]
    _behind: Position | None = None  # the batch that the running iterator gave last

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        step = self.first_step()
        if step not in self.positions:
            raise ValueError(
                f"resuming with streaming: true needs the stream's position at batch {step} in the checkpoint; it "
                "holds none. Start anew, or resume a checkpoint of a run with the same data."
            )
        # A new epoch goes on reading; a resumed run, or one that did not train the last batch, opens its shard again
        if self._iterator is None or self.positions[step] is not self._behind:
            dataset: Any = self.dataset
            dataset.first_step, dataset.position = step, self.positions[step]
            self._iterator = self._get_iterator()  # by this name Lightning ends its worker
        for batch, position in self._timed(islice(self._iterator, self.length)):
            last, self._behind = batch.step, position
            self.positions = {last: self.positions[last], last + 1: position}
            yield batch


def stream_loader(
    dataset: StreamBatches, length: int, num_workers: int, first_step: Callable[[], int], positions: dict[int, Position]
) -> StreamLoader:
    """A loader of epochs of `length` batches that starts at `positions[first_step()]`; of several workers the order
    would depend on their number.
    """
    loader = StreamLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        **workers.options(num_workers),
    )
    loader.length, loader.first_step, loader.positions = length, first_step, positions
    return loader


def _as_it_is(item: Any) -> Any:
    return item


def load_positions(state: dict[str, Any], rank: int, world_size: int) -> dict[int, Position]:
    """Step -> this rank's position.

    Raises:
        ValueError: the checkpoint is of another number of ranks.
    """
    if len(state["ranks"]) != world_size:
        raise ValueError(
            f"a run with streaming: true must resume on the {len(state['ranks'])} ranks it was saved on; got "
            f"{world_size}. Use as many devices, or streaming: false, which resumes on any number."
        )
    return {state["step"]: state["ranks"][rank]}
