"""Several trainings of one stage as one variant, whose intervals know how far trainings differ.

Shapes: S trainings, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from otherside.probing.results import Result, Row
from otherside.probing.scores import DRAWS, Score
from otherside.probing.variants import Variant, run_of


def stages_of(variants: Sequence[Variant]) -> list[str]:
    """Which stage each variant is a training of, by the name of its run's folder; untrained ones are their own.

    Raises:
        ValueError: folders of one name hold different stages; stages have different numbers of trainings, or name them
            in different orders of seeds.
    """
    members: dict[str, list[Variant]] = {}
    for variant in variants:
        if variant.card.lineage.adapters:
            members.setdefault(run_of(variant.model), []).append(variant)
    for name, found in members.items():
        if len(kinds := {variant.card.stage for variant in found}) > 1:
            raise ValueError(
                f"--seeds takes runs whose folders have one name as trainings of one stage; {name} holds "
                f"{' and '.join(sorted(kinds))}. Name them SEED/STAGE/encoder."
            )
    if len({len(found) for found in members.values()}) > 1:
        said = ", ".join(f"{name} {len(found)}" for name, found in members.items())
        raise ValueError(f"--seeds needs as many encoders of each stage, in the same order of seeds; got {said}")
    for later, earlier in permutations(members.values(), 2):
        for i, j in permutations(range(len(later)), 2):
            if earlier[j].card.lineage.adapters[-1].sha256 in [a.sha256 for a in later[i].card.lineage.adapters]:
                raise ValueError(
                    "--seeds needs the encoders of each stage in the same order of seeds; "
                    f"{later[i].model} was trained upon {earlier[j].model}, which is not in its place"
                )
    return [run_of(v.model) if v.card.lineage.adapters else v.name for v in variants]


def over_seeds(results: Sequence[Result], stages: Sequence[str]) -> list[Result]:
    """One result per stage: numbers are means over its trainings, and draws vary as such means do.

    A mean over S trainings is off by their standard deviation / √S, which S numbers tell only roughly: draws follow
    Student's t with S − 1 degrees of freedom, around what resampled items give. Resampling three trainings, as items
    are resampled, would claim 95 % and cover 74 %. The first trainings of all stages share their draws, and so do the
    second: trained with the same seed, one upon the other, they rise and fall together.

    Args:
        results: of N encoders.
        stages: of each, in the same order; see `stages_of`.
    """
    members = {stage: [r for r, s in zip(results, stages, strict=True) if s == stage] for stage in stages}
    return [_mean(stage, found) for stage, found in members.items()]


def _mean(stage: str, members: list[Result]) -> Result:
    if len(members) == 1:
        return members[0]
    shares_SB = _deviations(len(members))
    by_key: dict[tuple[object, ...], list[Row]] = {}
    for member in members:
        for row in member.rows:
            by_key.setdefault(row.key, []).append(row)
    rows = []
    for found in by_key.values():
        draws_SB = np.stack([row.score.draws for row in found])
        mean_B = draws_SB.mean(0)
        drawn_B = mean_B + ((draws_SB - mean_B) * shares_SB).sum(0)
        rows.append(replace(found[0], score=Score.of(float(np.mean([row.score.value for row in found])), drawn_B)))
    settings = {**members[0].settings, "model": [member.settings["model"] for member in members]}
    return Result(stage, rows, settings)


def _deviations(trainings: int) -> np.ndarray:
    """(S, B): how much of each training's deviation from their mean a draw of that mean has."""
    random = np.random.default_rng(0)
    normal = random.standard_normal((trainings, DRAWS)) / np.sqrt(trainings * (trainings - 1))
    return normal * np.sqrt((trainings - 1) / random.chisquare(trainings - 1, DRAWS))
