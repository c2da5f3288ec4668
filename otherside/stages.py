"""What stages left behind, adapters and weights: opened, and copied into a new encoder folder."""

from __future__ import annotations

import shutil
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from torch import nn

from otherside import adapters
from otherside.adapters import SavedAdapter
from otherside.full import SavedWeights
from otherside.lineage import ADAPTER_WEIGHTS, WEIGHTS, Kind, Lineage, Merged

FILES: dict[Kind, tuple[str, ...]] = {"adapter": (adapters.CONFIG, ADAPTER_WEIGHTS), "weights": (WEIGHTS,)}
FOLDERS: dict[Kind, str] = {"adapter": "adapters", "weights": "weights"}


def saved(stage: Merged) -> SavedAdapter | SavedWeights:
    """A stage's files, to be merged into its base.

    Raises:
        FileNotFoundError: they are gone.
        ValueError: they are not what was written; see `Merged.check`.
    """
    return SavedAdapter(stage) if stage.kind == "adapter" else SavedWeights(stage)


def opened(lineage: Lineage, lm: nn.Module) -> list[SavedAdapter | SavedWeights]:
    """All that makes of the base `lm` what a lineage is, in order.

    Raises: as `saved`; a ValueError where weights are not of this model.
    """
    found = [saved(stage) for stage in lineage.files]
    for stage in found:
        if isinstance(stage, SavedWeights):
            stage.check_fits(lm)
    return found


def changed(stage: Merged) -> frozenset[str]:
    """Names of the base's weights that are others behind a stage."""
    found = saved(stage)
    if isinstance(found, SavedWeights):
        return found.names
    return frozenset(f"{key.partition('.lora_')[0]}.weight" for key in found.weights)


def copy(lineage: Lineage, work: Path, replaced: Set[str] = frozenset()) -> Lineage:
    """Copy a lineage's files into a new encoder folder; of a stage all of whose weights are `replaced` by a later one,
    only what it was is kept.

    Raises:
        FileNotFoundError: one is gone.
        ValueError: one is not what was written; see `Merged.check`.
    """
    copied: list[Merged] = []
    for stage in lineage.adapters:
        if stage.folder is None or (replaced and changed(stage) <= replaced):
            copied.append(replace(stage, folder=None))
            continue
        folder = folder_in(work, len(copied), stage.name, stage.kind)
        folder.mkdir(parents=True)
        for file in FILES[stage.kind]:  # LLM2Vec's folders hold more
            shutil.copyfile(Path(stage.folder) / file, folder / file)
        copied.append(replace(stage, folder=str(folder)))
        copied[-1].check()
    return replace(lineage, adapters=tuple(copied))


def folder_in(work: Path, number: int, stage: str, kind: Kind = "adapter") -> Path:
    """Where in an encoder folder the files of a stage stand, by its number in the lineage."""
    return work / FOLDERS[kind] / f"{number}-{stage}"
