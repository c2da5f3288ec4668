"""What a run is compared with at its start; the comparison itself: tests/unit/lightning_modules/test_identity.py."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from ranks import run_ranks
from stages import BackboneConfig

from lightning_modules import MNTP
from lightning_modules.callbacks import Identity
from lightning_modules.callbacks import identity as callback


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


def test_a_folder_that_not_all_nodes_see_is_refused_by_all(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback, "SLOW", 0.1)
    module = MNTP(backbone=BackboneConfig(str(tiny_llama)))

    def said() -> str:
        callback.check_seen_by_all(tmp_path)
        root = tmp_path / str(dist.get_rank())
        root.mkdir()
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(barrier=dist.barrier), default_root_dir=str(root))
        try:
            Identity({}, {}).setup(trainer, module, "fit")
        except ValueError as error:
            return str(error)
        return ""

    host = socket.gethostname()
    for error in run_ranks(3, said):
        assert error.startswith("trainer.default_root_dir must be a folder that all nodes see; that of rank 0, ")
        assert f" is not seen by rank 1 on {host}, rank 2 on {host}. Set it to" in error
    assert not list(tmp_path.rglob(".*")), "the file is removed"
