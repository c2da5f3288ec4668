"""Measuring while a stage trains, so that training does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_modules.callbacks.throughput import Throughput


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; behind it random states, the mode of every part and threads are as before."""
    modes = [(part, part.training) for part in module.modules()]
    threads = torch.get_num_threads()
    module.eval()
    try:
        with isolate_rng():
            yield
    finally:
        for part, training in modes:
            part.training = training
        torch.set_num_threads(threads)


def leave_out(trainer: pl.Trainer, seconds: float) -> None:
    """Time that was not spent on training does not count in its speed."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            callback.leave_out(seconds)
