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
    """Asks its own process to stop, before a batch or while the run is set up.

    Args:
        batch: its number; None: in setup.
        number: of the signal.
    """

    def __init__(self, batch: int | None, number: int = int(signal.SIGUSR1)) -> None:
        self.batch, self.number = batch, number

    def setup(self, *_: Any, **__: Any) -> None:
        if self.batch is None:
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            os.kill(os.getpid(), self.number)
