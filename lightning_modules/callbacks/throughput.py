"""Speed of training: real tokens per second, what share of the hardware's speed that is, and what stands in its way."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from lightning_modules.base import EncoderModule
from lightning_modules.hardware import peak
from lightning_modules.sizing.shape import Shape
from lightning_modules.sizing.speed import of_texts, too_few
from otherside import distributed
from otherside.sharding import whole_shape


class Throughput(pl.Callback):
    """Logs, of this rank and since the last log:

    - `tokens_per_second`: of real text, padding and start tokens left out; as often as it goes through the model.
    - `utilisation`: the operations that this text needs, as a share of what the device did in the same time when it
      multiplied large matrices of the run's type at the start. What is computed twice to save memory counts once.
      Left out where the base does not have a Llama's shape.
    - `waiting`: share of the time in which the next batch was not there.
    - `padding`: share of padded positions in attention's grid; other layers see no padding.

    Says once, on GPUs, that each gets too few tokens to be kept busy.
    """

    def __init__(self) -> None:
        self._shape: Shape | None = None
        self._since, self._waited, self._step = 0.0, 0.0, 0
        self._batches = self._tokens = self._slots = self._squares = self._starts = 0
        self._peak = self._validating = 0.0
        self._advised = False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EncoderModule)
        lm = pl_module.encoder.backbone.lm
        with suppress(ValueError):
            self._shape = Shape.from_config(lm.config.to_dict(), "the model")
        self._adapter = sum(whole_shape(p).numel() for p in pl_module.parameters() if p.requires_grad)
        self._whole = None if pl_module.lora else 1 - (pl_module.frozen_layers or 0) / pl_module.encoder.backbone.layers
        self._peak = peak(pl_module.device, pl_module.encoder.backbone.dtype)
        self._step = trainer.global_step
        self._reset(trainer)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, EncoderModule)
        lengths = batch.texts.lengths
        self._batches += 1
        self._tokens += int(lengths.sum()) * pl_module.views
        self._squares += int((lengths**2).sum()) * pl_module.views
        self._starts += int(batch.texts.start.sum()) * pl_module.views
        pads = pl_module.encoder.backbone.pads(pl_module.device)
        self._slots += sum(
            len(part) * int(part.lengths.max()) if pads else int(part.lengths.sum()) for part in batch.chunks.parts
        )
        step = trainer.global_step
        if step > self._step and pl_module.logs(step):
            self._step = step  # with accumulated gradients several batches end at the same step
            seconds = time.perf_counter() - self._since
            pl_module.show("tokens_per_second", (self._tokens - self._starts) / seconds)
            if self._shape:
                counted = (self._tokens, self._squares, pl_module.predicted, self._whole)
                done = of_texts(self._shape, self._adapter, *counted)
                if done / seconds > self._peak:  # others used the machine when it was measured
                    self._peak = max(done / seconds, peak(pl_module.device, pl_module.encoder.backbone.dtype))
                pl_module.show("utilisation", done / seconds / self._peak)
            pl_module.show("waiting", min((_waited(trainer) - self._waited) / seconds, 1.0))
            pl_module.show("padding", 1 - self._tokens / self._slots)
            self._advise(trainer, pl_module)
            self._reset(trainer)

    def _advise(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._advised and is_gpu(pl_module.device):
            tokens = self._tokens / self._batches
            if said := too_few(tokens, trainer.world_size, trainer.accumulate_grad_batches):
                distributed.say(f"note: {said}")
        self._advised = True

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating = time.perf_counter()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.leave_out(time.perf_counter() - self._validating)

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._since += seconds

    def _reset(self, trainer: pl.Trainer) -> None:
        self._since, self._waited = time.perf_counter(), _waited(trainer)
        self._batches = self._tokens = self._slots = self._squares = self._starts = 0


def is_gpu(device: torch.device) -> bool:
    """Whether few tokens leave it idle."""
    return device.type == "cuda"


def _waited(trainer: pl.Trainer) -> float:
    """Seconds that the training loader has let others wait."""
    return getattr(trainer.train_dataloader, "waited", 0.0)
