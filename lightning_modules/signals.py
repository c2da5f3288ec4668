"""Signals that ask a run to stop. Imports nothing heavy: the handler must be there before the seconds of imports."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

IMPATIENCE = 2.0  # seconds; launchers and schedulers signal parent and child, so one wish may arrive twice

_first: dict[int, float] = {}  # signal -> when it came first


def install() -> None:
    """From now on SIGUSR1 and SIGTERM are only noted; what waited behind a block (`env --block-signal`) arrives now."""
    _first.clear()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGTERM})


def asked() -> int:
    """The signal that came to this process; SIGTERM, whose number is the higher one, if both did; 0 if none."""
    return max(_first, default=0)


def _note(number: int, frame: FrameType | None) -> None:
    since = time.monotonic() - _first.setdefault(number, time.monotonic())
    # SLURM repeats SIGTERM before it kills; in a terminal the second one means: now
    if number == signal.SIGTERM and since > IMPATIENCE and "SLURM_JOB_ID" not in os.environ:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
