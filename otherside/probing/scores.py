"""A measured number and how far it would move with other test items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """A mean and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    values: np.ndarray, groups: np.ndarray | None = None, strata: np.ndarray | None = None, seed: int = 0
) -> Score:
    """Mean of `values` (N,) and its 95 % percentile interval.

    Args:
        values: one per test item.
        groups: (N,) items of one group depend on each other and are drawn together; None: each item is a group.
        strata: (N,) draws are made inside each stratum, whose share a balanced design has fixed; None: one stratum.
        seed: of the draws.
    """
    groups = np.arange(len(values)) if groups is None else groups
    strata = np.zeros(len(values)) if strata is None else strata
    rng = np.random.default_rng(seed)
    sums, counts = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for stratum in np.unique(strata):
        chosen = strata == stratum
        _, owner = np.unique(groups[chosen], return_inverse=True)
        sum_of, count_of = np.bincount(owner, values[chosen].astype(float)), np.bincount(owner)
        draws = rng.integers(len(count_of), size=(RESAMPLES, len(count_of)))
        drawn = count_of[draws].sum(1)
        share = chosen.sum()
        sums += share * sum_of[draws].sum(1) / drawn
        counts += share
    low, high = np.percentile(sums / counts, [2.5, 97.5])
    return Score(float(values.mean()), float(low), float(high))
