"""A callback that makes steps last, so that a test can interrupt one; real jobs on tiny Llamas end too soon."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import lightning.pytorch as pl


class Pace(pl.Callback):
    """Sleeps before each training batch, longer on higher ranks, and in each validation batch.

    Args:
        seconds: of rank 0.
        skew: more seconds for each rank.
    """

    def __init__(self, seconds: float = 0.1, skew: float = 0.0) -> None:
        self.seconds, self.skew = seconds, skew

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        time.sleep(self.seconds + self.skew * trainer.global_rank)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        time.sleep(self.seconds)


class Ask(pl.Callback):
    """Asks its own process to stop, by SIGUSR1, before a batch.

    Args:
        batch: its number.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGUSR1)
