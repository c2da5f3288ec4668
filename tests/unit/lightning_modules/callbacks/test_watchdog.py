"""When the watchdog says that nobody moves; tests/distributed/test_faults.py has what it does to whole runs."""

from __future__ import annotations

import io
import re
import time
from contextlib import redirect_stderr
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from ranks import run_ranks

from lightning_modules.callbacks.watchdog import Watch

TIMEOUT = 4.0  # three quarters of it are a standstill


def watched(seconds: float, comes: bool = True) -> list[str]:
    """What rank 0 says in so many seconds in which no rank moves; if not `comes`, rank 1 has no watchdog yet."""

    def run() -> str:
        rank = dist.get_rank()
        trainer: Any = SimpleNamespace(global_rank=rank, world_size=2, global_step=0)
        with redirect_stderr(io.StringIO()) as said:
            watch = Watch(trainer, TIMEOUT)
            if comes or rank == 0:
                watch.start()
            time.sleep(seconds)
            if watch.is_alive():
                watch.leave()
            dist.barrier()
        return said.getvalue()

    return run_ranks(2, run)[0].splitlines()


def test_a_start_is_no_standstill() -> None:
    assert watched(1.5) == []


@pytest.mark.parametrize(("comes", "who"), [(True, r"rank 1 \(.*"), (False, "none but rank 0 has come so far")])
def test_a_standstill_is_said_once_and_for_how_long(comes: bool, who: str) -> None:
    [line] = watched(5, comes)
    assert re.fullmatch(rf"no rank has moved for [34] s: {who}", line)
