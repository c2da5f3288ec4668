from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error, r2_score

from otherside.probing.scores import Score, bootstrap, common, count, regression, resample, score

RNG = np.random.default_rng(0)


def resampled(values: np.ndarray, groups: np.ndarray, strata: np.ndarray | None = None) -> Score:
    draws = resample(count(len(values), groups, strata), strata)
    return Score.of(values.mean(), values.astype(float)[draws].mean(1))


def test_interval_of_independent_items_is_the_binomial_one() -> None:
    found = bootstrap(np.arange(400) < 320)
    assert found.value == 0.8
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 400), rel=0.1)


def test_items_of_one_group_count_as_one() -> None:
    values = np.repeat(RNG.random(40) < 0.8, 10)  # forty nouns, ten sentences each, all right or all wrong
    alone, together = bootstrap(values), resampled(values, np.repeat(np.arange(40), 10))
    assert (together.high - together.low) > 2.5 * (alone.high - alone.low)


def test_a_balanced_design_stays_balanced_in_resampling() -> None:
    labels = np.arange(400) % 2 == 0
    groups = np.arange(400) % 40
    constant = labels == 1  # a probe that always says "animate"
    found = resampled(constant, groups, labels)
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
    assert resampled(constant, groups).low < 0.4


def test_draws_are_as_large_as_the_test_set_and_hold_whole_groups() -> None:
    groups = np.repeat(np.arange(20), RNG.integers(1, 6, size=20))
    times = count(len(groups), groups)
    assert all((times[:, groups == g] == times[:, groups == g][:, :1]).all() for g in range(20))
    draws = resample(times)
    assert draws.shape == (1000, len(groups))
    assert abs(np.bincount(draws.ravel(), minlength=len(groups)) / 1000 - 1).max() < 0.25, "each item about once a draw"


def test_a_group_in_several_strata_is_drawn_whole() -> None:
    """A word whose sentences are of both classes; those of one class are drawn from their like."""
    kinds = np.repeat(["both", "first", "second"], 5)
    groups = np.repeat(np.arange(15), 2)
    classes = np.array([{"both": (0, 1), "first": (0, 0), "second": (1, 1)}[kind] for kind in kinds]).ravel()
    times = count(30, groups, classes)
    assert (times[:, ::2] == times[:, 1::2]).all()
    of_groups = times[:, ::2]
    for kind in np.unique(kinds):
        assert (of_groups[:, kinds == kind].sum(1) == 5).all() and of_groups[:, kinds == kind].std() > 0


@pytest.mark.parametrize(
    ("words", "senses"),
    [(20, lambda word, i: 2 * word + i % 2), (1, lambda _, i: i % 2), (7, lambda word, i: (i % 2, i % 3)[word > 2])],
    ids=["each its own", "one word", "few alike"],
)
def test_words_that_share_no_classes_have_intervals(words: int, senses: Callable[[int, int], int]) -> None:
    """Drawn among words of the very same classes alone, each would be in each draw."""
    groups = np.repeat(np.arange(words), 40)
    classes = np.array([senses(word, i) for word in range(words) for i in range(40)])
    right = RNG.random(len(groups)) < RNG.uniform(0.3, 0.9, words)[groups]
    found = resampled(right, groups, common(groups, classes))
    assert found.high - found.low > 0.05
    everywhere = np.tile([0, 1], len(groups) // 2)
    assert words < 5 or (common(groups, everywhere) == everywhere).all()


def test_a_draw_without_an_item_of_a_stratum_has_all_of_them() -> None:
    times = np.zeros((1000, 4), np.int32)
    times[:, :2] = 1
    assert (np.sort(resample(times, strata=np.array([0, 0, 1, 1])), axis=1) == [0, 1, 2, 3]).all()


def test_metrics_of_ratings_are_those_of_scikit_learn_and_scipy() -> None:
    wanted, found = RNG.normal(size=(50, 3)), RNG.normal(size=(50, 3))
    wanted[:5] = 1  # ties
    measured = regression(found + wanted, wanted)
    for i in range(3):
        p, t = found[:, i] + wanted[:, i], wanted[:, i]
        assert measured["mse"][i] == pytest.approx(mean_squared_error(t, p))
        assert measured["r2"][i] == pytest.approx(r2_score(t, p))
        assert measured["pearson"][i] == pytest.approx(pearsonr(t, p)[0])
        assert measured["spearman"][i] == pytest.approx(spearmanr(t, p)[0])


def test_a_constant_prediction_correlates_with_nothing() -> None:
    measured = regression(np.ones((20, 1)), RNG.normal(size=(20, 1)))
    assert measured["pearson"] == measured["spearman"] == 0


def test_nan_is_refused() -> None:
    """Correlations of constants are 0, and so would be those of NaN."""
    predicted = np.ones((20, 1))
    predicted[3] = np.nan
    with pytest.raises(ValueError, match=r"predictions must be numbers; got NaN in 1 of 20\. Try --dtype=float32"):
        regression(predicted, RNG.normal(size=(20, 1)))
    with pytest.raises(ValueError, match="a score and its interval must be numbers; got NaN in 3 of 3"):
        bootstrap(np.array([0.5, np.nan]))


def test_repeats_are_averaged_and_resampled() -> None:
    targets = np.arange(200) % 2
    draws = resample(count(200))
    good, bad = targets, 1 - targets
    found = score([good, bad], [targets, targets], [draws, draws])["accuracy"]
    assert found.value == 0.5
    assert (found.low, found.high) == (0, 1), "two repeats that disagree say little"
    alone = score([good], [targets], [draws])["accuracy"]
    assert (alone.low, alone.value, alone.high) == (1, 1, 1)


def test_differences_are_paired() -> None:
    values = RNG.random(100)
    better = bootstrap(values + 0.01).minus(bootstrap(values))
    assert better.value == pytest.approx(0.01)
    assert better.low == pytest.approx(0.01, abs=1e-6) and better.high == pytest.approx(0.01, abs=1e-6)
    assert Score(1, 0, 2) == Score(1, 0, 2, np.ones(3))
