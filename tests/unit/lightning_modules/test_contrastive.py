"""The contrastive stages against plain formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import runs
import stages
import torch
import torch.nn.functional as F
from tiny import distance
from torch import Tensor

from lightning_modules.contrastive import SimCSE, Supervised
from otherside.batching import Chunks
from otherside.candidates import Marks
from otherside.encoder import Encoder
from otherside.losses import InfoNCE


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return F.normalize(one, dim=1) @ F.normalize(other, dim=1).T


def vectors(module: SimCSE | Supervised, chosen: list[str]) -> Tensor:
    return torch.from_numpy(module.encoder.encode(chosen))


def test_the_two_views_differ_only_by_dropout(tiny_llama: Path) -> None:
    module = stages.build(SimCSE, tiny_llama, dropout=0.3)
    twice = module.cut(stages.texts(module)).chunks
    with torch.no_grad():
        first, second = module.embed(twice).chunk(2)
        assert distance(first, second) > 1e-3
        first, second = module.eval().embed(twice).chunk(2)
    assert distance(first, second) < 1e-6


def test_simcse_loss_without_dropout(tiny_llama: Path) -> None:
    module = stages.build(SimCSE, tiny_llama, dropout=0.3, loss=InfoNCE(scale=5)).eval()
    found = vectors(module, stages.TEXTS)
    expected = F.cross_entropy(5 * cosines(found, found), torch.arange(len(found)))
    assert distance(module.loss(stages.texts(module)), expected) < 1e-5


def test_simcse_validates_with_the_same_dropout_each_time(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=20)
    module = stages.build(SimCSE, tiny_llama, dropout=0.3, loss=InfoNCE(scale=5))
    data = stages.data(module, tmp_path / "sentences.txt")
    once, again = (stages.trainer(tmp_path).validate(module, data, verbose=False) for _ in range(2))
    assert once == again
    data.setup("validate")
    with torch.no_grad():
        without = [module.eval().loss(batch) for batch in data.val_dataloader()]
    assert once[0]["val/loss"] > 1.02 * float(torch.stack(without).mean())


@pytest.mark.parametrize("negatives", [0, 1, 5])
def test_supervised_loss_with_any_number_of_negatives(negatives: int, tiny_llama: Path) -> None:
    module = stages.build(Supervised, tiny_llama, loss=InfoNCE(scale=5)).eval()
    batch = stages.pairs(module, negatives)
    assert len(batch.texts) == 6 + negatives
    alone = [Chunks.of(batch.texts.select(torch.tensor([i])), None) for i in range(len(batch.texts))]
    singles = torch.cat([module.embed(one) for one in alone])
    expected = F.cross_entropy(5 * cosines(singles[:3], singles[3:]), torch.arange(3))
    assert distance(module.loss(batch), expected) < 1e-5


def test_supervised_loss_with_own_negatives_only(tiny_llama: Path) -> None:
    module = stages.build(Supervised, tiny_llama, loss=InfoNCE(scale=5)).eval()
    batch = stages.pairs(module, 5)
    batch.marks = Marks(batch.marks.keys, torch.tensor([0, 0, 1, 2, 2]), in_batch=False)
    found = module.embed(module.cut(batch).chunks)
    expected = [
        F.cross_entropy(5 * cosines(found[i : i + 1], found[[3 + i, *own]])[0], torch.tensor(0))
        for i, own in enumerate([[6, 7], [8], [9, 10]])
    ]
    assert distance(module.loss(batch), torch.stack(expected).mean()) < 1e-5


def test_other_directions_need_the_batch(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=20)
    module = stages.build(Supervised, tiny_llama, loss=InfoNCE(symmetric=True))
    data = stages.data(module, tmp_path / "pairs.jsonl")
    data.sources[0].in_batch = False
    with pytest.raises(ValueError, match=r"loss\.symmetric must be false where sources have in_batch: false"):
        stages.trainer(tmp_path, max_steps=1).fit(module, data)


def test_validation_ranks_among_own_negatives_only(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=20)
    module = stages.build(Supervised, tiny_llama)
    data = stages.data(module, tmp_path / "pairs.jsonl")
    data.val_sources[0].in_batch = False
    [found] = stages.trainer(tmp_path).validate(module, data, verbose=False)
    rows = data.val_tables[0].rows
    queries, positives = vectors(module, list(rows["query"])), vectors(module, list(rows["positive"]))
    negatives = vectors(module, [text for [text] in rows["negatives"]])
    beaten = (F.cosine_similarity(queries, negatives) > F.cosine_similarity(queries, positives)).float()
    assert found["val/mrr"] == pytest.approx(1 - float(beaten.mean()) / 2)
    assert found["val/mrr"] < 1


def test_validation_logs_loss_and_reciprocal_rank(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=20)
    module = stages.build(Supervised, tiny_llama)
    data = stages.data(module, tmp_path / "pairs.jsonl")
    [found] = stages.trainer(tmp_path).validate(module, data, verbose=False)
    ranks, losses = [], []
    for first in (0, 6, 13):  # three batches of 6, 7, 7 rows
        rows = data.val_tables[0].rows[first : {0: 6, 6: 13, 13: 20}[first]]
        negatives = [text for texts in rows["negatives"] for text in texts]
        scores = cosines(vectors(module, rows["query"]), vectors(module, rows["positive"] + negatives))
        target = torch.arange(len(rows["query"]))
        ranks += [1 / (1 + int((row > row[i]).sum())) for i, row in enumerate(scores)]
        losses.append((F.cross_entropy(20 * scores, target).item(), len(rows["query"])))
    assert found["val/mrr"] == pytest.approx(sum(ranks) / len(ranks), abs=1e-6)
    assert min(ranks) < 1  # a test with perfect ranks would show nothing
    expected = sum(loss * count for loss, count in losses) / 20
    assert math.isclose(found["val/loss"], expected, rel_tol=1e-4)


def test_prediction_is_what_the_encoder_says(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=20)
    module = stages.build(SimCSE, tiny_llama, dropout=0.3, chunk_tokens=50)
    data = stages.data(module, tmp_path / "sentences.txt")
    found = torch.cat(stages.trainer(tmp_path).predict(module, data))  # type: ignore[arg-type]
    lines = (tmp_path / "sentences.txt").read_text().splitlines()
    assert isinstance(module.encoder, Encoder)
    assert distance(found, vectors(module, lines)) < 1e-5
