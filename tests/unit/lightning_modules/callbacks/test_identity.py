"""What a run is compared with at its start; the comparison itself: tests/unit/lightning_modules/test_identity.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from ranks import run_ranks
from stages import BackboneConfig

from lightning_modules import MNTP
from lightning_modules.callbacks import Identity


def test_ranks_that_see_other_files_are_told_before_anything_is_compared(tiny_llama: Path, tmp_path: Path) -> None:
    def said() -> str:
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(barrier=dist.barrier))
        identity = Identity({}, {})
        identity.checkpoint = tmp_path if dist.get_rank() else None  # as it is no checkpoint, it cannot be compared
        try:
            identity.setup(trainer, MNTP(backbone=BackboneConfig(str(tiny_llama))), "validate")
        except ValueError as error:
            return str(error)
        return ""

    expected = (
        f"all ranks must go on from the same checkpoint; rank 0 found no checkpoint, rank 1 {tmp_path}. Set trainer."
    )
    first, second = run_ranks(2, said)
    assert not first and second.startswith(expected)
