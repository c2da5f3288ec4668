"""Speed and padding against a count by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import runs
import stages

from lightning_modules.callbacks import ProgressLines, Throughput
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


def test_without_logs_nothing_is_counted_or_said(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning's meaning of 0."""
    runs.write_data(tmp_path, rows=16)
    module = stages.build(MNTP, tiny_llama)
    data, logged = stages.data(module, tmp_path / "sentences.txt"), Logged()
    run = stages.trainer(tmp_path, Throughput(), ProgressLines(), logged, max_steps=2, log_every_n_steps=0)
    run.fit(module, data)
    assert run.global_step == 2 and not logged.padding and "  left " not in capsys.readouterr().err


def test_utilisation_is_a_share_of_a_matrix_product(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    module, metrics = stages.build(MNTP, tiny_llama), {}

    class Last(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            metrics.update(trainer.callback_metrics)

    data, throughput = stages.data(module, tmp_path / "sentences.txt"), Throughput()
    stages.trainer(tmp_path, throughput, Last(), max_steps=1).fit(module, data)
    texts = data.train_dataloader().dataset[0].texts
    lengths, words = texts.lengths, texts.lengths - texts.start  # a start token is computed, and is no text
    config, lm = module.encoder.backbone.lm.config, module.encoder.backbone.lm
    weights = sum(layer.weight.numel() for name, layer in lm.named_modules() if name.endswith("base_layer"))
    adapter = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    attention = 12 * config.num_hidden_layers * config.hidden_size * int((lengths**2).sum())
    head = 0.2 * int(lengths.sum()) * 4 * config.vocab_size * config.hidden_size
    needed = int(lengths.sum()) * (4 * weights + 6 * adapter) + attention + head
    seconds = int(words.sum()) / float(metrics["tokens_per_second"])
    assert float(metrics["utilisation"]) == pytest.approx(needed / seconds / throughput._peak, rel=1e-4)


def test_no_run_is_faster_than_the_machine(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak measured while others used the machine is far too low."""
    measured = iter([1.0, 2.0, 1e15])
    monkeypatch.setattr("lightning_modules.callbacks.throughput.peak", lambda *_: next(measured))
    runs.write_data(tmp_path, rows=16)
    module, shares = stages.build(MNTP, tiny_llama), []

    class Last(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            shares.append(float(trainer.callback_metrics["utilisation"]))

    data = stages.data(module, tmp_path / "sentences.txt")
    stages.trainer(tmp_path, Throughput(), Last(), max_steps=2).fit(module, data)
    assert shares[0] == 1.0 and shares[1] <= 1.0


def test_time_without_a_batch_is_waiting(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    waiting: list[float] = []

    class Last(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            waiting.append(float(trainer.callback_metrics["waiting"]))

    for pause in (0, 0.5):
        module = stages.build(MNTP, tiny_llama)
        data = stages.data(module, tmp_path / "sentences.txt")
        make = data.make_batch

        def slowly(sources: Any, make: Any = make, pause: float = pause) -> Any:
            made = make(sources)
            return lambda *row: (time.sleep(pause), made(*row))[1]

        data.make_batch = slowly  # type: ignore[method-assign]
        data.num_workers = 0
        stages.trainer(tmp_path, Throughput(), Last(), max_steps=2).fit(module, data)
    assert max(waiting[:2]) < 0.3 and min(waiting[2:]) > 0.5


@pytest.mark.parametrize(("gpu", "accumulate"), [(True, 1), (True, 2), (False, 1)])
def test_says_once_that_a_gpu_gets_too_few_tokens(
    gpu: bool,
    accumulate: int,
    tiny_llama: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning_modules.callbacks.throughput.is_gpu", lambda device: gpu)  # there may be none here
    runs.write_data(tmp_path, rows=48)
    module = stages.build(MNTP, tiny_llama)
    data = stages.data(module, tmp_path / "sentences.txt")
    stages.trainer(tmp_path, Throughput(), max_steps=2, accumulate_grad_batches=accumulate).fit(module, data)
    batches = [int(data.train_dataloader().dataset[i].texts.lengths.sum()) for i in range(accumulate)]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(said) == gpu
    if gpu:
        assert f"each gets {sum(batches) / accumulate:,.0f}. Take " in said[0]
        assert ("trainer.accumulate_grad_batches" in said[0]) == (accumulate > 1)
