"""What a command says while it makes people wait. Imports nothing heavy: imports are such a wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = "starting: torch, transformers and what is built on them"


@contextmanager
def saying(what: str) -> Iterator[None]:
    """On a terminal a line of the first rank, which goes when the block ends; in a log, where nobody waits, nothing."""
    shown = sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0"
    if shown:
        print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
