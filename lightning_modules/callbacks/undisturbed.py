"""Measuring while a stage trains, so that training does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_modules.callbacks.monitors import judge
from lightning_modules.callbacks.throughput import Throughput
from otherside import distributed
from otherside.modes import evaluating


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; behind it random states, the mode of every part and threads are as before."""
    threads = torch.get_num_threads()
    try:
        with evaluating(module), isolate_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def publish(trainer: pl.Trainer, metrics: dict[str, float], step: int, said: str) -> None:
    """Log what was measured, say it, and let those that watch one of the metrics look at it; on all ranks."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
    distributed.say(said)
    if trainer.training:
        judge(trainer, metrics)


def leave_out(trainer: pl.Trainer, seconds: float) -> None:
    """Time that was not spent on training does not count in its speed."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            callback.leave_out(seconds)
