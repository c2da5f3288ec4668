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


def quiet_libraries() -> None:
    """No bars of transformers from here on, as files are mapped in no time; on a terminal downloads keep theirs. And
    no warning of DeepSpeed, which others import, that there is no GPU.
    """
    import torch
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    downloads = sys.stderr.isatty() and not are_progress_bars_disabled()
    logging.disable_progress_bar()  # and the hub's
    if downloads:
        enable_progress_bars()
    if not torch.cuda.device_count():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
