"""Several trainings of one stage as one variant."""

import numpy as np
import pytest

from otherside.probing.results import Result, Row
from otherside.probing.scores import DRAWS, Score
from otherside.probing.seeds import over_seeds


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
    assert wide.high - wide.low == pytest.approx(4 * 0.1 * np.sqrt(2 / 3 / 3), rel=0.2)


def test_differences_are_paired_by_seed() -> None:
    """Every supervised training is .05 better than the mntp training that it was built on."""
    chain = [result(f"{s} {i}", 0.1 * i + gain) for s, gain in (("mntp", 0.5), ("supervised", 0.55)) for i in range(3)]
    found = over_seeds([result("uni", 0.4), *chain], ["uni", *["mntp"] * 3, *["supervised"] * 3])
    assert [r.name for r in found] == ["uni", "mntp", "supervised"]
    difference = only(found, "supervised").minus(only(found, "mntp"))
    assert (difference.low, difference.high) == (pytest.approx(0.05, abs=1e-6), pytest.approx(0.05, abs=1e-6))
    assert only(found, "uni").value == 0.4


def test_stages_with_different_numbers_are_refused() -> None:
    results = [result("a", 1), result("b", 1), result("c", 1), result("d", 1), result("e", 1)]
    with pytest.raises(ValueError, match=r"--seeds needs as many encoders of each stage.* got mntp 2, simcse 3"):
        over_seeds(results, ["mntp", "mntp", "simcse", "simcse", "simcse"])


def test_what_only_some_trainings_have_is_their_mean() -> None:
    found = over_seeds([result("a", 0.2), result("b", 0.4, task="telicity")], ["mntp", "mntp"])
    assert {row.task: row.score.value for row in found[0].rows} == {"wic": 0.2, "telicity": 0.4}
