"""Masked next token prediction as a stage; masking itself is tested in `tests/unit/test_mntp.py`."""

from __future__ import annotations

from pathlib import Path

import runs
import stages
import torch
import torch.nn.functional as F
from tiny import distance

from lightning_modules.mntp import MNTP, MaskedBatch


def test_loss_is_the_cross_entropy_at_the_position_before(tiny_llama: Path) -> None:
    module = stages.build(MNTP, tiny_llama, chunk_tokens=30).eval()
    batch = stages.batch(module)
    with torch.no_grad():
        logits = module.encoder.backbone.logits(module.encoder.backbone(batch.texts))
    hidden = (batch.labels != -100).nonzero().squeeze(1)
    assert len(hidden) > 5 and not set(hidden.tolist()) & set(batch.texts.borders.tolist())
    expected = F.cross_entropy(logits[hidden - 1], batch.labels[hidden])
    assert distance(module.loss(batch), expected) < 1e-5


def test_what_is_hidden_depends_on_seed_and_row_only(tiny_llama: Path) -> None:
    module = stages.build(MNTP, tiny_llama)
    module.trainer = stages.trainer(tiny_llama)
    read = stages.texts(module)
    masked = module.on_before_batch_transfer(read, 0)
    assert isinstance(masked, MaskedBatch) and (masked.labels != -100).any()
    last = torch.tensor([len(read.texts) - 1])
    alone = module.on_before_batch_transfer(stages.TextBatch(9, read.texts.select(last), read.rows[last]), 0)
    assert torch.equal(alone.texts.input_ids, masked.texts.select(last).input_ids)
    module.seed = 43
    assert not torch.equal(module.on_before_batch_transfer(read, 0).labels, masked.labels)


def test_nothing_is_hidden_in_prediction(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=10)
    module = stages.build(MNTP, tiny_llama)
    found = torch.cat(stages.trainer(tmp_path).predict(module, stages.data(module, tmp_path / "sentences.txt")))  # type: ignore[arg-type]
    lines = (tmp_path / "sentences.txt").read_text().splitlines()
    assert distance(found, torch.from_numpy(module.encoder.encode(lines))) < 1e-5


def test_validation_logs_the_loss(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=10)
    module = stages.build(MNTP, tiny_llama)
    [found] = stages.trainer(tmp_path).validate(module, stages.data(module, tmp_path / "sentences.txt"), verbose=False)
    assert 2 < found["val/loss"] < 12 and list(found) == ["val/loss"]
