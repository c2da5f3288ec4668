"""What a run's folder tells: lineage, settings, hardware, curves, MTEB scores. Needs neither lightning nor torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.finished import ENCODER, NOTE, starts
from lightning_modules.history import short_names
from otherside.lineage import CARD, Card
from otherside.measured import Evaluated, own

Curve = list[tuple[int, float]]
SIGNS = (NOTE, f"{ENCODER}/{CARD}", "tensorboard", "checkpoints")  # each makes a folder a run's


@dataclass(frozen=True)
class MtebScore:
    """A task's main score, as mteb computes it from its own result file.

    Args:
        task: its name.
        step: of the run.
        score: mean over splits and languages of the main score.
        model: as mteb's leaderboard names it.
        file: where it stands.
    """

    task: str
    step: int
    score: float
    model: str
    file: Path


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        root: its folder.
        name: the folder's name, with its parents' as far as it takes to tell runs apart.
    """

    root: Path
    name: str

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether a stage was, or is being, trained there."""
        return any((folder / sign).exists() for sign in SIGNS)

    @cached_property
    def card(self) -> Card | None:
        """Of the encoder, once the stage is finished."""
        folder = self.root / ENCODER
        return Card.read(folder) if Card.is_at(folder) else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings it ran with; empty if none were kept."""
        file = self.settings_file
        return yaml.safe_load(file.read_text()) or {} if file else {}

    @property
    def settings_file(self) -> Path | None:
        """Beside the newest log."""
        found = (file for depth in ("", "*/", "*/*/") for file in self.root.glob(f"{depth}config.yaml"))
        return max(filter(self._is_own, found), key=lambda file: file.stat().st_mtime, default=None)

    def _is_own(self, file: Path) -> bool:
        """Whether it is of no run of a sweep (`slurm/submit --sweep`), which lies beside what the stage left."""
        return file.relative_to(self.root).parts[0] != "sweep"

    def setting(self, path: str, default: Any = None) -> Any:
        """One setting by its dotted path."""
        place: Any = self.settings
        for key in path.split("."):
            place = place.get(key) if isinstance(place, dict) else None
        return default if place is None else place

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Software, hardware and time of each start."""
        return starts(self.root)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """All that was logged to TensorBoard, by name; of steps that were done twice, the last time."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folders = {file.parent for file in self.root.rglob("events.out.tfevents.*") if self._is_own(file)}
        found: dict[str, dict[int, float]] = {}
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime):
            log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
            log.Reload()
            for name in log.Tags()["scalars"]:
                found.setdefault(name, {}).update({event.step: event.value for event in log.Scalars(name)})
        return {name: sorted(values.items()) for name, values in sorted(found.items())}

    @cached_property
    def evaluations(self) -> list[Evaluated]:
        """By mteb, by step."""
        return Evaluated.all_of(self.root)

    @property
    def first_and_last(self) -> list[Evaluated]:
        """Of its evaluations; of several of the encoder, the one with its own settings."""
        found = self.evaluations
        last = own(found, self.card) if self.card else None
        return [one for one in found if one in (found[0], last or found[-1])]

    @cached_property
    def mteb(self) -> list[MtebScore]:
        """Scores in mteb's own result files, by step and task."""
        found = [_mteb(file, one) for one in self.evaluations for file in one.files]
        return sorted(found, key=lambda score: (score.step, score.task))

    @property
    def steps(self) -> int:
        """Of its encoder, or, unfinished, as far as it was logged."""
        if self.card:
            return self.card.steps
        return max((step for curve in self.curves.values() for step, _ in curve), default=0)

    def starts_from(self, other: Run) -> bool:
        """Whether it was built on the encoder of `other`."""
        if self.card and other.card:
            mine, theirs = ([a.sha256 for a in card.lineage.adapters] for card in (self.card, other.card))
            return len(mine) > 1 and mine[:-1] == theirs
        model = Path(str(self.setting("model.init_args.backbone.model", "")))
        place = (other.root / ENCODER).parts
        return self.card is None and model.name == ENCODER and place[-len(model.parts) :] == model.parts

    @property
    def order(self) -> tuple[int, str]:
        """Before the runs that start from it."""
        return (len(self.card.lineage.adapters) if self.card else 99, self.name)


def _mteb(file: Path, evaluation: Evaluated) -> MtebScore:
    try:
        content = json.loads(file.read_text())
        scores = [entry["main_score"] for split in content["scores"].values() for entry in split]
        score = sum(scores) / len(scores)
        return MtebScore(content["task_name"], evaluation.step, score, evaluation.model, file)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{file} must be a result of mteb, and cannot be read: {error!r}. Move it away.") from error


def find_runs(folders: list[Path]) -> list[Run]:
    """The runs in these folders: a run's own folder, or one that holds folders of runs, such as a recipe's.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: none is named, or one holds no run.
    """
    if not folders:
        raise ValueError("report needs at least one RUN, a folder that lightning fit wrote; got none")
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"every RUN must be the folder of a run; there is no folder {folder}")
        inside = [folder] if Run.is_at(folder) else [child for child in sorted(folder.iterdir()) if Run.is_at(child)]
        if not inside:
            raise ValueError(
                f"every RUN must be a folder that lightning fit wrote, or hold such folders; {folder} does not. "
                "Name the trainer.default_root_dir of a stage."
            )
        runs = sorted((Run(place.resolve(), place.name) for place in inside), key=lambda run: run.order)
        found |= {run.root: run for run in runs if run.root not in found}
    return [Run(root, name) for root, name in zip(found, short_names([root.parts for root in found]), strict=True)]
