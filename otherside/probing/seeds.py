"""Several trainings of one stage as one variant, whose intervals know how far trainings differ.

Shapes: S trainings, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from otherside.probing.results import Result, Row
from otherside.probing.scores import DRAWS, Score


def over_seeds(results: Sequence[Result], stages: Sequence[str]) -> list[Result]:
    """One result per stage: numbers are means over its trainings, and a draw resamples the trainings, too.

    The first trainings of all stages share their draws, and so do the second: trained with the same seed, one upon the
    other, they rise and fall together.

    Args:
        results: of N encoders.
        stages: of each, in the same order.

    Raises:
        ValueError: stages have different numbers of trainings.
    """
    members = {stage: [r for r, s in zip(results, stages, strict=True) if s == stage] for stage in stages}
    numbers = {stage: len(found) for stage, found in members.items() if len(found) > 1}
    if len(set(numbers.values())) > 1:
        said = ", ".join(f"{stage} {number}" for stage, number in numbers.items())
        raise ValueError(f"--seeds needs as many encoders of each stage, in the same order of seeds; got {said}")
    return [_mean(stage, found) for stage, found in members.items()]


def _mean(stage: str, members: list[Result]) -> Result:
    if len(members) == 1:
        return members[0]
    chosen = np.random.default_rng(0).integers(len(members), size=(len(members), DRAWS))
    by_key: dict[tuple[object, ...], list[Row]] = {}
    for member in members:
        for row in member.rows:
            by_key.setdefault(row.key, []).append(row)
    rows = []
    for found in by_key.values():
        draws_SB = np.stack([row.score.draws for row in found])
        drawn = np.take_along_axis(draws_SB, chosen, axis=0).mean(0) if len(found) == len(members) else draws_SB.mean(0)
        rows.append(replace(found[0], score=Score.of(float(np.mean([row.score.value for row in found])), drawn)))
    settings = {**members[0].settings, "model": [member.settings["model"] for member in members]}
    return Result(stage, rows, settings)
