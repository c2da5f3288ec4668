"""Leaves an encoder folder at the end of a stage, and a note that the stage is finished."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
from typing_extensions import override

from lightning_modules.base import EncoderModule

FOLDER, NOTE = "encoder", "finished.json"


class EncoderFolder(pl.Callback):
    """Writes `<trainer.default_root_dir>/encoder` when training has come to its end."""

    @override  # not on_train_end: Lightning leaves that out where a run resumes behind its last step
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EncoderModule)
        if trainer.interrupted or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        root = Path(trainer.default_root_dir)
        pl_module.encoder.save(root / FOLDER, pl_module.stage, trainer.global_step)
        note = {"steps": trainer.global_step, "max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs}
        work = root / f".{NOTE}.tmp"
        work.write_text(json.dumps(note) + "\n")
        work.replace(root / NOTE)


def is_finished(root: Path, max_steps: int, max_epochs: int | None) -> bool:
    """Whether the stage in `root` has ended with these limits, by its note."""
    try:
        note = json.loads((root / NOTE).read_text())
    except (OSError, ValueError):
        return False
    by_steps = max_steps > 0 and note["max_steps"] >= max_steps
    return (by_steps or (max_steps < 0 and note["max_epochs"] == max_epochs)) and (root / FOLDER).is_dir()
