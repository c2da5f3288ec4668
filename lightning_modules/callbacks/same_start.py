"""All ranks go on from the same checkpoint, or the run does not start."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from typing_extensions import override

from otherside.distributed import from_first


class SameStart(pl.Callback):
    """Each rank looks for the newest checkpoint itself; on nodes that do not see the same files they would differ.

    Args:
        checkpoint: what this rank found; None: nothing.
    """

    def __init__(self, checkpoint: Path | str | None) -> None:
        self.checkpoint = checkpoint

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise a ValueError where this rank found another one than rank 0."""
        mine = str(self.checkpoint or "no checkpoint")
        if (first := from_first(mine)) != mine:
            raise ValueError(
                f"all ranks must go on from the same checkpoint; rank 0 found {first}, rank {trainer.global_rank} "
                f"{mine}. Set trainer.default_root_dir to a folder that all nodes see."
            )
