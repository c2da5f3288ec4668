import numpy as np
import pytest

from otherside.probing.probes import accuracy_by_word, linear_probe
from otherside.probing.scores import bootstrap
from otherside.probing.templates import TASKS, sentences

RNG = np.random.default_rng(0)


def test_probe_reads_a_direction() -> None:
    labels = RNG.random(300) < 0.5
    vectors = RNG.normal(size=(300, 16)) + 3 * np.outer(labels, np.arange(16) == 5)
    predicted = linear_probe(vectors[:200], labels[:200], vectors[200:])
    assert (predicted == labels[200:]).mean() > 0.85


def test_rounding_noise_is_no_signal() -> None:
    labels = np.arange(200) % 2 == 0
    vectors = np.full((200, 16), 2.0)
    vectors[:, 3] += 1e-6 * labels  # perfectly separable, if blown up
    predicted = linear_probe(vectors[:100], labels[:100], vectors[100:])
    assert len(set(predicted.tolist())) == 1


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_belongs_to_the_word(task: str) -> None:
    train, test = sentences(200, 80)
    vectors = [RNG.normal(size=(len(part.texts), 5, 8)) for part in (train, test)]
    for part, x in zip((train, test), vectors, strict=True):
        x[:, 3, 0] += 10 * part.labels[task]
    scores = accuracy_by_word(task, train, vectors[0], test, vectors[1])
    assert scores[3].value == 1
    assert all(0.3 < score.value < 0.7 for i, score in enumerate(scores) if i != 3)
    assert all(score.low <= score.value <= score.high for score in scores)


def test_interval_of_independent_items_is_the_binomial_one() -> None:
    score = bootstrap(np.arange(400) < 320)
    assert score.value == 0.8
    assert score.high - score.low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 400), rel=0.1)


def test_items_of_one_group_count_as_one() -> None:
    values = np.repeat(RNG.random(40) < 0.8, 10)  # forty nouns, ten sentences each, all right or all wrong
    alone, together = bootstrap(values), bootstrap(values, groups=np.repeat(np.arange(40), 10))
    assert (together.high - together.low) > 2.5 * (alone.high - alone.low)


def test_a_balanced_design_stays_balanced_in_resampling() -> None:
    labels = np.arange(400) % 2 == 0
    groups = np.arange(400) % 40
    constant = labels == 1  # a probe that always says "animate"
    score = bootstrap(constant, groups, strata=labels)
    assert (score.low, score.value, score.high) == (0.5, 0.5, 0.5)
    assert bootstrap(constant, groups).low < 0.4
