"""Linear probes: what can be read from a word's vector by a straight line."""

from __future__ import annotations

import numpy as np

from otherside.probing.scores import Score, bootstrap
from otherside.probing.templates import LENGTH, Sentences


def linear_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Labels (N,) that a logistic regression on standardised features predicts for `test` (N, D).

    Args:
        train: (M, D) vectors.
        labels: (M,) of two classes.
        test: (N, D) vectors.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean, spread = train.mean(0), train.std(0)
    # A feature that hardly moves holds rounding noise; dividing by its spread would blow it up to a signal.
    spread[spread < 1e-3 * np.abs(train).mean()] = np.inf
    with threadpool_limits(1):  # so small a problem takes 0.05 s on one thread, and seconds on threads that wait
        probe = LogisticRegression(max_iter=1000).fit((train - mean) / spread, labels)
        return probe.predict((test - mean) / spread)


def accuracy_by_word(
    task: str, train: Sentences, train_vectors: np.ndarray, test: Sentences, test_vectors: np.ndarray
) -> list[Score]:
    """A probe's accuracy on each of the five words; chance is 0.5.

    The interval resamples the test nouns asked about, because sentences with the same noun succeed or fail together.

    Args:
        task: of `templates.TASKS`.
        train: M sentences.
        train_vectors: (M, 5, D).
        test: N sentences, with other nouns and verbs.
        test_vectors: (N, 5, D).
    """
    scores = []
    for word in range(LENGTH):
        predicted = linear_probe(train_vectors[:, word], train.labels[task], test_vectors[:, word])
        right = predicted == test.labels[task]
        scores.append(bootstrap(right, groups=test.nouns[task], strata=test.labels[task]))
    return scores
