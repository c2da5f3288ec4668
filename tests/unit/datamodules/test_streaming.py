"""A stream resumes exactly on as many ranks, refuses others, and checks rows as tables do."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules import Blocks, Pairs, Sentences, Source, streaming
from datamodules.base import TextData
from datamodules.rows import BadRow, read_file
from datamodules.sources import row_check
from datamodules.streaming import START, Position, StreamBatches, WholeRows, load_positions
from otherside.batching import TextBatch

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WINDOW", 10)


class Texts:
    """Batches that are the texts themselves, so that order is easy to read."""

    def __call__(self, step: int, source: int, rows: dict[str, list[Any]], ids: Any) -> Any:
        return step, rows["text"], ids.tolist()


class Positives:
    """Those of pairs."""

    def __call__(self, step: int, source: int, rows: dict[str, list[Any]], ids: Any) -> Any:
        return step, rows["positive"]


@dataclass
class First:
    """So many batches of a stream."""

    batches: StreamBatches
    length: int

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.batches, self.length)


def stream(path: str | list[str], rank: int = 0, world_size: int = 1, length: int = 12, **settings: Any) -> First:
    source = Source(path)
    defaults = {"check": row_check(source, "text"), "expand": WholeRows(), "make": Texts(), "on_bad_row": "raise"}
    settings = {**defaults, "global_batch_size": 4, "seed": 0, **settings}
    return First(StreamBatches(source, rank=rank, world_size=world_size, **settings), length)


def go_on(first: First, step: int, position: Position) -> list[Any]:
    first.batches.first_step, first.batches.position = step, position
    return list(first)


def test_every_pass_holds_every_row_once(write_texts: Write) -> None:
    """25 rows: windows of 10, 10 and 5; ten batches of 5 are two passes."""
    batches = list(stream(write_texts(25), length=10, global_batch_size=5))
    texts = [text for (_, rows, _), _ in batches for text in rows]
    for part in (texts[:25], texts[25:]):
        assert sorted(part) == sorted(f"text {i}" for i in range(25))
    assert texts[:25] != texts[25:]
    assert set(texts[:10]) == {f"text {i}" for i in range(10)} and texts[:10] != sorted(texts[:10])
    ids = [row for (_, _, rows), _ in batches for row in rows]
    assert len(set(ids)) == 50
    other = list(stream(write_texts(25), length=10, global_batch_size=5, seed=1))
    assert [batch for batch, _ in other] != [batch for batch, _ in batches]


def test_goes_on_from_every_position(write_texts: Write) -> None:
    whole = list(stream(write_texts(23)))
    for done in range(1, len(whole)):
        rest = go_on(stream(write_texts(23), length=12 - done), done, whole[done - 1][1])
        assert rest == whole[done:]


def test_an_epoch_goes_on_where_the_last_one_stopped(
    sentences_of: Callable[..., Sentences], write_texts: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each would read its shard from the start: then these four epochs would read 260 rows."""
    read: list[Any] = []

    def counted(file: Path) -> Iterator[Any]:
        for record in read_file(file):
            read.append(record)
            yield record

    monkeypatch.setattr(streaming, "read_file", counted)
    data = sentences_of(write_texts(100), streaming=True, stream_epoch=5, global_batch_size=5)
    batches: list[Any] = []
    monkeypatch.setattr(data, "batches_trained", lambda: len(batches))
    loader = data.train_dataloader()
    for _ in range(4):
        batches += list(loader)
    assert [batch.step for batch in batches] == list(range(20))
    assert len({row for batch in batches for row in batch.rows.tolist()}) == len(read) == 100
    last = batches.pop()  # it was not trained
    assert next(iter(loader)).rows.equal(last.rows)


@pytest.mark.parametrize("files", [1, 2])
def test_ranks_share_the_rows(write_texts: Write, files: int) -> None:
    """Two files: a shard for each rank. One: every other row."""
    paths = [write_texts(20, f"{i}.jsonl") for i in range(files)]
    ranks = [list(stream(paths, rank, 2, length=20 * files // 4)) for rank in range(2)]
    texts = [text for rank in ranks for (_, rows, _), _ in rank for text in rows]
    assert sorted(texts) == sorted(f"text {i}" for i in range(20) for _ in range(files))
    ids = [row for rank in ranks for (_, _, rows), _ in rank for row in rows]
    assert len(set(ids)) == len(ids)


def test_every_turn_reads_the_files_in_another_order(tmp_path: Path) -> None:
    """Six files, each as long as a window; three turns of one rank."""
    paths = [tmp_path / f"{i}.txt" for i in range(6)]
    for path in paths:
        path.write_text("".join(f"{path.stem}\n" for _ in range(10)))
    read = [rows for (_, rows, _), _ in stream([str(path) for path in paths], length=18, global_batch_size=10)]
    assert all(len(set(rows)) == 1 for rows in read)
    turns = ["".join(rows[0] for rows in read[start : start + 6]) for start in (0, 6, 12)]
    assert [sorted(turn) for turn in turns] == [list("012345")] * 3
    assert len(set(turns)) == 3


@pytest.mark.parametrize("sizes", [[5, 50], [7], [3, 20, 8]])
def test_ranks_read_every_row_equally_often(write_texts: Write, sizes: list[int]) -> None:
    """However uneven the files, and if there are fewer than ranks: over as many passes as ranks each reads all."""
    paths = [write_texts(size, f"{i}.jsonl") for i, size in enumerate(sizes)]
    total = sum(sizes)
    read: Counter[str] = Counter()
    for rank in range(2):
        batches = list(stream(paths, rank, 2, length=3 * total, global_batch_size=2))
        mine = Counter(text for (_, rows, _), _ in batches for text in rows)
        assert sum(mine.values()) == 3 * total and {n % 3 for n in mine.values()} == {0}
        read += mine
        rest = go_on(stream(paths, rank, 2, length=total, global_batch_size=2), 2 * total, batches[2 * total - 1][1])
        assert rest == batches[2 * total :]
    assert read == Counter({f"text {i}": 6 * sum(i < size for size in sizes) for i in range(max(sizes))})


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_shorter_than_a_batch_is_refused(write_texts: Write, world_size: int) -> None:
    """Its batches would hold rows twice; the plan refuses it, too."""
    for rank in range(world_size):
        with pytest.raises(ValueError, match=r"enough rows for one global batch of 4; got 3\. Lower global_batch_size"):
            list(stream(write_texts(3), rank, world_size))
        assert len(list(stream(write_texts(4), rank, world_size))) == 12


def test_another_number_of_ranks_is_refused() -> None:
    saved = {"step": 3, "ranks": [START, START]}
    assert load_positions(saved, rank=1, world_size=2) == {3: START}
    with pytest.raises(ValueError, match="must resume on the 2 ranks it was saved on; got 1"):
        load_positions(saved, rank=0, world_size=1)


def test_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n{"text": "c"}\nnot json\n')
    with pytest.raises(BadRow, match=r"a\.jsonl, line 2: field 'text' is missing"):
        list(stream(str(path)))
    batches = list(stream(str(path), on_bad_row="skip", length=3, global_batch_size=2))
    assert {text for (_, rows, _), _ in batches for text in rows} == {"a", "c"}
    path.write_text('{"txt": "b"}\n')
    with pytest.raises(BadRow, match="at least one row must be good; got none, 1 bad"):
        list(stream(str(path), on_bad_row="skip"))


def test_a_share_without_a_good_row_is_passed_by(tmp_path: Path) -> None:
    """The rank reads the other ranks' shares in its next passes; only if none has a good row, it ends."""
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    Path(paths[0]).write_text('{"txt": "a"}\n' * 5)
    Path(paths[1]).write_text("".join(f'{{"text": "b {i}"}}\n' for i in range(12)))
    for rank in range(2):
        shares = stream(paths, rank, 2, on_bad_row="skip")
        whole = list(shares)  # two passes of the good file
        assert Counter(text for (_, rows, _), _ in whole for text in rows) == {f"b {i}": 2 for i in range(12)}
        for step, (_, position) in enumerate(whole[:-1], start=1):
            assert go_on(shares, step, position)[: len(whole) - step] == whole[step:]
    Path(paths[1]).write_text('{"txt": "b"}\n' * 3)
    with pytest.raises(BadRow, match=r"at least one row must be good; got none, 8 bad\. The first: .*line 1: field"):
        list(stream(paths, 0, 2, on_bad_row="skip"))


def test_a_cell_that_python_cannot_hold_is_a_bad_row(tmp_path: Path) -> None:
    bytes_ = pa.array([b"a", b"caf\xe9", b"c"], pa.binary())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, bytes_.buffers())}), path)
    with pytest.raises(BadRow, match="row 2: field 'text' cannot be read: 'utf-8' codec"):
        list(stream(str(path)))
    batches = list(stream(str(path), on_bad_row="skip", length=3, global_batch_size=2))
    assert {text for (_, rows, _), _ in batches for text in rows} == {"a", "c"}


def test_urls_stream_through_datasets(write_texts: Write, tmp_path: Path) -> None:
    path = Path(write_texts(25))
    whole = list(stream(path.as_uri()))
    assert {text for (_, rows, _), _ in whole[:5] for text in rows} <= {f"text {i}" for i in range(25)}
    assert go_on(stream(path.as_uri(), length=7), 5, whole[4][1]) == whole[5:]
    (tmp_path / "b.jsonl").write_text('{"txt": "a"}\n')
    with pytest.raises(BadRow, match=r"b\.jsonl, row 1 of rank 0's share: field 'text' is missing"):
        list(stream((tmp_path / "b.jsonl").as_uri()))


def test_settings_that_cannot_be_are_refused(tokenizer: PreTrainedTokenizerBase, write_texts: Write) -> None:
    source = Source(write_texts(8))
    common: dict[str, Any] = {"global_batch_size": 4, "max_length": 8, "streaming": True}
    with pytest.raises(ValueError, match=r"must have one source and num_workers 0 or 1; got 2 sources"):
        Sentences(tokenizer, [source, source], **common, num_workers=0)
    with pytest.raises(ValueError, match=r"num_workers 2. .*set num_workers: 1"):
        Sentences(tokenizer, [source], **common, num_workers=2)


def test_pairs_stream(tokenizer: PreTrainedTokenizerBase, write_pairs: Write) -> None:
    data = Pairs(
        tokenizer,
        [Source(write_pairs(9))],
        global_batch_size=4,
        max_length=16,
        num_workers=0,
        streaming=True,
        stream_epoch=3,
        negatives=1,
    )
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [batch.step for batch in batches] == [0, 1, 2]
    assert [(batch.pairs, len(batch.texts)) for batch in batches] == [(4, 12)] * 3


def test_a_window_ends_behind_all_pairs_of_a_row(tmp_path: Path) -> None:
    """Or a run that goes on there would lose those in the next one."""
    path = tmp_path / "a.jsonl"
    rows = [{"query": f"q{i}", "positive": [f"p{i}", f"o{i}", f"r{i}"]} for i in range(7)]  # windows of 12 and 9 pairs
    path.write_text("\n".join(map(json.dumps, rows)))
    pairs = stream(str(path), check=row_check(Source(str(path)), "pair"), make=Positives(), length=15)
    whole = list(pairs)
    assert len({text for (_, texts), _ in whole[:5] for text in texts}) == 20
    for step, (_, position) in enumerate(whole[:-1], start=1):
        assert go_on(pairs, step, position)[: len(whole) - step] == whole[step:]


def test_blocks_stream_like_they_are_stored(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """One pass holds the same blocks; what is left over at its end begins the next."""
    (tmp_path / "a.txt").write_text("\n".join(f"Sentence number {i}." for i in range(30)))
    source = Source(str(tmp_path / "a.txt"))

    def build(**settings: Any) -> Blocks:
        return Blocks(tokenizer, [source], global_batch_size=1, max_length=8, block_size=8, num_workers=0, **settings)

    stored = build().open(source)
    data = build(streaming=True, stream_epoch=len(stored))
    data.setup("fit")
    streamed = [batch.texts.input_ids.tolist() for batch in data.train_dataloader()]
    assert sorted(streamed) == sorted(stored.rows["input_ids"])


class Recorder(LightningModule):
    def __init__(self, plan_schedule: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.plan_schedule = plan_schedule
        self.seen: list[tuple[int, list[int], list[int]]] = []

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        self.seen.append((batch.step, batch.rows.tolist(), batch.texts.input_ids.tolist()))
        return self.weight * batch.rows.float().mean()

    def configure_optimizers(self) -> Any:
        if self.plan_schedule:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: TextData, folder: Path, module: Recorder, ckpt: Path | None = None) -> None:
    Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", every_n_train_steps=1)],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data, ckpt_path=ckpt)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["sentences", "blocks"])
def test_every_checkpoint_resumes_exactly(
    tokenizer: PreTrainedTokenizerBase, write_texts: Write, tmp_path: Path, workers: int, kind: str
) -> None:
    path = write_texts(23)

    def data() -> TextData:
        settings: dict[str, Any] = {
            "global_batch_size": 4,
            "max_length": 16,
            "num_workers": workers,
            "streaming": True,
            "stream_epoch": 4,
        }
        if kind == "blocks":
            return Blocks(tokenizer, [Source(path)], **settings, block_size=7)
        return Sentences(tokenizer, [Source(path)], **settings)

    whole = Recorder()
    fit(data(), tmp_path / "ckpt", whole)
    assert [step for step, _, _ in whole.seen] == list(range(12))
    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"))
    assert len(checkpoints) == 12
    for checkpoint in checkpoints if workers == 0 else checkpoints[3:9:2]:
        done = torch.load(checkpoint, weights_only=True)["global_step"]
        resumed = Recorder(plan_schedule=True)
        fit(data(), tmp_path / "again", resumed, checkpoint)
        assert resumed.seen == whole.seen[done:]
        assert resumed.weight.equal(whole.weight)


def test_a_checkpoint_of_a_failed_step_repeats_that_step(
    tokenizer: PreTrainedTokenizerBase, write_texts: Write
) -> None:
    """The batch was fetched but not trained: both positions are still known."""
    data = Sentences(
        tokenizer, [Source(write_texts(23))], global_batch_size=4, max_length=16, num_workers=0, streaming=True
    )
    data.setup("fit")
    loader: Any = data.train_dataloader()
    list(itertools.islice(loader, 3))
    assert set(loader.positions) == {2, 3}
