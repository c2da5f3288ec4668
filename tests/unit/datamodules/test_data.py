"""Batches hold what they should and do not depend on ranks or workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from datamodules import Blocks, Pairs, Sentences, Source
from datamodules.base import warn_skipped
from datamodules.loading import OrderedBatches, PlannedBatches
from datamodules.sources import open_table
from otherside.batching import Packed, PairBatch, TextBatch
from otherside.candidates import key
from otherside.tokenizer import load_tokenizer, start_id

Write = Callable[..., str]


def words(tokenizer: PreTrainedTokenizerBase, texts: Packed) -> list[str]:
    return [tokenizer.decode(texts.input_ids[a:b]) for a, b in zip(texts.borders, texts.borders[1:], strict=False)]


# --- what batches hold


def test_sentences_carry_the_instruction_and_are_cut(tokenizer: PreTrainedTokenizerBase, write_texts: Write) -> None:
    source = Source(write_texts(8), instruction="Find: ")
    data = Sentences(tokenizer, [source], global_batch_size=4, max_length=8, num_workers=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TextBatch)
    expected = [f"Find: text {row}" for row in batch.rows.tolist()]
    full = [tokenizer(text)["input_ids"] for text in expected]
    assert batch.texts.lengths.tolist() == [min(8, len(ids)) for ids in full]
    assert batch.texts.input_ids.tolist() == [token for ids in full for token in ids[:8]]
    assert (batch.texts.skip > 0).all()


def test_row_ids_name_source_epoch_and_row(sentences_of: Callable[..., Sentences], write_texts: Write) -> None:
    data = sentences_of(write_texts(8), write_texts(12, "more.jsonl"))
    data.setup("fit")
    ids = [row for step in range(20) for row in PlannedBatches(data.plan, data.tables, _rows_only)[step].rows.tolist()]
    assert len(set(ids)) == len(ids)


def _rows_only(step: int, source: int, rows: dict[str, list[Any]], ids: Any) -> TextBatch:
    none = torch.zeros(0, dtype=torch.int64)
    return TextBatch(step, Packed(none, none, none, none), torch.from_numpy(ids))


def test_blocks_join_texts_in_file_order(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    texts = [f"Sentence number {i}." for i in range(700)]  # more than one tokenising batch
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    data = Blocks(tokenizer, [Source(str(tmp_path / "a.txt"))], global_batch_size=2, max_length=64, block_size=10)
    table = data.open(data.sources[0])
    joined = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = list(table.rows["input_ids"])
    assert blocks == [joined[i : i + 10] for i in range(0, len(joined) - 9, 10)]
    tokenizer(["anything"], truncation=True, max_length=3)  # leaves its settings in the tokenizer
    assert data.open(data.sources[0]).rows.cache_files == table.rows.cache_files
    data.block_size = 12
    assert len(data.open(data.sources[0]).rows[0]["input_ids"]) == 12


def test_blocks_of_another_tokenizer_are_others(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"Sentence number {i}." for i in range(40)))
    source = Source(str(tmp_path / "a.txt"))

    def blocks(start_token: str | None) -> list[list[int]]:
        tokenizer = load_tokenizer(str(tiny_llama), start_token=start_token)
        data = Blocks(tokenizer, [source], global_batch_size=2, max_length=16, block_size=12)
        return list(data.open(source).rows["input_ids"])

    begun, ended, bare = blocks("<s>"), blocks("</s>"), blocks(None)
    assert [found[0][0] for found in (begun, ended)] == [0, 1]
    assert bare not in (begun, ended)
    assert blocks("<s>") == begun


def test_every_block_and_every_text_in_it_begins_with_the_start_token(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_llama))
    start = start_id(tokenizer)
    texts = [f"Sentence number {i}." for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    data = Blocks(tokenizer, [Source(str(tmp_path / "a.txt"))], global_batch_size=2, max_length=16, block_size=12)
    data.num_workers = 0
    data.setup("fit")
    blocks = [list(block) for block in data.tables[0].rows["input_ids"]]
    assert {len(block) for block in blocks} == {12}
    assert {block[0] for block in blocks} == {start}
    stream = [token for text in texts for token in tokenizer(text)["input_ids"]]
    assert stream[0] == start
    place = 0
    for block in blocks:  # what is left when the starts that cutting put there are taken away is the texts
        body = block if stream[place] == start else block[1:]
        assert stream[place : place + len(body)] == body
        place += len(body)
    assert len(stream) - place < 12
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TextBatch)
    assert batch.texts.start.tolist() == batch.texts.skip.tolist() == [1, 1]


def test_blocks_make_batches_of_full_blocks(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"Sentence number {i}." for i in range(50)))
    source = Source(str(tmp_path / "a.txt"))
    data = Blocks(tokenizer, [source], [source], [source], global_batch_size=4, max_length=8, block_size=None)
    data.num_workers = 0
    data.setup()
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.tables[0]) // 4
    assert all(batch.texts.lengths.tolist() == [8] * 4 for batch in batches)
    assert sum(len(batch.texts) for batch in data.val_dataloader()) == len(data.tables[0])
    predicted = [text for batch in data.predict_dataloader() for text in words(tokenizer, batch.texts)]
    assert predicted[0] == tokenizer.decode(tokenizer("Sentence number 0.")["input_ids"][:8])


def test_blocks_refuse_what_cannot_be(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="block_size must be between 2 and max_length=8; got 512"):
        Blocks(tokenizer, global_batch_size=4, max_length=8)
    told = Source("a.txt", instruction="passage: ")
    Blocks(tokenizer, predict_sources=[told], global_batch_size=4, max_length=8, block_size=8)
    with pytest.raises(
        ValueError, match=r"Blocks must have no instruction, .*; got 'passage: ' for a\.txt\. Remove it"
    ):
        Blocks(tokenizer, [told], global_batch_size=4, max_length=8, block_size=8)


def test_pairs(tokenizer: PreTrainedTokenizerBase, write_pairs: Write) -> None:
    source = Source(write_pairs(6), instruction="ask: ", document_instruction="doc: ")
    data = Pairs(tokenizer, [source], [source], global_batch_size=6, max_length=32, num_workers=0, negatives=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PairBatch) and isinstance(next(iter(data.val_dataloader())), PairBatch)
    texts = words(tokenizer, batch.texts)
    rows = [int(text.rsplit(" ", 1)[1]) for text in texts[:6]]
    assert texts[:6] == [f"ask: q {row}" for row in rows]
    assert texts[6:12] == [f"doc: p {row}" for row in rows]
    negatives = [text.split() for text in texts[12:]]
    assert [int(row) for _, _, row, _ in negatives] == [row for row in rows for _ in range(2)]
    assert all(a[3] != b[3] for a, b in zip(negatives[::2], negatives[1::2], strict=True))
    assert batch.pairs == 6


def test_negatives_are_drawn_by_seed_epoch_and_row(tokenizer: PreTrainedTokenizerBase, write_pairs: Write) -> None:
    source = Source(write_pairs(6, negatives=5))

    def drawn(seed: int, step: int) -> set[str]:
        data = Pairs(tokenizer, [source], global_batch_size=6, max_length=32, seed=seed, negatives=1)
        data.setup("fit")
        batch = PlannedBatches(data.plan, data.tables, data.make_batch(data.sources))[step]
        return set(words(tokenizer, batch.texts)[12:])

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1)  # the next epoch
    assert drawn(0, 0) != drawn(1, 0)


@pytest.mark.parametrize(("negatives", "count"), [(None, 18), (0, 0), (5, 18)])
def test_number_of_negatives(
    tokenizer: PreTrainedTokenizerBase, write_pairs: Write, negatives: int | None, count: int
) -> None:
    source = Source(write_pairs(6))
    data = Pairs(tokenizer, [source], global_batch_size=6, max_length=32, num_workers=0, negatives=negatives)
    data.setup("fit")
    assert len(next(iter(data.train_dataloader())).texts) == 12 + count


@pytest.mark.parametrize("in_batch", [True, False])
def test_a_batch_knows_whose_negatives_are_whose(
    tokenizer: PreTrainedTokenizerBase, write_pairs: Write, in_batch: bool
) -> None:
    source = Source(write_pairs(6), instruction="ask: ", in_batch=in_batch)
    data = Pairs(tokenizer, [source], global_batch_size=6, max_length=32, num_workers=0, negatives=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PairBatch) and batch.marks.in_batch == in_batch
    said = words(tokenizer, batch.texts)
    assert batch.marks.keys.tolist() == [key(text.removeprefix("ask: ")) for text in said]
    rows = [int(text.rsplit(" ", 1)[1]) for text in said[:6]]
    assert [rows[owner] for owner in batch.marks.owners] == [int(text.split()[1]) for text in said[12:]]


@pytest.mark.parametrize(("negatives", "streaming"), [(2, False), (None, False), (2, True)])
def test_scores_are_drawn_along(
    tokenizer: PreTrainedTokenizerBase, write_pairs: Write, negatives: int | None, streaming: bool
) -> None:
    """Row i's positive has the score i, its negative j i + j / 10."""
    path = Path(write_pairs(6, negatives=5))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"scores": [i + j / 10 for j in range(1, 6)], "positive_score": i}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"global_batch_size": 6, "max_length": 32, "num_workers": 0, "streaming": streaming}
    data, plain = (
        Pairs(tokenizer, [Source(str(path), scores=scores)], negatives=negatives, **settings)
        for scores in (True, False)
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    said = [text.split() for text in words(tokenizer, batch.texts)[6:]]
    expected = [int(i) + (int(j[0]) + 1) / 10 if kind == "n" else int(i) for kind, i, *j in said]
    assert batch.marks.scores.dtype == torch.float32 and len(expected) == 6 * (1 + (negatives or 5))
    assert batch.marks.scores.tolist() == pytest.approx(expected)
    plain.setup("fit")
    other = next(iter(plain.train_dataloader()))
    assert other.marks.scores is None and other.texts.input_ids.equal(batch.texts.input_ids)


def test_own_negatives_only_need_some(tokenizer: PreTrainedTokenizerBase, write_pairs: Write) -> None:
    source = Source(write_pairs(6), in_batch=False)
    with pytest.raises(ValueError, match=r"data\.negatives must be at least 1.*got 0"):
        Pairs(tokenizer, [source], global_batch_size=6, max_length=32, negatives=0)


# --- ranks, workers, mix


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_see_the_same_batches(
    sentences_of: Callable[..., Sentences], write_texts: Write, world_size: int
) -> None:
    data = sentences_of(write_texts(20), write_texts(10, "more.jsonl"), global_batch_size=7)
    data.setup("fit")
    make = data.make_batch(data.sources)
    alone = PlannedBatches(data.plan, data.tables, make)
    ranks = [PlannedBatches(data.plan, data.tables, make, rank, world_size) for rank in range(world_size)]
    for step in range(8):
        parts = [rank[step] for rank in ranks]
        whole = alone[step]
        rows, order = torch.cat([part.rows for part in parts]).sort()
        assert rows.equal(whole.rows.sort().values)
        texts = Packed.cat([part.texts for part in parts]).select(order)
        assert texts.input_ids.equal(whole.texts.select(whole.rows.sort().indices).input_ids)


def test_ranks_read_as_many_rows_and_as_much_text(sentences_of: Callable[..., Sentences], tmp_path: Path) -> None:
    words = [1, 1, 1, 1, 9, 9, 1, 5, 5, 3, 1, 1, 7, 15, 1, 1]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(["rain"] * count)}) for count in words))
    data = sentences_of(str(path), global_batch_size=16, max_length=128)
    data.setup("fit")
    make = data.make_batch(data.sources)
    parts = [PlannedBatches(data.plan, data.tables, make, rank, 2)[0].texts for rank in range(2)]
    assert [len(part) for part in parts] == [8, 8]
    tokens = [len(part.input_ids) for part in parts]
    assert max(tokens) < 1.1 * min(tokens)


def test_too_many_ranks_are_refused(sentences_of: Callable[..., Sentences], write_texts: Write) -> None:
    data = sentences_of(write_texts(20), global_batch_size=4)
    data.setup("fit")
    with pytest.raises(ValueError, match="each of the 5 ranks; got 4 rows"):
        PlannedBatches(data.plan, data.tables, data.make_batch(data.sources), 0, 5)


def test_workers_change_nothing(tokenizer: PreTrainedTokenizerBase, write_texts: Write) -> None:
    source, more = Source(write_texts(20)), Source(write_texts(9, "more.jsonl"))
    seen = []
    for workers in (0, 2):
        data = Sentences(
            tokenizer,
            [source, more],
            [more, source],
            [more],
            global_batch_size=4,
            max_length=16,
            num_workers=workers,
        )
        data.setup()
        loaders: list[Any] = [data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()]
        seen.append(
            [(batch.step, batch.rows.tolist(), batch.texts.input_ids.tolist()) for it in loaders for batch in it]
        )
    assert seen[0] == seen[1]


def test_batches_hold_one_source_and_the_mix_follows_weights(
    tokenizer: PreTrainedTokenizerBase, write_texts: Write
) -> None:
    paths = [write_texts(8, "a.jsonl"), write_texts(8, "b.jsonl")]
    sources = [Source(path, weight=weight) for path, weight in zip(paths, (1, 3), strict=True)]
    data = Sentences(tokenizer, sources, global_batch_size=4, max_length=8)
    data.setup("fit")
    batches = PlannedBatches(data.plan, data.tables, _rows_only)
    drawn = [set((batches[step].rows % 16 // 8).tolist()) for step in range(400)]
    assert all(len(sources) == 1 for sources in drawn)
    assert abs(drawn.count({1}) / 400 - 0.75) < 0.09  # four standard deviations


def test_weights_for_some_sources_only_are_refused(tokenizer: PreTrainedTokenizerBase, write_texts: Write) -> None:
    sources = [Source(write_texts(8, "a.jsonl"), weight=1.0), Source(write_texts(8, "b.jsonl"))]
    data = Sentences(tokenizer, sources, global_batch_size=4, max_length=8)
    with pytest.raises(ValueError, match="weight must be set for all sources or for none"):
        data.setup("fit")


def test_too_few_rows_for_a_global_batch(sentences_of: Callable[..., Sentences], write_texts: Write) -> None:
    data = sentences_of(write_texts(9), write_texts(3, "few.jsonl"))
    with pytest.raises(ValueError, match=r"few\.jsonl must have enough rows.*of 4; got 3. Lower global_batch_size"):
        data.setup("fit")


def test_fit_needs_sources(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"data\.sources must name the texts to read"):
        Sentences(tokenizer, global_batch_size=4, max_length=8).setup("fit")


@pytest.mark.parametrize(
    ("rows", "batch", "world_size"), [(10, 4, 1), (10, 4, 2), (9, 4, 4), (5, 4, 4), (4, 4, 3), (17, 3, 3)]
)
def test_ordered_batches_hold_each_row_once_and_no_rank_is_idle(
    write_texts: Write, rows: int, batch: int, world_size: int
) -> None:
    tables = [open_table(Source(write_texts(rows)), "text"), open_table(Source(write_texts(6, "b.jsonl")), "text")]
    ranks = [OrderedBatches(tables, batch, _rows_only, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    parts = [[rank[step].rows for rank in ranks] for step in range(len(ranks[0]))]
    assert all(len(part) for step in parts for part in step)
    assert torch.cat([part for step in parts for part in step]).tolist() == list(range(rows + 6))


def test_ordered_batches_refuse_less_than_a_row_a_rank(write_texts: Write) -> None:
    with pytest.raises(ValueError, match="each of the 4 ranks; got 3 rows"):
        OrderedBatches([open_table(Source(write_texts(3)), "text")], 4, _rows_only, 0, 4)


@pytest.mark.parametrize("on_bad_row", ["raise", "skip"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_of_a_corpus_are_counted_with_what_is_left_out(
    tmp_path: Path, on_bad_row: str, world_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = "\0\n" if on_bad_row == "skip" else "a\n"
    (tmp_path / "a.txt").write_text(f"zero\none\n\n{bad}four\n\n")
    (tmp_path / "b.txt").write_text("six\n \neight\n")
    tables = [open_table(Source(str(tmp_path / f"{name}.txt")), "corpus", on_bad_row) for name in "ab"]
    ranks = [OrderedBatches(tables, 8, _rows_only, rank, world_size) for rank in range(world_size)]
    found = torch.cat([rank[step].rows for step in range(2) for rank in ranks]).tolist()
    assert found == [0, 1, *([3] if on_bad_row == "raise" else []), 4, 6, 8]
    warn_skipped(tables[0])
    assert "a.txt: 2 blank texts have no vector" in caplog.text


def test_skipped_rows_are_logged_once(
    sentences_of: Callable[..., Sentences], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n\nb\n\nc\nd\n")
    with caplog.at_level(logging.WARNING):
        sentences_of(str(path), on_bad_row="skip").setup("fit")
    (message,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert "2 bad rows skipped, 4 good" in message and f"{path}, line 2:" in message and "line 4:" in message
