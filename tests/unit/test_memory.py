"""`keep_pages` in a process of its own, as its settings last."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
from otherside.memory import keep_pages
{call}
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = torch.ones(1_000_000)
for _ in range(20): x * 2
before = faults()
for _ in range(50): x * 2
print(faults() - before)
"""


def faults(call: str, **environment: str) -> int:
    """Fresh pages that fifty products of 4 MB need."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "THP_"))}
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(command, env=known | environment, capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_used_again() -> None:
    assert faults("keep_pages()") < 1000


def test_settings_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    from otherside.memory import keep_pages

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    keep_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    kept = faults("keep_pages()", MALLOC_MMAP_THRESHOLD_="100000", THP_MEM_ALLOC_ENABLE="0")
    assert kept > 1000
