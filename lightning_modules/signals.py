"""Signals that ask a run to stop. Imports nothing heavy: the handler must be there before the seconds of imports."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPATIENCE = 2.0  # seconds; launchers and schedulers signal parent and child, so one wish may arrive twice
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # of a process; LOCAL_RANK on its node
GRACE = 600.0  # seconds to wait after SIGTERM for a job's end; longer than the grace time of most partitions

_first: dict[int, float] = {}  # signal -> when it came first
_training = False
_agreed = 0
_farewell = ""


class Interrupted(SystemExit):
    """Ctrl-C where there is no step to finish. Not a KeyboardInterrupt, which Lightning takes for itself."""


def install(training: bool = False) -> None:
    """Ctrl-C raises `Interrupted` from now on. If `training`, SIGUSR1 and SIGTERM are only noted; what waited behind a
    block (`env --block-signal`) arrives now.
    """
    _first.clear()
    agree(0)
    note_interrupt(False)
    signal.signal(signal.SIGINT, _handle)
    if training:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, _handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGTERM})


def note_interrupt(on: bool) -> None:
    """Whether Ctrl-C, too, is only noted: while there are steps, and somebody looks at their end."""
    global _training
    _training = on


def stopped(program: str) -> str:
    """What Ctrl-C leaves on the screen."""
    return f"\n{program} was stopped by Ctrl-C; the same command begins again"


@contextmanager
def at_once(program: str) -> Iterator[None]:
    """Ctrl-C ends the process with a line, as imports have nothing to lose: an exception amid them aborts in C++, or is
    swallowed by a weak reference's callback.
    """
    global _farewell
    _farewell = stopped(program)
    try:
        yield
    finally:
        _farewell = ""


def is_first() -> bool:
    """Whether this is the first process of all, which speaks for the others, by what launchers say; of several, by the
    one that Lightning believes (`lightning.fabric.utilities.rank_zero`).
    """
    name = next((name for name in RANKS if name in os.environ), "LOCAL_RANK")
    node = "0" if name == "RANK" else os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return os.environ.get(name, "0") == node == "0"


def grace() -> float:
    """Seconds to wait after SIGTERM for a SLURM job's end: `OTHERSIDE_GRACE`.

    Raises:
        ValueError: that is no number of seconds.
    """
    said = os.environ.get("OTHERSIDE_GRACE") or GRACE
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"OTHERSIDE_GRACE must be a number of seconds, such as 1200; got {said!r}")
    return seconds


def asked() -> int:
    """The signal that came to this process; SIGTERM, whose number is the highest one, if several did; 0 if none."""
    return max(_first, default=0)


def agree(number: int) -> None:
    """All ranks have heard of the same signal, in a work that it ended."""
    global _agreed
    _agreed = number


def agreed() -> int:
    """What all ranks have heard of; 0 if of none."""
    return _agreed


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    first = number not in _first
    since = now - _first.setdefault(number, now)
    # SLURM repeats SIGTERM before it kills; in a terminal the second one means: now
    once_more = number == signal.SIGINT or (number == signal.SIGTERM and "SLURM_JOB_ID" not in os.environ)
    if since > IMPATIENCE and once_more:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif first and number == signal.SIGINT:
        if _farewell:
            if is_first():
                os.write(2, f"{_farewell}\n".encode())
            os._exit(128 + number)
        if not _training:
            raise Interrupted(128 + number)
        if is_first():
            os.write(2, b"\nstopping at the end of this step; Ctrl-C again ends at once\n")  # print may be busy
