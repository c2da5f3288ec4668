"""What all data modules share: sources to tables, tables to loaders."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Subset
from typing_extensions import override

from datamodules import workers
from datamodules.loading import Batch, MakeBatch, OrderedBatches, PlannedBatches, ResumableLoader, StepSampler
from datamodules.plan import Plan
from datamodules.sources import Kind, Source, Table, open_table, row_check
from datamodules.streaming import (
    START,
    Expand,
    Position,
    StreamBatches,
    StreamLoader,
    WholeRows,
    load_positions,
    stream_content,
    stream_loader,
)
from datamodules.texts import SentenceBatches
from otherside import distributed
from otherside.tokenizer import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

BYTES_OF_A_TOKEN = 4  # about, in English; only ranks' shares of work depend on it


class TextData(LightningDataModule):
    """Loaders over sources, planned by (seed, step); a subclass says what a row is and how rows become a batch.

    Args:
        tokenizer: of the model that reads the batches. The command line takes it from `model`.
        sources: training data.
        val_sources: validation data, read in file order.
        predict_sources: texts to embed, read in file order; blank ones are left out.
        global_batch_size: texts or pairs of one batch, all ranks together. With `trainer.accumulate_grad_batches: k`
            an optimizer step sees k such batches.
        max_length: most tokens of a text, instruction included; the rest is cut. In training and validation.
        predict_max_length: the same for `predict_sources`, whose vectors shall be those of the finished encoder: the
            command line takes it from `model.max_length`. None: `max_length`.
        seed: another seed is another order. The command line takes it from `seed_everything`.
        num_workers: processes that prepare batches, per rank. They never change the order.
        on_bad_row: "raise" stops at the first malformed row; "skip" leaves them out and counts them.
        streaming: read the one training source as a stream that is never stored. See `datamodules.streaming`.
        stream_epoch: with `streaming`, how many batches Lightning calls an epoch.
    """

    kind: Kind = "text"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sources: list[Source] | None = None,
        val_sources: list[Source] | None = None,
        predict_sources: list[Source] | None = None,
        *,
        global_batch_size: int,
        max_length: int,
        predict_max_length: int | None = None,
        seed: int = 42,
        num_workers: int = 2,
        on_bad_row: Literal["raise", "skip"] = "raise",
        streaming: bool = False,
        stream_epoch: int = 1000,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.sources, self.val_sources = list(sources or []), list(val_sources or [])
        self.predict_sources = list(predict_sources or [])
        self.global_batch_size = global_batch_size
        self.max_length = max_length
        self.predict_max_length = predict_max_length or max_length
        self.seed = seed
        self.num_workers = num_workers
        self.on_bad_row = on_bad_row
        self.streaming = streaming
        self.stream_epoch = stream_epoch
        if max_length < 2:
            raise ValueError(f"data.max_length must be at least 2 tokens; got {max_length}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0; got {num_workers}")
        if streaming and (len(self.sources) > 1 or num_workers > 1):
            raise ValueError(
                f"streaming: true must have one source and num_workers 0 or 1; got {len(self.sources)} sources and "
                f"num_workers {num_workers}. Mix sources with streaming: false, and set num_workers: 1."
            )
        self._positions: dict[int, Position] = {0: START}  # of the stream, until there is a loader
        self._stream: StreamLoader | None = None
        self.predict_from = 0  # batches of `predict_sources` left out at the start, as they are embedded already
        self.tables: list[Table] = []
        self.val_tables: list[Table] = []
        self.predict_tables: list[Table] = []

    @abstractmethod
    def make_batch(self, sources: Sequence[Source]) -> MakeBatch:
        """What turns rows of `sources` into a batch; it is sent to the workers."""

    def open(self, source: Source) -> Table:
        """The rows of a training or validation source."""
        return open_table(source, self.kind, self.on_bad_row)

    @override
    def prepare_data(self) -> None:
        """Check the sources that the run reads and build their caches; Lightning calls this once a node."""
        stage = self.trainer.state.fn if self.trainer else None
        for tables in self._open_all(stage and stage.value):
            for table in tables:
                warn_skipped(table)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Open the tables that `stage` reads.

        Raises:
            ValueError: the sources that `stage` reads are not set, or a setting does not fit the data.
        """
        self._check_sampler()
        needed = {"fit": "sources", "validate": "val_sources", "predict": "predict_sources"}.get(stage or "")
        if needed and not getattr(self, needed):
            raise ValueError(f"data.{needed} must name the texts to read; got none. Set data.init_args.{needed}.")
        self.tables, self.val_tables, self.predict_tables = self._open_all(stage)
        if self.tables:
            self.plan = self._plan()

    def _open_all(self, stage: str | None) -> tuple[list[Table], list[Table], list[Table]]:
        """Tables for training, validation and prediction; empty where `stage` does not read them."""
        train = self.sources if stage in (None, "fit") and not self.streaming else []
        val = self.val_sources if stage in (None, "fit", "validate") else []
        predict = self.predict_sources if stage in (None, "predict") else []
        return (
            [self.open(source) for source in train],
            [self.open(source) for source in val],
            [open_table(source, "corpus", self.on_bad_row) for source in predict],
        )

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        """Global batches in the plan's order, from the first one not yet trained; `len()` is one epoch."""
        if self.streaming:
            return self._stream_dataloader()
        longest = self.max_length * BYTES_OF_A_TOKEN
        dataset = PlannedBatches(self.plan, self.tables, self.make_batch(self.sources), *self._ranks, longest)
        return self._loader(dataset, StepSampler(self._whole_steps(len(dataset)), self.batches_trained))

    @override
    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Every validation row once, in file order."""
        return self._ordered(self.val_tables, self.make_batch(self.val_sources))

    @override
    def test_dataloader(self) -> list[int]:
        """One batch without content: the texts of `lightning test` are those of MTEB's tasks."""
        return [0]

    @override
    def predict_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Every text of `predict_sources` once, in file order; `TextBatch.rows` counts through all of them, blank texts
        and bad rows that are left out included.

        The first `predict_from` batches are left out.
        """
        make = SentenceBatches(self.tokenizer, self.predict_max_length, [s.instruction for s in self.predict_sources])
        return self._ordered(self.predict_tables, make, self.predict_from)

    def predict_settings(self) -> dict[str, Any]:
        """All that decides which text is in which batch of `predict_dataloader`, and what it looks like."""
        return {
            "sources": [repr(source) for source in self.predict_sources],
            "rows": [(len(table), table.rows._fingerprint) for table in self.predict_tables],
            "global_batch_size": self.global_batch_size,
            "max_length": self.predict_max_length,
        }

    def expander(self) -> Expand:
        """What is done to the rows of a stream before they are shuffled: nothing."""
        return WholeRows()

    @override
    def state_dict(self) -> dict[str, Any]:
        """With `streaming`, the position of every rank, to be called on all ranks."""
        if not self.streaming:
            return {}
        positions = self._stream.positions if self._stream else self._positions
        step = self.batches_trained()
        return {"step": step, "ranks": distributed.from_all(positions[step])} if step in positions else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: with `streaming`, another number of ranks.
        """
        if self.streaming and state_dict:
            self._positions = load_positions(state_dict, *self._ranks)
            if self._stream:
                self._stream.positions = self._positions

    def identity(self) -> dict[str, Any]:
        """What decides, beside the settings, what a training step reads; never the number of ranks. To be called when
        `setup` has opened the tables. A stream's content is not read ahead: of its files there are names and sizes.
        """
        found: dict[str, Any] = {"tokenizer": digest(self.tokenizer)}
        for i, source in enumerate(self.sources):
            if self.streaming:
                found[f"sources.{i}.content"] = stream_content(source)
            else:
                found |= {f"sources.{i}.rows": len(self.tables[i]), f"sources.{i}.content": self.tables[i].content}
        return found

    def _whole_steps(self, batches: int) -> int:
        """Batches of an epoch that make whole optimizer steps: at its end strategies differ in what they do with less.

        Raises:
            ValueError: there is not one.
        """
        each = self.trainer.accumulate_grad_batches if self.trainer else 1
        if batches < each:
            raise ValueError(
                f"trainer.accumulate_grad_batches must not be more than the {batches} batches of an epoch; got {each}. "
                "Lower it, or lower data.global_batch_size."
            )
        return batches // each * each

    def _stream_dataloader(self) -> StreamLoader:
        source = self.sources[0]
        dataset = StreamBatches(
            source,
            row_check(source, self.kind),
            self.on_bad_row,
            self.expander(),
            self.make_batch(self.sources),
            self.global_batch_size,
            self.seed,
            *self._ranks,
        )
        length = self._whole_steps(self.stream_epoch)
        self._stream = stream_loader(dataset, length, self.num_workers, self.batches_trained, self._positions)
        return self._stream

    def batches_trained(self) -> int:
        """Batches the trainer has trained, over all epochs; 0 without a trainer.

        `processed` is the counter that is right in every checkpoint: it is raised before `on_train_batch_end`.
        """
        if self.trainer is None:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    @property
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _plan(self) -> Plan:
        for table in self.tables:
            if len(table) < self.global_batch_size:
                raise ValueError(
                    f"{table.source} must have enough rows for one global batch of {self.global_batch_size}; got "
                    f"{len(table)}. Lower global_batch_size or give it more rows."
                )
        weights = [source.weight for source in self.sources if source.weight is not None]
        if weights and len(weights) < len(self.sources):
            raise ValueError("weight must be set for all sources or for none; got a mix. Set it for each of sources.")
        return Plan([len(table) for table in self.tables], weights or None, self.global_batch_size, self.seed)

    def _ordered(self, tables: list[Table], make: MakeBatch, first: int = 0) -> DataLoader[Batch] | list[Any]:
        if not tables:
            return []
        batches = OrderedBatches(tables, self.global_batch_size, make, *self._ranks)
        return self._loader(Subset(batches, range(first, len(batches))) if first else batches)

    def _loader(self, dataset: Any, sampler: StepSampler | None = None) -> DataLoader[Batch]:
        """Of ready batches; with a sampler it is for training and resumable."""
        if self.num_workers:  # tokenizers warn about every fork otherwise
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        kind = DataLoader if sampler is None else ResumableLoader
        return kind(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **workers.options(self.num_workers),
        )

    def _check_sampler(self) -> None:
        if self.trainer and self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "trainer.use_distributed_sampler must be false, as the plan already gives each rank its rows; got "
                "true. Set trainer.use_distributed_sampler: false."
            )


def warn_skipped(table: Table) -> None:
    """A log line about the bad rows left out, and about a corpus' blank texts, if any."""
    if (blank := table.extent - len(table) - table.skipped) > 0:
        log.warning("%s: %d blank texts have no vector; `row` counts them", table.source, blank)
    if table.skipped:
        log.warning(
            "%s: %d bad rows skipped, %d good. The first: %s",
            table.source,
            table.skipped,
            len(table),
            "; ".join(table.faults),
        )
