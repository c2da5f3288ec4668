"""Main memory that this process may use: the machine's, or less where a container or a SLURM job has a limit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")  # version 2
OWN = Path("/proc/self/cgroup")


def total() -> float:
    """Bytes."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def free() -> float:
    """Bytes that nobody uses; what is only cached counts as free."""
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """Of this process's control group and those that hold it: bytes allowed, and in use without caches of files."""
    with suppress(OSError):  # no control groups here
        own = re.search(r"^0::/(.*)$", OWN.read_text(), re.MULTILINE)
        group = GROUPS / own[1] if own else GROUPS
        for folder in (group, *group.parents):
            if folder.is_relative_to(GROUPS):
                yield from _limit(folder)


def _limit(folder: Path) -> Iterator[tuple[int, int]]:
    with suppress(OSError, ValueError):  # the root of all has no such file, and "max" is no limit
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        yield limit, used - (int(cached[1]) if cached else 0)
