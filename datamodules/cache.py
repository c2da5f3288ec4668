"""Rows become memory-mapped Arrow tables once, in the cache of `datasets`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Features
from datasets.exceptions import DatasetGenerationError

from datamodules.rows import Skipped
from otherside.files import atomic

BATCH_ROWS = 10_000  # that are written together, or fewer:
BATCH_BYTES = 1 << 24  # about; Arrow counts a batch's bytes with 31 bits
FORMAT_VERSION = 4  # part of every cache key: raise it when what is stored changes


def cached(
    key: Any, features: Features, rows: Callable[[Skipped], Iterator[dict[str, Any]]]
) -> tuple[datasets.Dataset, Skipped, str]:
    """The rows as an Arrow table mapped from the cache folder of `datasets`, built if no table has this `key` yet.

    Args:
        key: anything JSON can hold; equal keys mean equal rows.
        features: columns.
        rows: makes the rows; what it notes as skipped is kept beside the table, and a digest of the rows.
    """
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, key], sort_keys=True).encode()).hexdigest()[:32]
    note = Path(datasets.config.HF_DATASETS_CACHE) / "otherside" / f"{digest}.json"

    def generate() -> Iterator[pa.Table]:
        skipped, content = Skipped(), hashlib.sha256()
        for batch, lines in _batches(rows(skipped)):
            content.update("".join(lines).encode())
            yield pa.Table.from_pylist(batch, schema=features.arrow_schema)
        # Written before `datasets` commits the table, so a table never lacks its note
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic(note) as temporary:
            temporary.write_text(json.dumps({"skipped": vars(skipped), "content": content.hexdigest()}))

    # The names are those of `Dataset.from_generator`, with which older versions built: their tables are found
    builder = _TableBuilder(
        dataset_name="generator", config_id=f"default-fingerprint={digest}", features=features, generate=generate
    )
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    dataset = builder.as_dataset(split="train")
    dataset._fingerprint = digest
    noted = json.loads(note.read_text())
    return dataset, Skipped(**noted["skipped"]), noted["content"]


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Rows and their JSON, so many together as Arrow takes at once."""
    batch: list[dict[str, Any]] = []
    lines: list[str] = []
    size = 0
    for row in rows:
        batch.append(row)
        lines.append(json.dumps(row))
        size += len(lines[-1])  # not less than the bytes of its texts
        # Tables of one row `datasets` would collect
        if len(batch) == BATCH_ROWS or (size >= BATCH_BYTES and len(batch) > 1):
            yield batch, lines
            batch, lines, size = [], [], 0
    if batch:
        yield batch, lines


@dataclass
class _TableConfig(datasets.BuilderConfig):
    features: Features | None = None
    generate: Callable[[], Iterator[pa.Table]] = lambda: iter(())


class _TableBuilder(datasets.ArrowBasedBuilder):
    """`Dataset.from_generator` of whole batches: row by row, every value is encoded by itself."""

    BUILDER_CONFIG_CLASS = _TableConfig
    DEFAULT_WRITER_BATCH_SIZE = BATCH_ROWS

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train")]

    def _generate_tables(self) -> Iterator[tuple[Any, pa.Table]]:
        yield from enumerate(self.config.generate())
