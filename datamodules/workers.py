"""Loader workers that heed no signal but their trainer's.

SLURM signals every process of a job, Ctrl-C every process of a terminal. On SIGTERM or SIGINT a worker would die, and
its trainer with it, before the trainer could save; so workers are born with the signals blocked, and take a SIGTERM
only from their parent.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


class ShelteredProcess(ForkProcess):
    """Inherits a signal mask that blocks, from its first instruction on."""

    def start(self) -> None:
        """Fork while the signals are blocked; the parent gets what came meanwhile right after."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Sheltered(ForkContext):
    """A `multiprocessing_context` for loaders."""

    Process = ShelteredProcess


def heed_parent(worker: int) -> None:
    """A `worker_init_fn`: end on a SIGTERM that the trainer sends, as `Process.terminate` does, and on no other."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def options(num_workers: int) -> dict[str, Any]:
    """What a `DataLoader` with so many workers is given."""
    return {"multiprocessing_context": Sheltered(), "worker_init_fn": heed_parent} if num_workers else {}
