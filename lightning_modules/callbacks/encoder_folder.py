"""Leaves an encoder folder at the end of a stage, and a note that the stage is finished."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
from typing_extensions import override

from lightning_modules import finished
from lightning_modules.base import EncoderModule
from lightning_modules.strategies import ZeRO


class EncoderFolder(pl.Callback):
    """Writes `<trainer.default_root_dir>/encoder` when training has come to its end."""

    @override  # not on_train_end: Lightning leaves that out where a run resumes behind its last step
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EncoderModule)
        if trainer.interrupted or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        root = Path(trainer.default_root_dir)
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        strategy = trainer.strategy
        with strategy.whole(trained) if isinstance(strategy, ZeRO) else nullcontext():
            if trainer.is_global_zero:
                pl_module.encoder.save(root / finished.ENCODER, pl_module.stage, trainer.global_step)
                finished.write(root, trainer.global_step, trainer.max_steps, trainer.max_epochs)
