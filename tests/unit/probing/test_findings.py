"""Findings on results whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from otherside.probing.findings import (
    STRATEGIES,
    ahead,
    behind,
    claims,
    conclude,
    findings,
    judge,
    read_findings,
    spoken,
    write_findings,
)
from otherside.probing.published import CONTEXT
from otherside.probing.results import Result, Row
from otherside.probing.scores import Score

Levels = Mapping[str, float]  # accuracy in front of, at and behind the word asked about; aspect, ratings, wic


def around(value: float, seed: int, spread: float = 0.01) -> Score:
    """A score whose draws have this spread; equal seeds are paired."""
    return Score.of(value, value + spread * np.random.default_rng(seed).standard_normal(1000))


def variant(name: str, levels: Levels, spread: float = 0.01, seed: int = 0, base: str = "llama") -> Result:
    """A variant with all cells, each kind at its level."""

    def row(task: str, place: str, metric: str, kind: str) -> Row:
        score = around(levels[kind], seed, spread)
        target = "mean" if task == "sensorimotor" else ""
        return Row(task, place, target, 2, "mlp", "context", metric, score)

    rows = []
    for task, place in CONTEXT.items():
        for i in range(1, 6):
            kind = "front" if i < place else "back" if i > place else "at"
            rows.append(row(task, str(i), "accuracy", kind))
    rows += [row(task, "word", "accuracy", "aspect") for task in ("telicity", "duration")]
    rows += [row(task, "word", "pearson", "ratings") for task in ("concreteness", "sensorimotor")]
    rows += [row("wic", strategy, "accuracy", "wic") for strategy in STRATEGIES]
    return Result(name, rows, {"probed": 2, "base": base})


UNI = {"front": 0.5, "at": 1.0, "back": 0.98, "aspect": 0.82, "ratings": 0.7, "wic": 0.57}
MNTP = {"front": 0.95, "at": 0.98, "back": 0.85, "aspect": 0.76, "ratings": 0.6, "wic": 0.54}
BEST = {"front": 0.98, "at": 1.0, "back": 0.97, "aspect": 0.83, "ratings": 0.71, "wic": 0.62}


def all_of(uni: Levels, mntp: Levels, best: Levels, spread: float = 0.01, paired: bool = True) -> list[Result]:
    levels = {"uni": uni, "mntp": mntp, "simcse": best, "supervised": best}
    return [variant(name, found, spread, 0 if paired else i) for i, (name, found) in enumerate(levels.items())]


def verdicts(results: list[Result]) -> list[str]:
    return [finding["verdict"] for finding in findings(results)]


@pytest.mark.parametrize(
    ("value", "half", "direction", "expected"),
    [
        (0.10, 0.05, "more", "holds"),
        (-0.10, 0.05, "more", "does not hold"),
        (0.04, 0.05, "more", "cannot tell"),
        (-0.10, 0.05, "less", "holds"),
        (0.10, 0.05, "less", "does not hold"),
        (-0.04, 0.05, "less", "cannot tell"),
        (0.00, 0.04, "alike", "holds"),
        (0.02, 0.04, "alike", "cannot tell"),
        (0.10, 0.04, "alike", "does not hold"),
        (-0.10, 0.04, "alike", "does not hold"),
        (0.00, 0.00, "more", "cannot tell"),
    ],
)
def test_judge(value: float, half: float, direction: str, expected: str) -> None:
    assert judge(Score(value, value - half, value + half), direction) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.1], "holds"),
        ([0.1, 0.0], "holds in part"),
        ([0.1, -0.1, 0.0], "mixed"),
        ([0.0, -0.1], "does not hold"),
        ([0.0, 0.0], "cannot tell"),
        ([], "not measured"),
        ([0.022, 0.022], "holds"),  # 2.2 standard errors each: all of two, which chance makes no likelier
        ([0.022, 0.0], "cannot tell"),  # any of two, which chance makes likelier
        ([-0.022, 0.0], "cannot tell"),
        ([0.026, 0.0], "holds in part"),
    ],
)
def test_conclude(values: list[float], expected: str) -> None:
    assert conclude([(normal(value), "more") for value in values]) == expected


def normal(value: float, spread: float = 0.01) -> Score:
    """A score whose draws are the quantiles of a normal distribution."""
    return Score.of(value, value + spread * norm.ppf((np.arange(1000) + 0.5) / 1000))


def test_one_of_several_claims_rarely_holds_by_chance() -> None:
    random = np.random.default_rng(0)
    concluded = [conclude([(normal(error), "more") for error in random.normal(0, 0.01, 6)]) for _ in range(1000)]
    assert 0.92 < concluded.count("cannot tell") / 1000 < 0.98


def test_the_papers_pattern_holds() -> None:
    assert verdicts(all_of(UNI, MNTP, BEST)) == ["holds", "holds", "holds"]


def test_the_opposite_does_not_hold() -> None:
    better = {**MNTP, "front": 0.45, "back": 0.99}
    worse = {**BEST, "front": 0.40, "back": 0.90, "ratings": 0.5, "wic": 0.50}
    assert verdicts(all_of(UNI, better, worse)) == ["does not hold", "does not hold", "does not hold"]


def test_opposite_changes_of_the_two_ratings_are_not_alike() -> None:
    uni, best = variant("uni", UNI), variant("simcse", UNI)
    moved = {"concreteness": 0.1, "sensorimotor": -0.1}
    rows = [
        replace(row, score=around(row.score.value + moved[row.task], 0)) if row.task in moved else row
        for row in best.rows
    ]
    second = findings([uni, replace(best, rows=rows)])[1]
    assert second["verdict"] == "does not hold"
    assert [claim["value"] for claim in second["claims"]] == pytest.approx([0.1, -0.1])


def test_equal_variants_cannot_be_told_apart() -> None:
    assert verdicts(all_of(UNI, UNI, UNI, paired=False)) == ["cannot tell", "holds", "cannot tell"]


def test_wide_intervals_cannot_tell() -> None:
    assert verdicts(all_of(UNI, MNTP, BEST, spread=2.0, paired=False)) == ["cannot tell"] * 3


def test_pairing_tells_what_single_intervals_do_not() -> None:
    assert verdicts(all_of(UNI, MNTP, BEST, spread=0.5))[2] == "holds"


def test_only_what_was_measured_counts() -> None:
    base = variant("uni", UNI), variant("bi", MNTP)
    assert verdicts(list(base)) == ["not measured"] * 3  # the paper has no bi
    claimed = findings(list(base))[0]["claims"]
    assert [claim["verdict"] for claim in claimed] == ["holds", "holds"]
    few = [Result(r.name, r.find(task="subject_animacy"), r.settings) for r in all_of(UNI, MNTP, BEST)]
    first, *others = findings(few)
    assert first["verdict"] == "holds"
    assert spoken(first) == "holds"
    assert first["claims"][0]["cells"] == [("subject_animacy", "1", "accuracy")]
    assert [spoken(finding) for finding in others] == ["not measured"] * 2
    halves = findings([r for r in all_of(UNI, MNTP, BEST) if r.name != "simcse"])
    assert [spoken(finding) for finding in halves] == [
        "holds (4 of 6 claims measured)",
        "holds (2 of 4 claims measured)",
        "holds (3 of 6 claims measured)",
    ]


def test_encoders_of_another_base_are_compared_with_the_causal_one() -> None:
    bert = variant("bert", {**UNI, "ratings": 0.9}, base="bert-base")
    second = findings([variant("uni", UNI), bert])[1]
    assert [(claim["variant"], claim["verdict"]) for claim in second["claims"]] == [("bert", "does not hold")] * 2


def test_cells() -> None:
    assert len(ahead()) == 1 + 2 + 2 + 4
    assert len(behind()) == 3 + 2 + 2 + 0
    assert sum(claim.counted for claim in claims() if claim.finding == 3) == 6


def test_value_is_the_mean_difference_and_is_written(tmp_path: Path) -> None:
    results = all_of(UNI, MNTP, BEST)
    write_findings(results, tmp_path)
    written = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert read_findings(tmp_path) == written
    front = written[0]["claims"][0]
    assert (front["variant"], front["minus"], front["direction"]) == ("mntp", "uni", "more")
    assert front["value"] == pytest.approx(0.45)
    assert front["low"] == pytest.approx(0.45, abs=1e-6)  # paired draws cancel
    assert len(front["cells"]) == 9


def test_no_findings_and_broken_ones(tmp_path: Path) -> None:
    assert read_findings(tmp_path) == []
    for broken in ("{", "[]", '{"format": 9, "findings": []}'):
        (tmp_path / "findings.json").write_text(broken)
        with pytest.raises(ValueError, match=r"findings\.json must hold findings.*run it again"):
            read_findings(tmp_path)
