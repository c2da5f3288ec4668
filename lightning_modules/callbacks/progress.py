"""Progress over the whole run: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from typing_extensions import override

from lightning_modules.base import EncoderModule

SHOWN = ("train/loss", "tokens_per_second")  # on a terminal's one line


class RunProgressBar(RichProgressBar):
    """Lightning's bar, counted to the end of the run where `max_steps` ends it inside an epoch."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".4g"))

    @override
    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        found = super().get_metrics(trainer, pl_module)
        return {name.rpartition("/")[2].replace("_per_second", "/s"): found[name] for name in SHOWN if name in found}

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        return "step" if self.trainer.max_steps > 0 else super()._get_train_description(current_epoch)

    @property
    @override
    def total_train_batches(self) -> int | float:
        epoch, every = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        if self.trainer.max_steps < 0:
            return epoch
        progress = self.trainer.fit_loop.epoch_loop.batch_progress  # still that of the epoch before, where there is one
        done = 0 if progress.is_last_batch else progress.current.ready // every  # steps of this epoch
        return min(epoch, (done + self.trainer.max_steps - self.trainer.global_step) * every)


class ProgressLines(pl.Callback):
    """One line per `trainer.log_every_n_steps` (0: none), with the time left; for log files."""

    def __init__(self) -> None:
        self._begun, self._first, self._said = 0.0, 0, 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun, self._first = time.perf_counter(), trainer.global_step
        self._said = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, EncoderModule)
        step = trainer.global_step
        if not trainer.is_global_zero or not pl_module.logs(step) or step <= self._said:
            return  # with accumulated gradients several batches end at the same step
        self._said = step
        total = trainer.estimated_stepping_batches
        self._say("step", step, total, _metrics(trainer, of_validation=False))

    def _say(self, what: str, done: int, total: float, more: str = "") -> None:
        pace = (time.perf_counter() - self._begun) / (done - self._first)
        left = timedelta(seconds=round(pace * (total - done))) if total < float("inf") else "?"
        print(f"{what} {done}/{total:g}{more}  left {left}", file=sys.stderr, flush=True)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = _metrics(trainer, of_validation=True)
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking and metrics:
            print(f"validated at step {trainer.global_step}{metrics}", file=sys.stderr, flush=True)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun, self._first = time.perf_counter(), 0

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        done, total = batch_idx + 1, trainer.num_predict_batches[dataloader_idx]
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_global_zero and (done == total or (every and done % every == 0)):
            self._say("batch", done, total)


def _metrics(trainer: pl.Trainer, of_validation: bool) -> str:
    """Those of training, or the newest of validation: Lightning shows them until there are others."""
    found = {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
    of_one = {name: value for name, value in found.items() if name.startswith("val/") == of_validation}
    return "".join(f"  {name} {float(value):.4g}" for name, value in of_one.items())
