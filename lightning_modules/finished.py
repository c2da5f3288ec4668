"""The notes that a stage leaves in its run folder. Imports nothing heavy: `lightning recipe` only reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from otherside.lineage import ENCODER

NOTE, ENVIRONMENT = "finished.json", "environment.json"


def write(root: Path, steps: int, max_steps: int, max_epochs: int | None) -> None:
    """Say that the stage in `root` has ended, with which limits."""
    work = root / f".{NOTE}.tmp"
    work.write_text(json.dumps({"steps": steps, "max_steps": max_steps, "max_epochs": max_epochs}) + "\n")
    work.replace(root / NOTE)


def is_finished(root: Path, max_steps: int, max_epochs: int | None) -> bool:
    """Whether the stage in `root` has ended with at least these limits."""
    try:
        note = json.loads((root / NOTE).read_text())
    except (OSError, ValueError):
        return False
    enough = note["max_steps"] >= max_steps if max_steps > 0 else note["max_epochs"] == max_epochs
    return enough and (root / ENCODER).is_dir()


def starts(root: Path) -> list[dict[str, Any]]:
    """What `callbacks.Environment` noted at each start of the run in `root`; nothing if it kept no notes.

    Raises:
        ValueError: the notes are broken.
    """
    path = root / ENVIRONMENT
    try:
        return list(json.loads(path.read_text())["starts"]) if path.is_file() else []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold notes of a run, and cannot be read: {error!r}. Move it away.") from error
