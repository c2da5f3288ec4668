"""Measured numbers, and how far they would move with other test items and other seeds.

Shapes: n test items of one repeat, B draws, R repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

DRAWS = 1000
FEW = 5  # groups; fewer say nothing of others


@dataclass(frozen=True)
class Score:
    """A number and its 95 % bootstrap interval.

    Args:
        value: measured; the mean over repeats.
        low: of the interval.
        high: of the interval.
        draws: (B,) the number in each draw of the bootstrap. Two scores on the same items share their draws, so the
            interval of their difference is that of the draws' difference.
    """

    value: float
    low: float
    high: float
    draws: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False, repr=False)

    @classmethod
    def of(cls, value: float, draws: np.ndarray, comparisons: int = 1) -> Score:
        """With the percentile interval of its draws.

        Args:
            value: measured.
            draws: (B,).
            comparisons: of several scores, how many. With a probability of 95 % the intervals of all hold what they
                should (Bonferroni).

        Raises:
            ValueError: it is no number.
        """
        tail = 2.5 / comparisons
        low, high = np.percentile(draws, [tail, 100 - tail])
        check_numbers("a score and its interval", np.array([value, low, high]))
        return cls(float(value), float(low), float(high), draws.astype(np.float32))

    def minus(self, other: Score) -> Score:
        """The paired difference; `other` was measured on the same items."""
        return Score.of(self.value - other.value, self.draws - other.draws)


def check_numbers(what: str, values: np.ndarray) -> None:
    """Raises ValueError where one is NaN: ranks, argmax and correlations would make a score of it all the same."""
    if wrong := int(np.isnan(values).sum()):
        raise ValueError(
            f"{what} must be numbers; got NaN in {wrong:,} of {values.size:,}. Try --dtype=float32, and look for a "
            "loss of NaN in the training of this encoder."
        )


def bootstrap(values: np.ndarray) -> Score:
    """Mean of `values` (n,) and its interval, for items that do not depend on each other."""
    return Score.of(values.mean(), values.astype(float)[resample(count(len(values)))].mean(1))


def count(n: int, groups: np.ndarray | None = None, strata: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """(B, n) how often each draw has each item, before `resample` brings it to size.

    Args:
        n: number of items.
        groups: (n,) items of one group depend on each other and are drawn together; None: each item is a group. Items
            of a single group are drawn one by one.
        strata: (n,) as many groups are drawn as there are in each stratum, and of those in several strata, in each set
            of these; all sets that few groups have are one. None: one stratum.
        seed: of the draws.
    """
    groups = np.arange(n) if groups is None else groups
    strata = np.zeros(n) if strata is None else strata
    rng = np.random.default_rng(seed)
    owner = np.unique(groups, return_inverse=True)[1]
    owner = owner if owner.any() else np.arange(n)
    inside: dict[int, set[float]] = {}
    for group, stratum in zip(owner.tolist(), strata.tolist(), strict=True):
        inside.setdefault(group, set()).add(stratum)
    alike: dict[tuple[float, ...], list[int]] = {}
    for group in sorted(inside):
        alike.setdefault(tuple(sorted(inside[group])), []).append(group)
    sets = [members for _, members in sorted(alike.items())]
    rare = sorted(group for members in sets if len(members) < FEW for group in members)
    times = np.empty((DRAWS, len(inside)), np.int32)
    for members in filter(None, [*(members for members in sets if len(members) >= FEW), rare]):
        times[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=DRAWS)
    return times[:, owner]


def resample(times: np.ndarray, strata: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """(B, n) item numbers, each draw as large as the test set.

    Args:
        times: (B, n) how often each draw has each item.
        strata: (n,) each stratum keeps its share of the items, as a test of fixed proportions has; None: one stratum.
        seed: of the order in which a draw that came out too long is cut, and one too short begins again.
    """
    strata = np.zeros(times.shape[1]) if strata is None else strata
    rng = np.random.default_rng(seed)
    parts = []
    for stratum in np.unique(strata):
        items = np.flatnonzero(strata == stratum)
        drawn = times[:, items]
        drawn = np.where(drawn.any(1, keepdims=True), drawn, 1)  # a draw without any of them has all
        parts.append(np.stack([np.resize(rng.permutation(np.repeat(items, each)), len(items)) for each in drawn]))
    return np.concatenate(parts, axis=1)


def common(groups: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n,) strata of items: their classes, those that few groups have as one. Draws need not keep the senses of one
    word apart from those of another.
    """
    owner = np.unique(groups, return_inverse=True)[1]
    known, counts = np.unique(np.unique(np.stack([classes, owner]), axis=1)[0], return_counts=True)
    return np.where(np.isin(classes, known[counts < FEW]), -1, classes)


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Share of right answers; (n, B) classes each -> (B,)."""
    return {"accuracy": (predicted == targets).mean(0)}


def regression(predicted: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Mean squared error, R², Pearson's and Spearman's correlation; (n, B) ratings each -> (B,).

    A prediction that is the same for all items correlates with nothing: 0.

    Raises:
        ValueError: a prediction is NaN.
    """
    import warnings

    import torch
    from scipy.stats import rankdata
    from torchmetrics import functional as metrics

    check_numbers("predictions", predicted)
    found, wanted = torch.tensor(predicted, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    ranks = [torch.tensor(rankdata(values, axis=0)) for values in (predicted, targets)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The variance of predictions or target is close to zero")
        correlations = [metrics.pearson_corrcoef(*both) for both in ((found, wanted), ranks)]
    measured = {
        "mse": metrics.mean_squared_error(found, wanted, num_outputs=found.shape[1]),
        "r2": metrics.r2_score(found, wanted, multioutput="raw_values"),
        "pearson": correlations[0],
        "spearman": correlations[1],  # of ranks, by definition; torchmetrics' own takes a loop over draws
    }
    return {name: np.nan_to_num(np.atleast_1d(values.numpy())) for name, values in measured.items()}


def score(
    predicted: Sequence[np.ndarray], targets: Sequence[np.ndarray], draws: Sequence[np.ndarray], seed: int = 0
) -> dict[str, Score]:
    """Each metric's mean over R repeats; its interval resamples words and repeats.

    Args:
        predicted: per repeat (n,) classes or ratings.
        targets: per repeat (n,).
        draws: per repeat (B, n), see `resample`; a draw has the same words in all repeats.
        seed: of the resampling of repeats.
    """
    measure = accuracy if np.issubdtype(targets[0].dtype, np.integer) else regression
    values = [measure(p[:, None], t[:, None]) for p, t in zip(predicted, targets, strict=True)]
    drawn = [measure(p[d].T, t[d].T) for p, t, d in zip(predicted, targets, draws, strict=True)]
    repeats = np.random.default_rng(seed).integers(len(values), size=(len(values), DRAWS))
    found = {}
    for name in values[0]:
        by_repeat = np.stack([part[name] for part in drawn])
        mean = np.take_along_axis(by_repeat, repeats, axis=0).mean(0)
        found[name] = Score.of(np.mean([part[name] for part in values]), mean)
    return found
