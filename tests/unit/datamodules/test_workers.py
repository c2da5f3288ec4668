"""Loader workers under the signals that a scheduler sends to all processes of a job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from ranks import run_ranks
from torch.utils.data import DataLoader, IterableDataset

from datamodules import workers


class Numbers(IterableDataset[int]):
    """Says which process it runs in."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield os.getpid()


def alive(process: int) -> bool:
    try:
        return os.waitpid(process, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def survive(options: dict[str, object]) -> bool:
    loader = DataLoader(Numbers(), batch_size=None, num_workers=1, **options)  # type: ignore[arg-type]
    batches = iter(loader)
    worker = next(batches)
    try:
        signaller = os.fork()
        if not signaller:
            os.kill(worker, signal.SIGUSR1)
            os.kill(worker, signal.SIGINT)
            os.kill(worker, signal.SIGTERM)
            os._exit(0)
        os.waitpid(signaller, 0)
        time.sleep(0.3)
        if not alive(worker):
            return False
        os.kill(worker, signal.SIGTERM)  # the trainer's own
        for _ in range(100):
            time.sleep(0.05)
            if not alive(worker):
                return True
        raise AssertionError("a worker must end when its trainer says so")
    except RuntimeError as error:  # what the trainer gets as soon as a worker dies by a signal
        assert "is killed by signal" in str(error)
        return False


@pytest.mark.parametrize("sheltered", [True, False])
def test_a_worker_heeds_its_trainer_only(sheltered: bool) -> None:
    """Torch's own workers are here to show that the shelter is needed."""
    [survived] = run_ranks(1, survive, workers.options(1) if sheltered else {}, group=False)
    assert survived == sheltered


def test_no_workers_need_no_options() -> None:
    assert workers.options(0) == {}
