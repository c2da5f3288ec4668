"""The notes that a stage leaves in its run folder. Imports nothing heavy: `lightning recipe` only reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from otherside.files import atomic
from otherside.lineage import ENCODER

NOTE, ENVIRONMENT = "finished.json", "environment.json"


def write(root: Path, steps: int, epochs: int, max_steps: int, max_epochs: int | None, **notes: Any) -> None:
    """Say that the stage in `root` has ended: after how many steps and epochs, with which limits, and what it was."""
    content = {"steps": steps, "epochs": epochs, "max_steps": max_steps, "max_epochs": max_epochs, **notes}
    with atomic(root / NOTE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def ended(root: Path, max_steps: int, max_epochs: int | None) -> dict[str, Any] | None:
    """The note of a stage that has ended and would not go on with these limits; None if it is not there, or would."""
    try:
        note: dict[str, Any] = json.loads((root / NOTE).read_text())
        same = (note["max_steps"], note["max_epochs"] or -1) == (max_steps, max_epochs or -1)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    by_steps = 0 < max_steps <= note["steps"]
    by_epochs = 0 < (max_epochs or -1) <= note.get("epochs", 0)
    return note if (same or by_steps or by_epochs) and (root / ENCODER).is_dir() else None


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
