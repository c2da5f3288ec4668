"""Weights & Biases beside a run's folder: its files lie in there, and a run that goes on is the same W&B run."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from otherside.files import atomic

ID = "wandb.id"  # in the run's folder


def at_home(loggers: Any, root: Path) -> None:
    """Let W&B loggers among these settings write into `root`, and go on with the run that was begun there.

    Args:
        loggers: `trainer.logger`: one logger's settings, a list of them, or neither.
        root: the run's folder. What a user has set stays: `save_dir`, `id`, `version`.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if getattr(logger, "class_path", "").rpartition(".")[2] != "WandbLogger":
            continue
        options = logger.init_args
        if options.get("save_dir") in (None, "."):
            options["save_dir"] = str(root)
        if not (options.get("id") or options.get("version")):
            options["id"] = run_id(root)


def run_id(root: Path) -> str:
    """The W&B run of a run's folder; a new one where there is none."""
    path = root / ID
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:8] + "\n")
    return path.read_text().strip()
