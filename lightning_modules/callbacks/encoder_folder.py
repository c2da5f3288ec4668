"""Leaves an encoder folder at the end of a stage, and a note that the stage is finished."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor
from typing_extensions import override

from lightning_modules import finished
from lightning_modules.base import EncoderModule


class EncoderFolder(pl.Callback):
    """Writes `<trainer.default_root_dir>/encoder` when training has come to its end."""

    @override  # not on_train_end: Lightning leaves that out where a run resumes behind its last step
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EncoderModule)
        if trainer.interrupted or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        root = Path(trainer.default_root_dir)
        weights = trainer.strategy.lightning_module_state_dict()  # all ranks, as they may be sharded
        if trainer.is_global_zero:
            pl_module.encoder.save(root / finished.ENCODER, pl_module.stage, trainer.global_step, _in_backbone(weights))
            finished.write(root, trainer.global_step, trainer.max_steps, trainer.max_epochs)


def _in_backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the language model inside has them."""
    prefix = "encoder.backbone.lm."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
