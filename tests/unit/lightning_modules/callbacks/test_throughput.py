"""Speed and padding against a count by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import runs
import stages

from lightning_modules.callbacks import Throughput
from lightning_modules.mntp import MNTP


class Logged(pl.Callback):
    """What was logged, batch by batch."""

    def __init__(self) -> None:
        self.padding: list[float] = []
        self.speed: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        metrics = trainer.callback_metrics
        if "padding" in metrics:
            self.padding.append(float(metrics["padding"]))
            self.speed.append(float(metrics["tokens_per_second"]))


@pytest.mark.parametrize("chunk_tokens", [None, 60])
def test_padding_is_the_share_of_slots_without_a_token(
    chunk_tokens: int | None, tiny_llama: Path, tmp_path: Path
) -> None:
    runs.write_data(tmp_path, rows=16)
    module = stages.build(MNTP, tiny_llama, chunk_tokens=chunk_tokens)
    data, logged = stages.data(module, tmp_path / "sentences.txt"), Logged()
    stages.trainer(tmp_path, Throughput(), logged, max_steps=2).fit(module, data)
    for i in range(2):
        lengths = sorted(data.train_dataloader().dataset[i].texts.lengths.tolist(), reverse=True)
        slots, chunk = 0, [lengths[0]]
        for length in [*lengths[1:], None]:
            if length is None or (chunk_tokens and chunk[0] * (len(chunk) + 1) > chunk_tokens):
                slots += chunk[0] * len(chunk)
                chunk = []
            if length is not None:
                chunk.append(length)
        assert logged.padding[i] == pytest.approx(1 - sum(lengths) / slots, abs=1e-6)
    assert len(set(lengths)) > 1 and all(0 < speed < 1e7 for speed in logged.speed)


def test_accumulated_batches_count_together(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=48)
    module = stages.build(MNTP, tiny_llama)
    data, logged = stages.data(module, tmp_path / "sentences.txt"), Logged()
    stages.trainer(tmp_path, Throughput(), logged, max_steps=2, accumulate_grad_batches=3).fit(module, data)
    batches = [data.train_dataloader().dataset[i].texts.lengths for i in range(3)]
    expected = 1 - sum(int(x.sum()) for x in batches) / sum(len(x) * int(x.max()) for x in batches)
    assert logged.padding[0] == pytest.approx(expected, abs=1e-6)
    assert len(set(logged.padding)) == 2  # one value a step
