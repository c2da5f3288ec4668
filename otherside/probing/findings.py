"""The paper's three findings, each as differences between variants whose sign can be looked up.

A finding is a list of claims; a claim is the mean of paired differences `variant - minus` over some cells of the
results, with a 95 % interval from their common bootstrap draws. A finding holds if all its claims do; whether any does,
is decided by intervals that are corrected for the number of claims.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from otherside.files import atomic
from otherside.probing.published import CONTEXT
from otherside.probing.results import Result, Row
from otherside.probing.scores import Score

Verdict = Literal["holds", "holds in part", "mixed", "does not hold", "cannot tell", "not measured"]
Direction = Literal["more", "less", "alike"]
FILE, FORMAT = "findings.json", 1
MARGIN = 0.05  # how far apart two correlations may be and still count as alike
ASPECT, RATINGS = ("telicity", "duration"), ("concreteness", "sensorimotor")
STRATEGIES = ("absolute difference", "cosine", "concatenation")
CONTRASTIVE = ("simcse", "supervised")

FINDINGS = {
    1: "Bidirectional attention improves the ability to represent subsequent context, but weakens the utilization of "
    "preceding context; contrastive learning balances both directions.",
    2: "Autoregressive models perform similarly to bidirectional ones on regression tasks (concreteness, "
    "sensorimotor norms).",
    3: "In word sense disambiguation, contrastive learning improves the embeddings of autoregressive models, "
    "irrespective of the strategy for extracting the probe's features.",
}


class Cell(NamedTuple):
    """One number of the results, at the layer that is shown and by the probe that is shown."""

    task: str
    input: str
    metric: str


@dataclass(frozen=True)
class Claim:
    """What should be seen if a finding holds.

    Args:
        finding: its number.
        about: what is compared.
        variant: the one said to be more, less or alike.
        minus: the one it is compared with.
        direction: of the claimed difference; alike means within ± MARGIN.
        cells: whose mean difference is taken.
        counted: whether it decides about the finding; others stand beside it.
    """

    finding: int
    about: str
    variant: str
    minus: str
    direction: Direction
    cells: tuple[Cell, ...]
    counted: bool = True


def ahead() -> tuple[Cell, ...]:
    """Accuracy of words in front of the one that is asked about: it is their subsequent context."""
    return tuple(Cell(task, str(i), "accuracy") for task, place in CONTEXT.items() for i in range(1, place))


def behind() -> tuple[Cell, ...]:
    """Accuracy of words behind the one that is asked about: it is their preceding context."""
    return tuple(Cell(task, str(i), "accuracy") for task, place in CONTEXT.items() for i in range(place + 1, 6))


def claims(others: Sequence[str] = ()) -> Iterator[Claim]:
    """All claims.

    Args:
        others: names of encoders of another base, such as a BERT.
    """
    aspect = tuple(Cell(task, "word", "accuracy") for task in ASPECT)
    front, back = "subsequent context (words in front of it)", "preceding context (words behind it)"
    for variant in ("bi", "mntp"):  # the paper has no bi
        yield Claim(1, front, variant, "uni", "more", ahead(), variant == "mntp")
        yield Claim(1, back, variant, "uni", "less", behind(), variant == "mntp")
    for variant in CONTRASTIVE:
        yield Claim(1, front, variant, "mntp", "more", ahead())
        yield Claim(1, back, variant, "mntp", "more", behind())
    yield Claim(1, "lexical aspect of verbs", "mntp", "uni", "less", aspect, False)
    for variant in CONTRASTIVE:
        yield Claim(1, "lexical aspect of verbs", variant, "mntp", "more", aspect, False)
    for task in RATINGS:  # one by one: a gain in one and a loss in the other would look alike
        about, ratings = f"correlation with human ratings: {task}", (Cell(task, "word", "pearson"),)
        for variant in (*CONTRASTIVE, *others):
            yield Claim(2, about, variant, "uni", "alike", ratings)
        yield Claim(2, about, "mntp", "uni", "less", ratings, False)
        for variant in CONTRASTIVE:
            yield Claim(2, about, variant, "mntp", "more", ratings, False)
    for minus in ("uni", "mntp"):
        for variant in CONTRASTIVE:
            for strategy in STRATEGIES:
                cells = (Cell("wic", strategy, "accuracy"),)
                yield Claim(3, f"by {strategy}", variant, minus, "more", cells, minus == "uni")


def judge(score: Score, direction: Direction) -> Verdict:
    """Whether an interval lies on the claimed side, on the other, or on both."""
    low, high = (-score.high, -score.low) if direction == "less" else (score.low, score.high)
    if direction == "alike":
        outside = low > MARGIN or high < -MARGIN
        return "holds" if low > -MARGIN and high < MARGIN else "does not hold" if outside else "cannot tell"
    return "holds" if low > 0 else "does not hold" if high < 0 else "cannot tell"


def conclude(claimed: Sequence[tuple[Score, Direction]]) -> Verdict:
    """What its claims, as far as measured, say about a finding.

    That all hold is no likelier by chance the more there are; that one of them holds, or does not, is. Where any may
    decide, intervals are corrected for their number.
    """
    if not claimed:
        return "not measured"
    if all(judge(score, direction) == "holds" for score, direction in claimed):
        return "holds"
    corrected = [(Score.of(score.value, score.draws, len(claimed)), direction) for score, direction in claimed]
    verdicts = {judge(score, direction) for score, direction in corrected}
    if "holds" in verdicts:
        return "mixed" if "does not hold" in verdicts else "holds in part"
    return "does not hold" if "does not hold" in verdicts else "cannot tell"


def write_findings(results: Sequence[Result], out: Path) -> None:
    """findings.json; it appears whole or not at all."""
    with atomic(out / FILE) as path:
        path.write_text(json.dumps({"format": FORMAT, "findings": findings(results)}, indent=1) + "\n")


def read_findings(folder: Path) -> list[dict[str, Any]]:
    """What `write_findings` wrote; nothing if it did not.

    Raises:
        ValueError: it is broken, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format must be {FORMAT}; got {content['format']}")
        return list(content["findings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold findings of lightning probe, and cannot be read: {error!r}. Remove it, and run it again."
        ) from error


def findings(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each finding with its verdict, its claims as far as measured, and how many of those that count there are, as JSON
    has them.
    """
    by_name = {result.name: result for result in results}
    base = by_name["uni"].settings.get("base") if "uni" in by_name else None
    others = [result.name for result in results if base and result.settings.get("base") != base]
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in FINDINGS}
    counted: dict[int, list[tuple[Score, Direction]]] = {number: [] for number in FINDINGS}
    asked = list(claims(others))
    for claim in asked:
        if claim.variant in by_name and claim.minus in by_name:
            cells, score = difference(by_name[claim.variant], by_name[claim.minus], claim.cells)
            if score:
                numbers = {"value": score.value, "low": score.low, "high": score.high}
                verdict = judge(score, claim.direction)
                found[claim.finding].append({**asdict(claim), "cells": cells, **numbers, "verdict": verdict})
                if claim.counted:
                    counted[claim.finding].append((score, claim.direction))
    return [
        {
            "number": number,
            "says": says,
            "verdict": conclude(counted[number]),
            "counted": sum(claim.counted for claim in asked if claim.finding == number),
            "claims": found[number],
        }
        for number, says in FINDINGS.items()
    ]


def spoken(finding: dict[str, Any]) -> str:
    """A finding's verdict, and how many of its claims it is about where some were not measured."""
    measured = sum(claim["counted"] for claim in finding["claims"])
    counted = finding.get("counted", measured)  # older files do not say
    return f"{finding['verdict']}{f' ({measured} of {counted} claims measured)' if 0 < measured < counted else ''}"


def difference(variant: Result, minus: Result, cells: Sequence[Cell]) -> tuple[list[Cell], Score | None]:
    """The mean paired difference over the cells that both variants have, and those cells."""
    pairs = [(cell, find(variant, cell), find(minus, cell)) for cell in cells]
    both = [(cell, one.score.minus(other.score)) for cell, one, other in pairs if one and other]
    if not both:
        return [], None
    measured, scores = zip(*both, strict=True)
    draws = np.mean([score.draws for score in scores], axis=0)
    return list(measured), Score.of(float(np.mean([score.value for score in scores])), draws)


def find(result: Result, cell: Cell) -> Row | None:
    """A cell's row in context, the mean of several ratings; by the MLP, as in the paper's figures, if there is one."""
    layer = result.settings["probed"]
    rows = result.find(task=cell.task, input=cell.input, metric=cell.metric, condition="context", layer=layer)
    for probe in ("mlp", "linear"):
        for row in rows:
            if row.probe == probe and row.target in ("", "mean"):
                return row
    return None
