"""Leaves an encoder folder at the end of a stage, and a note that the stage is finished."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from typing_extensions import override

from lightning_modules import finished, signals
from lightning_modules.base import EncoderModule
from lightning_modules.callbacks.identity import Identity
from otherside import distributed
from otherside.files import replace_folder

OUT_OF_TIME = 124  # exit status, as that of `timeout`


class EncoderFolder(pl.Callback):
    """Writes `<trainer.default_root_dir>/encoder` when training has come to its end. `trainer.max_time` is no end: the
    exit status is 124 then, as only a finished training ends with 0.

    Args:
        identity: what the run is; it goes into the note.
        best: whose best checkpoint the encoder is of; None: of the last step.
    """

    def __init__(self, identity: Identity, best: ModelCheckpoint | None = None) -> None:
        self.identity, self.best = identity, best

    @override  # not on_train_end: Lightning leaves that out where a run resumes behind its last step
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EncoderModule)
        if trainer.fast_dev_run or signals.agreed():  # type: ignore[attr-defined]  # its last evaluation was ended
            return
        root = Path(trainer.default_root_dir)
        if out_of_time(trainer):
            distributed.say(
                f"stopped by trainer.max_time at step {trainer.global_step}; it counts all starts together: raise it, "
                f"and the same command goes on from {root / 'checkpoints'}"
            )
            trainer.strategy.barrier()
            sys.exit(OUT_OF_TIME)
        weights = trainer.strategy.lightning_module_state_dict()  # all ranks, as they may be sharded
        if trainer.is_global_zero:
            if self.best and self.best.best_model_path:
                self._copy(self.best, root)
            else:
                pl_module.save_encoder(root / finished.ENCODER, weights)
            ends = (trainer.global_step, trainer.current_epoch, trainer.max_steps, trainer.max_epochs)
            finished.write(root, *ends, given=self.identity.given, **self.identity.notes)
        distributed.say(f"finished: {root / finished.ENCODER}")

    @staticmethod
    def _copy(best: ModelCheckpoint, root: Path) -> None:
        path = Path(best.best_model_path)
        work = root / f".{finished.ENCODER}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(path / finished.ENCODER, work)
        replace_folder(work, root / finished.ENCODER)
        distributed.say(f"encoder/ is that of {path.name}: {best.monitor} {best.best_model_score:.4f}")


def out_of_time(trainer: pl.Trainer) -> bool:
    """Whether `trainer.max_time` stopped training before its last step or epoch."""
    if 0 < trainer.max_steps <= trainer.global_step or 0 < (trainer.max_epochs or -1) <= trainer.current_epoch:
        return False
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    return bool(trainer.strategy.broadcast(any(seconds is not None and seconds <= 0 for seconds in left)))
