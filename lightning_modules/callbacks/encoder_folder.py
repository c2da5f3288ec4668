"""Leaves an encoder folder at the end of a stage, and a note that the stage is finished."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_modules import finished
from lightning_modules.base import EncoderModule
from otherside.files import replace_folder


class EncoderFolder(pl.Callback):
    """Writes `<trainer.default_root_dir>/encoder` when training has come to its end.

    Args:
        best: whose best checkpoint it is of; None: of the last step.
    """

    def __init__(self, best: ModelCheckpoint | None = None) -> None:
        self.best = best

    @override  # not on_train_end: Lightning leaves that out where a run resumes behind its last step
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EncoderModule)
        if trainer.interrupted or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        root = Path(trainer.default_root_dir)
        weights = trainer.strategy.lightning_module_state_dict()  # all ranks, as they may be sharded
        if trainer.is_global_zero:
            if self.best and self.best.best_model_path:
                self._copy(self.best, root)
            else:
                pl_module.save_encoder(root / finished.ENCODER, weights)
            finished.write(root, trainer.global_step, trainer.max_steps, trainer.max_epochs)

    @staticmethod
    def _copy(best: ModelCheckpoint, root: Path) -> None:
        path = Path(best.best_model_path)
        work = root / f".{finished.ENCODER}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(path / finished.ENCODER, work)
        replace_folder(work, root / finished.ENCODER)
        print(f"encoder/ is that of {path.name}: {best.monitor} {best.best_model_score:.4f}", file=sys.stderr)
