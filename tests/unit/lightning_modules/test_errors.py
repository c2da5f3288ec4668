"""Which errors become one line, and what it says; the whole command is tested in `tests/test_bad_input.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_modules.errors import LONGEST, message
from otherside.backbone import BackboneConfig
from otherside.batching import Packed, Tokens
from otherside.weights import locate


def said(run: Callable[[], Any]) -> str | None:
    """What the user would be told."""
    try:
        run()
    except Exception as error:
        return message(error, "fit")
    raise AssertionError("no error")


def test_what_we_raise_is_said() -> None:
    assert said(lambda: BackboneConfig("a", dtype="int4")) == (
        "backbone.dtype must be one of auto, float32, bfloat16, float16; got 'int4'"
    )


def test_a_bug_in_our_code_keeps_its_traceback() -> None:
    assert said(lambda: locate(3)) is None  # type: ignore[arg-type]


def test_an_error_of_a_library_keeps_its_traceback() -> None:
    assert said(lambda: Path("/no/such/file").read_text()) is None


def test_lack_of_memory_is_said_with_its_remedy() -> None:
    found = said(lambda: torch.empty(2**60))
    assert found and "can't allocate memory" in found and "lower model.chunk_tokens" in found


def test_what_a_worker_raises_is_said() -> None:
    loader = DataLoader([[]], batch_size=None, num_workers=1, collate_fn=Packed.from_tokens)  # type: ignore[arg-type]
    assert said(lambda: list(loader)) == "every text of a batch needs at least one token"


def test_a_bug_in_a_worker_keeps_its_traceback() -> None:
    loader = DataLoader([[Tokens(None)]], batch_size=None, num_workers=1, collate_fn=len)  # type: ignore[arg-type]
    assert list(loader) == [1]
    broken = DataLoader([[3]], batch_size=None, num_workers=1, collate_fn=Packed.from_tokens)  # type: ignore[arg-type]
    assert said(lambda: list(broken)) is None


def test_a_long_message_is_one_line_and_is_cut() -> None:
    found = said(lambda: BackboneConfig("a", dtype="int4\n" * 1000))  # type: ignore[arg-type]
    assert found and "\n" not in found and len(found) < LONGEST + 50
