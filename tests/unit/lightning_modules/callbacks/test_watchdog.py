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

from lightning_modules.callbacks.watchdog import RankLostError, Watch, Watchdog

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


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/tcp/pair.cc] Connection closed by peer"), True),
        (dist.DistNetworkError("The client socket has timed out"), True),
        (OSError("HTTPSConnectionPool(host='a.b', port=443): Read timed out."), False),
        (RuntimeError("Caught OSError in DataLoader worker process 0. … Read timed out."), False),
        (ValueError("line 8: field 'query' is missing"), False),
    ],
)
def test_what_a_rank_fails_of_is_told(error: Exception, lost: bool) -> None:
    """Not taken for another rank's death, whatever words it has."""
    told: list[Exception] = []
    watchdog = Watchdog()
    watchdog._watch = SimpleNamespace(stop=lambda: None, tell=told.append, who=lambda: "rank 1 died")  # type: ignore[assignment]
    try:
        watchdog.on_exception(None, None, error)  # type: ignore[arg-type]
    except RankLostError:
        assert lost and not told
    else:
        assert not lost and told == [error]
