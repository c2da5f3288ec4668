"""Several trainings of one stage as one variant."""

from dataclasses import replace

import numpy as np
import pytest

from otherside.lineage import Card, Lineage, Merged
from otherside.probing.results import Result, Row
from otherside.probing.scores import DRAWS, Score
from otherside.probing.seeds import over_seeds, stages_of
from otherside.probing.variants import Variant


def result(name: str, value: float, noise: float = 0.01, **keys: str) -> Result:
    """One number, whose draws differ as items do."""
    draws = value + noise * np.random.default_rng(1).normal(size=DRAWS)
    row = Row(keys.get("task", "wic"), "cosine", "", 30, "mlp", "context", "accuracy", Score.of(value, draws))
    return Result(name, [row], {"model": name, "layers": 30, "probed": 30})


def only(results: list[Result], name: str) -> Score:
    [found] = [result for result in results if result.name == name]
    return found.rows[0].score


def test_the_mean_and_an_interval_that_knows_trainings_differ() -> None:
    alike = over_seeds([result(f"mntp ({i})", 0.5) for i in range(3)], ["mntp"] * 3)
    apart = over_seeds([result(f"mntp ({i})", 0.5 + 0.1 * i) for i in range(3)], ["mntp"] * 3)
    assert [r.name for r in apart] == ["mntp"] and apart[0].settings["model"] == [f"mntp ({i})" for i in range(3)]
    assert only(apart, "mntp").value == pytest.approx(0.6)
    narrow, wide = (only(found, "mntp") for found in (alike, apart))
    assert narrow.high - narrow.low == pytest.approx(4 * 0.01, rel=0.1)
    assert wide.high - wide.low == pytest.approx(2 * 4.303 * 0.1 / np.sqrt(3), rel=0.2), "Student's t, two degrees"


@pytest.mark.parametrize("trainings", [2, 3, 5])
def test_of_such_intervals_95_percent_hold_the_truth(trainings: int) -> None:
    random, held = np.random.default_rng(7), []
    for _ in range(300):
        chain = [result(f"mntp {i}", 0.5 + 0.02 * random.normal(), noise=0) for i in range(trainings)]
        score = only(over_seeds(chain, ["mntp"] * trainings), "mntp")
        held.append(score.low <= 0.5 <= score.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_differences_are_paired_by_seed() -> None:
    """Every supervised training is .05 better than the mntp training that it was built on."""
    chain = [result(f"{s} {i}", 0.1 * i + gain) for s, gain in (("mntp", 0.5), ("supervised", 0.55)) for i in range(3)]
    found = over_seeds([result("uni", 0.4), *chain], ["uni", *["mntp"] * 3, *["supervised"] * 3])
    assert [r.name for r in found] == ["uni", "mntp", "supervised"]
    difference = only(found, "supervised").minus(only(found, "mntp"))
    assert (difference.low, difference.high) == (pytest.approx(0.05, abs=1e-6), pytest.approx(0.05, abs=1e-6))
    assert only(found, "uni").value == 0.4


def variant(model: str, *stages: str) -> Variant:
    lineage = Lineage("base", adapters=tuple(Merged(stage.split()[0], "", stage) for stage in stages))
    stage = stages[-1].split()[0] if stages else "uni"
    return Variant(stage, model, Card(lineage, stage, 1, "bidirectional", "mean", 64, None, True, None))


MNTP = [variant(f"{seed}/mntp/encoder", f"mntp {seed}") for seed in "ab"]
SIMCSE = [variant(f"{seed}/simcse/encoder", f"mntp {seed}", f"simcse {seed}") for seed in "ab"]


def test_stages_by_their_runs_folders() -> None:
    assert stages_of([variant("base"), *MNTP, *SIMCSE]) == ["uni", "mntp", "mntp", "simcse", "simcse"]
    crossed = [variant("a/simcse/encoder", "x 1", "simcse a"), variant("b/simcse/encoder", "x 2", "simcse b")]
    assert stages_of([*MNTP, *crossed])[2:] == ["simcse"] * 2, "upon encoders that are not compared"


def test_trainings_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--seeds needs as many encoders of each stage.* got mntp 2, simcse 1"):
        stages_of([*MNTP, SIMCSE[0]])
    with pytest.raises(ValueError, match=r"seed1 holds mntp and simcse\. Name them SEED/STAGE/encoder"):
        stages_of([replace(v, model=f"{v.card.stage}/seed1") for v in (MNTP[0], SIMCSE[0])])
    with pytest.raises(ValueError, match=r"same order of seeds; b/simcse/encoder was trained upon b/mntp/encoder"):
        stages_of([*MNTP, *SIMCSE[::-1]])
