"""Between a contender and the harness: wait to be told, measure one round, tell. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

TASK = sys.argv[1]
SETTINGS: dict[str, Any] = json.loads(sys.argv[2])


class Gate:
    """The one place where a round begins and ends. Standard output belongs to it; all other output is sent away."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._before = 0.0
        self._begun = 0.0

    def ready(self, **about: Any) -> None:
        """Set-up is over; wait for the first round."""
        self._before = _status("VmRSS")
        self._say(about)
        self._wait()

    def begin(self) -> None:
        """What was done since the last round does not count."""
        Path("/proc/self/clear_refs").write_text("5")
        self._begun = time.perf_counter()

    def done(self, tokens: int, **measured: Any) -> None:
        """A round is over; wait for the next."""
        seconds = time.perf_counter() - self._begun
        peak = _status("VmHWM") - self._before
        self._say({"seconds": seconds, "tokens": tokens, "megabytes": peak, **measured})
        self._wait()

    def _say(self, what: dict[str, Any]) -> None:
        self._out.write(json.dumps(what) + "\n")
        self._out.flush()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self.begin()


def _status(name: str) -> float:
    """A line of this process's status, in MB."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024
