"""What is known of where an encoder comes from: its base's licence, and scores that its run measured."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, snapshot_download

from otherside import weights
from otherside.lineage import Card, Lineage
from otherside.measured import Evaluated, own

LICENCES = ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
FIELDS = ("license", "license_name", "license_link")


def base_folder(lineage: Lineage) -> Path | None:
    """The base's folder, with its licence and card at least; None: it is not here, nor on the hub."""
    place = weights.locate(lineage.base)
    if isinstance(place, Path):
        return place if place.is_dir() else place.parent
    try:
        return Path(snapshot_download(place, revision=lineage.revision, allow_patterns=["README.md", *LICENCES]))
    except (OSError, ValueError):  # of huggingface_hub: no connection, no such repository
        return None


def licence(base: Path | None) -> dict[str, str]:
    """What the base's card says of its licence, as the hub's metadata has it; empty if it says nothing."""
    try:
        said = ModelCard.load(base / "README.md").data.to_dict() if base else {}
    except (OSError, ValueError):
        return {}
    return {name: str(said[name]) for name in FIELDS if said.get(name)}


def pass_on(base: Path | None, folder: Path) -> None:
    """Copy the base's licence files into an export."""
    for pattern in LICENCES if base else ():
        for file in base.glob(pattern):  # type: ignore[union-attr]
            shutil.copyfile(file, folder / file.name)


def evaluated(encoder: str, card: Card) -> Evaluated | None:
    """The evaluation that the encoder's run made of it; None if it made none."""
    return own(Evaluated.all_of(Path(weights.locate(encoder)).parent), card) if card.history else None


def scores(evaluation: Evaluated | None) -> dict[str, list[EvalResult]]:
    """Task -> MTEB results of an evaluation."""
    from mteb.results import TaskResult

    logging.getLogger("mteb").setLevel(logging.ERROR)
    results = []
    for file in evaluation.files if evaluation else []:
        try:
            results.append(TaskResult.from_disk(file))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{file} must be a result of mteb, and cannot be read. Remove it.") from error
    return {result.task_name: result.get_hf_eval_results() for result in results}
