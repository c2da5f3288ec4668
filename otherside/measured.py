"""MTEB results in a run's folder: what each evaluation was made of and with, and which of them is an encoder's own.

Imports nothing heavy: reports read them, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otherside.lineage import Card, instructions_of

ORGANISATION = "otherside"
META = "model_meta.json"
READ = ("attention", "pooling", "max_length", "start_token", "pool_start")  # also in an encoder's card


def model_name(base: str, stages: Sequence[str]) -> str:
    """As mteb's leaderboard names an encoder: by its base and stages."""
    path = Path(base)
    return f"{ORGANISATION}/{'-'.join([path.stem if path.suffix == '.gguf' else path.name, *stages])}"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Args:
        folder: with mteb's files.
        model: as mteb's leaderboard names it.
        step: of the run.
        settings: `READ`, dtype, instructions, and `adapters`, the SHA-256 of the stages before the run's own; empty
            where an older version noted none.
    """

    folder: Path
    model: str
    step: int
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def all_of(cls, root: Path) -> list[Evaluated]:
        """All of a run, by step, the oldest first."""
        found = [cls._read(folder) for folder in root.glob("mteb/results/*/*") if folder.is_dir()]
        return sorted((one for one in found if one.files), key=lambda one: (one.step, one.time))

    @classmethod
    def _read(cls, folder: Path) -> Evaluated:
        _, _, step = folder.name.rpartition("-step")
        try:
            settings = json.loads((folder / META).read_text())["loader_kwargs"]
        except (OSError, ValueError, KeyError, TypeError):  # mteb's file, which says more in other versions, or nothing
            settings = {}
        return cls(folder, folder.parent.name.replace("__", "/", 1), int(step) if step.isdigit() else 0, settings)

    @property
    def files(self) -> list[Path]:
        """A result for each task."""
        return sorted(file for file in self.folder.glob("*.json") if file.name != META)

    @property
    def time(self) -> float:
        """When it ended."""
        return max(file.stat().st_mtime for file in self.files)

    def is_of(self, card: Card) -> bool:
        """Whether it was of this encoder, not of another that was in its place, such as the run's before a soup."""
        stages = card.lineage.adapters
        before = [stage.sha256 for stage in stages[:-1]]
        name = model_name(card.lineage.base, [stage.name for stage in stages]).replace(" ", "_")
        return (self.step, self.model) == (card.steps, name) and self.settings.get("adapters", before) == before

    def likeness(self, card: Card) -> int:
        """In how many settings it equals the encoder's own."""
        own = {name: getattr(card, name) for name in READ} | {"instructions": instructions_of(card.history)}
        return sum(self.settings.get(name) == value for name, value in own.items())

    @property
    def told(self) -> str:
        """What scores depend on, in words."""
        if not self.settings:
            return "with settings that were not noted"
        asked = ", ".join(self.settings["instructions"])
        read = f"instructions for {asked}" if asked else "no instructions"
        return f"in {self.settings['dtype']}, texts of up to {self.settings['max_length']} tokens, {read}"


def own(found: Sequence[Evaluated], card: Card) -> Evaluated | None:
    """The evaluation whose settings are most like the encoder's own, of several the newest; None: none is of it."""
    fitting = [one for one in found if one.is_of(card)]
    return max(fitting, key=lambda one: (one.likeness(card), one.time), default=None)
