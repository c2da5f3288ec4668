"""Speed of training: real tokens per second, and how much of attention's work is padding."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_modules.base import EncoderModule


class Throughput(pl.Callback):
    """Logs `tokens_per_second` (of this rank's text, since the last log) and `padding` (the share of padded
    positions in attention's grid; other layers see no padding).
    """

    def __init__(self) -> None:
        self._since, self._step = 0.0, 0
        self._tokens = self._slots = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        self._reset()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, EncoderModule)
        lengths = batch.texts.lengths
        self._tokens += int(lengths.sum())
        for chunk in batch.texts.chunks(pl_module.chunk_tokens):
            self._slots += len(chunk) * int(lengths[chunk].max())
        step = trainer.global_step
        if step > self._step and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._step = step  # with accumulated gradients several batches end at the same step
            speed = self._tokens / (time.perf_counter() - self._since)
            pl_module.log("tokens_per_second", speed, prog_bar=True)
            pl_module.log("padding", 1 - self._tokens / self._slots)
            self._reset()

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._since += seconds

    def _reset(self) -> None:
        self._since, self._tokens, self._slots = time.perf_counter(), 0, 0
