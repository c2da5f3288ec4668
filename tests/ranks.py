"""Real ranks for tests: processes forked from one that has imported everything, with gloo between them."""

from __future__ import annotations

import os
import pickle
import secrets
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class RankError(AssertionError):
    """A rank failed or did not end in time; the message holds its traceback."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, group: bool = True, timeout: float = 60
) -> list:
    """`function(*args)` on each of `world_size` real ranks; what they return, by rank.

    Nothing needs pickling on the way in: functions may be closures. Results are pickled. The first rank that fails
    ends all others.

    Args:
        world_size: number of ranks.
        function: asks `torch.distributed` or the environment for its rank.
        group: False only sets torchelastic's environment variables; who runs inside makes the process group.
        timeout: seconds until all ranks are killed.

    Raises:
        RankError: a rank raised, died, or took too long.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        running = {_fork(rank, world_size, port, folder, function, args, group): rank for rank in range(world_size)}
        try:
            _wait(running, folder, time.monotonic() + timeout)
        finally:
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _fork(
    rank: int,
    world_size: int,
    port: int,
    folder: Path,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    group: bool,
) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()  # a group of its own: a kill reaches what it starts, too
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT")
        values = (rank, rank, world_size, world_size, 0, port)
        os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})
        os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test")
        if group:
            store = dist.FileStore(str(folder / "store"), world_size)
            patience = timedelta(seconds=60)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=patience)
        result = pickle.dumps(function(*args))
        (folder / f"{rank}.result").write_bytes(result)
        code = 0
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
    finally:
        os._exit(code)  # nothing of the parent's is cleaned up twice


def _wait(running: dict[int, int], folder: Path, deadline: float) -> None:
    """Until all have ended well; those that have ended leave `running`."""
    while running:
        for process, rank in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del running[process]
            if ended and status:
                error = folder / f"{rank}.error"
                said = error.read_text() if error.exists() else f"exit status {os.waitstatus_to_exitcode(status)}"
                raise RankError(f"rank {rank} failed:\n{said}")
        if time.monotonic() > deadline:
            raise RankError(f"ranks {sorted(running.values())} did not end in time")
        time.sleep(0.005)


def free_port() -> int:
    """A port that nobody listens on, now and when it is used.

    One that the system chooses would be given to the next connection that any test opens, before rank 0 listens;
    those below 32768 are given to nobody that doesn't ask for them, and jobs of a SLURM cluster ask below 25000.
    """
    while True:
        port = 25_000 + secrets.randbelow(7_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
