from __future__ import annotations

import json

import pytest
from conftest import shared

from lightning_modules.report.paper import PUBLISHED, VARIANTS, nearest
from otherside.probing.findings import Cell, ahead, claims

THEIRS = {"uni": "", "mntp": "-Bi+MNTP", "simcse": "-Bi+MNTP+SimCSE", "supervised": "-Bi+MNTP+Supervised"}


@pytest.mark.parametrize("paper", PUBLISHED, ids=lambda paper: paper.name)
def test_numbers_are_the_published_ones(paper) -> None:
    tables = json.loads(shared("paper/tables.json").read_text())
    for cell, values in paper.cells.items():
        for variant, value in values.items():
            assert value == published(tables, paper.name + THEIRS[variant], cell), (cell, variant)


def published(tables: dict, model: str, cell: Cell) -> float:
    if cell.input.isdigit():
        return tables["context_probes"]["mlp"][model][cell.task][int(cell.input) - 1]
    if cell.metric == "accuracy":
        name = cell.task if cell.input == "word" else f"wic_{cell.input.replace(' ', '_')}"
        return tables["classification"]["mlp"][model][name]
    return tables[cell.task]["mlp"][model][cell.metric]


def test_every_claim_has_its_published_number() -> None:
    for paper in PUBLISHED:
        for claim in claims():
            found = paper.difference(claim.variant, claim.minus, list(claim.cells))
            assert (found is None) == ("bi" in (claim.variant, claim.minus)), claim


def test_difference_is_the_mean_over_cells() -> None:
    paper = PUBLISHED[0]
    cells = [Cell("object_animacy", "4", "accuracy"), Cell("subject_animacy", "1", "accuracy")]
    assert paper.difference("mntp", "uni", cells) == pytest.approx(((0.995 - 0.507) + (0.976 - 0.547)) / 2)
    assert paper.difference("mntp", "uni", [*ahead(), Cell("subject_animacy", "9", "accuracy")]) is None


def test_nearest_in_size() -> None:
    assert nearest(135_000_000).name == nearest(None).name == "Sheared-Llama-1.3B"
    assert nearest(8_000_000_000).name == "Llama2-7B"
    assert nearest(1).result("bi").rows == []
    assert len(nearest(1).result("uni").rows) == len(nearest(1).cells) == 29 and len(VARIANTS) == 4
