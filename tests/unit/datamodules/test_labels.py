"""Texts with labels become pairs: of the same label, against others, drawn by (seed, epoch, row) alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from datamodules import Pairs, Source
from datamodules.labels import Examples, LabelledTable
from datamodules.loading import OrderedBatches, PlannedBatches
from datamodules.rows import BadRow
from datamodules.sources import Table
from otherside.batching import Packed, PairBatch
from otherside.candidates import key

LABELS = "abcab" + "bca" * 5  # of 20 rows


def written(path: Path, lines: Iterable[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def write(folder: Path, labels: Any = LABELS, name: str = "labels.jsonl") -> Source:
    lines = (json.dumps({"text": f"{label} {i}", "label": label}) for i, label in enumerate(labels))
    return Source(written(folder / name, lines), labels=True)


@pytest.fixture
def pairs_of(tokenizer: PreTrainedTokenizerBase) -> Callable[..., Pairs]:
    def build(source: Source, **settings: Any) -> Pairs:
        settings = {"global_batch_size": 4, "max_length": 16, "num_workers": 0, "negatives": 3, **settings}
        return Pairs(tokenizer, [source], [source], **settings)

    return build


def texts(tokenizer: PreTrainedTokenizerBase, batch: Any) -> list[list[str]]:
    """Query, positive and negatives of each row."""
    packed: Packed = batch.texts
    said = [tokenizer.decode(packed.input_ids[a:b]) for a, b in zip(packed.borders, packed.borders[1:], strict=False)]
    n, owners = batch.pairs, batch.marks.owners.tolist()
    hard = said[2 * n :]
    return [[said[i], said[n + i], *(t for t, owner in zip(hard, owners, strict=True) if owner == i)] for i in range(n)]


def test_draws_reach_all_rows_of_the_label_but_the_row_and_all_of_others() -> None:
    labels = np.array([0, 1, 0, 2, 1, 0, 2, 2, 2])
    examples = Examples(labels)
    for row in range(9):
        draws = [examples.draw(row, 3, np.random.default_rng((row, i))) for i in range(200)]
        same, others = np.flatnonzero(labels == labels[row]), np.flatnonzero(labels != labels[row])
        assert {positive for positive, *_ in draws} == set(same) - {row}
        assert {number for _, *negatives in draws for number in negatives} == set(others)
        assert all(len(set(negatives)) == 3 for _, *negatives in draws)
    assert len(examples.draw(0, 99, np.random.default_rng(0))) == 1 + 6


def test_a_batch_of_labels(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, pairs_of: Callable[..., Pairs]) -> None:
    data = pairs_of(write(tmp_path))
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert isinstance(batch, PairBatch) and batch.marks.in_batch and batch.marks.labels is not None
            rows = texts(tokenizer, batch)
            said = [*[row[0] for row in rows], *[row[1] for row in rows], *[text for row in rows for text in row[2:]]]
            assert batch.marks.labels.tolist() == [key(text[0]) for text in said]
            for query, positive, *negatives in rows:
                assert query[0] == positive[0] and query != positive
                assert len(set(negatives)) == 3 and not any(text[0] == query[0] for text in negatives)


def test_draws_follow_seed_epoch_and_row(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, pairs_of: Callable[..., Pairs]
) -> None:
    def drawn(step: int, seed: int = 0, size: int = 20) -> dict[str, list[str]]:
        data = pairs_of(write(tmp_path), seed=seed, global_batch_size=size)
        data.setup("fit")
        batches = PlannedBatches(data.plan, data.tables, data.make_batch(data.sources))
        first = step * (20 // size)
        rows = [row for i in range(20 // size) for row in texts(tokenizer, batches[first + i])]
        return {query: others for query, *others in rows}

    assert drawn(0) == drawn(0) == drawn(0, size=5) and len(drawn(0)) == 20
    assert drawn(0) != drawn(1)  # the next epoch
    assert drawn(0) != drawn(0, seed=1)


def test_each_row_has_a_draw_of_its_own(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, pairs_of: Callable[..., Pairs]
) -> None:
    """Forty rows that draw one of 19 or 20 others seldom agree; by one draw for all, they all would."""
    source = write(tmp_path, "ab" * 20)
    data = pairs_of(source, negatives=1, global_batch_size=40)
    data.setup("fit")
    planned = texts(tokenizer, PlannedBatches(data.plan, data.tables, data.make_batch(data.sources))[0])
    for others in zip(*planned, strict=True):
        assert len(set(others)) > 15


def test_a_text_is_no_positive_of_itself(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, pairs_of: Callable[..., Pairs]
) -> None:
    lines = [json.dumps({"text": text, "label": text[0]}) for text in ["a 1", "a 2", "b 1", "a 1", "b 2", "a 1"]]
    source = Source(written(tmp_path / "twice.jsonl", lines), labels=True)
    data = pairs_of(source, negatives=1)
    data.setup("fit")
    assert [row["text"] for row in data.tables[0].rows] == ["a 1", "a 2", "b 1", "b 2"]
    planned = texts(tokenizer, PlannedBatches(data.plan, data.tables, data.make_batch(data.sources))[0])
    for query, positive, *_ in planned:
        assert query != positive and query[0] == positive[0]
    lonely = Source(written(tmp_path / "alone.jsonl", [*lines[:3], lines[2]]), labels=True)
    with pytest.raises(BadRow, match="1 of 2 labels have one, such as 'b'"):
        pairs_of(lonely).setup("fit")


@pytest.mark.parametrize("ordered", [False, True])
def test_ranks_together_see_the_same_pairs(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, pairs_of: Callable[..., Pairs], ordered: bool
) -> None:
    data = pairs_of(write(tmp_path), global_batch_size=7)
    data.setup("fit")
    make = data.make_batch(data.sources)

    def rank(number: int, world_size: int) -> Any:
        if ordered:
            return OrderedBatches(data.val_tables, 7, make, number, world_size)
        return PlannedBatches(data.plan, data.tables, make, number, world_size)

    for step in range(len(rank(0, 1))):
        parts = [rank(number, 3)[step] for number in range(3)]
        found, whole = [row for part in parts for row in texts(tokenizer, part)], texts(tokenizer, rank(0, 1)[step])
        assert (found if ordered else sorted(found)) == (whole if ordered else sorted(whole))


def test_workers_change_nothing(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, pairs_of: Callable[..., Pairs]
) -> None:
    seen = []
    for workers in (0, 2):
        data = pairs_of(write(tmp_path), num_workers=workers)
        data.setup("fit")
        seen.append([texts(tokenizer, batch) for batch in data.train_dataloader()])
    assert seen[0] == seen[1]


def test_numbers_are_labels_too_and_columns_have_names(tmp_path: Path, pairs_of: Callable[..., Pairs]) -> None:
    lines = (json.dumps({"sentence": f"text {i}", "class": i % 2}) for i in range(8))
    path = written(tmp_path / "a.jsonl", lines)
    data = pairs_of(Source(path, labels=True, fields={"text": "sentence", "label": "class"}))
    data.setup("fit")
    assert data.tables[0].rows[1] == {"text": "text 1", "label": "1"}


def test_sizes_are_those_of_the_rows_that_are_kept(tmp_path: Path, pairs_of: Callable[..., Pairs]) -> None:
    """A repeated text is left out; by sizes rows are shared among ranks."""
    lines = [{"text": text, "label": text[0]} for text in ("a", "a", "bbbb", "aaa", "bb")]
    source = Source(written(tmp_path / "a.jsonl", map(json.dumps, lines)), labels=True)
    table = pairs_of(source).open(source)
    assert list(table.rows["text"]) == ["a", "bbbb", "aaa", "bb"]
    assert table.sizes(99).tolist() == [2, 5, 4, 3], "of text and label"
    assert table.sizes(99).dtype == np.int32, "they are held for all rows"


def test_labels_may_have_more_bytes_than_an_array_of_arrow() -> None:
    """2^31; here the same two labels again and again, so that memory holds them once."""
    labels = [pa.array([letter * (1 << 26)]) for letter in "xy"] * 17
    texts = pa.chunked_array([[f"text {i}"] for i in range(len(labels))])
    rows = datasets.Dataset(pa.table({"text": texts, "label": pa.chunked_array(labels)}), fingerprint="0")
    table = LabelledTable.of(Table(Source("a.jsonl", labels=True), rows), 1, 0)
    assert table.examples.labels.tolist() == [0, 1] * 17 and len(table.keys) == 2


def test_what_cannot_be_paired_is_refused(tmp_path: Path, pairs_of: Callable[..., Pairs]) -> None:
    with pytest.raises(BadRow, match="two labels or more, as negatives are of another; all 8 are of 'a'"):
        pairs_of(write(tmp_path, "aaaaaaaa", "one.jsonl")).setup("fit")
    with pytest.raises(BadRow, match=r"2 of 4 labels have one, such as 'c'\. Remove these rows"):
        pairs_of(write(tmp_path, "aabbcbad", "alone.jsonl")).setup("fit")
    with pytest.raises(ValueError, match=r"data\.negatives must say how many texts of other labels.*null"):
        pairs_of(write(tmp_path), negatives=None)


def test_the_marks_of_labels_are_on_the_rows_negatives(tmp_path: Path, pairs_of: Callable[..., Pairs]) -> None:
    data = pairs_of(write(tmp_path), negatives=2)
    data.setup("fit")
    batch: Any = next(iter(data.train_dataloader()))
    assert batch.marks.owners.equal(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert len(batch.marks.keys) == len(batch.texts) == 16
