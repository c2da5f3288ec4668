import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPClassifier

from otherside.probing.probes import Run, linear_probe, mlp_probes, standardised
from otherside.probing.tasks import Mlp

RNG = np.random.default_rng(0)
FAST = Mlp((8, 4), 16, 1e-2)
LABELS = RNG.integers(2, size=300)
VECTORS = (RNG.normal(size=(300, 16)) + 3 * np.outer(LABELS, np.arange(16) == 5)).astype(np.float32)
TRAIN, TEST = np.arange(200), np.arange(200, 300)


def test_linear_probe_reads_a_direction() -> None:
    predicted = linear_probe(VECTORS[TRAIN], LABELS[TRAIN], VECTORS[TEST])
    assert (predicted == LABELS[TEST]).mean() > 0.85


def test_linear_regression_with_more_features_than_items() -> None:
    """float32 made noise of it: the training ratings must be met exactly, and the test ratings about."""
    wide = np.concatenate([VECTORS, VECTORS @ RNG.normal(size=(16, 400))], axis=1).astype(np.float32)
    ratings = VECTORS[:, [5]].astype(float) + 1
    np.testing.assert_allclose(linear_probe(wide[TRAIN], ratings[TRAIN], wide[TRAIN]), ratings[TRAIN], atol=1e-4)
    np.testing.assert_allclose(linear_probe(wide[TRAIN], ratings[TRAIN], wide[TEST]), ratings[TEST], atol=1e-2)


def test_rounding_noise_is_no_signal() -> None:
    labels = np.arange(200) % 2 == 0
    vectors = np.full((200, 16), 2.0)
    vectors[:, 3] += 1e-3 * labels  # perfectly separable, if blown up; less than half a step of bfloat16
    predicted = linear_probe(vectors[:100], labels[:100], vectors[100:])
    assert len(set(predicted.tolist())) == 1


def test_one_number_is_a_measure_and_kept() -> None:
    cosines = 0.99 + 1e-4 * LABELS[:, None]  # what an anisotropic model gives
    assert (linear_probe(cosines[TRAIN], LABELS[TRAIN], cosines[TEST]) == LABELS[TEST]).all()
    assert np.isfinite(standardised(np.ones((4, 1)), np.ones((4, 1)))).all()


def test_mlp_reads_what_is_not_linear() -> None:
    signs = np.sign(RNG.normal(size=(600, 2)))
    labels = (signs[:, 0] == signs[:, 1]).astype(int)
    run = Run(signs.astype(np.float32), labels, np.arange(400), np.arange(400, 600), 42)
    [predicted] = mlp_probes([run], FAST, epochs=40)
    assert (predicted == labels[400:]).mean() > 0.95
    assert (linear_probe(signs[:400], labels[:400], signs[400:]) == labels[400:]).mean() < 0.7


def test_mlp_predicts_ratings() -> None:
    ratings = np.stack([VECTORS[:, 5] ** 2, VECTORS[:, 5]], axis=1).astype(float)
    [predicted] = mlp_probes([Run(VECTORS, ratings, TRAIN, TEST, 42)], FAST, epochs=60)
    assert predicted.shape == (100, 2)
    assert np.corrcoef(predicted[:, 0], ratings[TEST][:, 0])[0, 1] > 0.8
    assert np.corrcoef(predicted[:, 1], ratings[TEST][:, 1])[0, 1] > 0.9


def test_probes_trained_side_by_side_are_as_alone() -> None:
    others = VECTORS[:, ::-1].copy()
    runs = [Run(x, LABELS, t, TEST, seed) for x, t, seed in ((VECTORS, TRAIN, 1), (others, TRAIN[::-1].copy(), 2))]
    alone = [mlp_probes([run], FAST, epochs=3)[0] for run in runs]
    for one, many in zip(alone, mlp_probes([*runs, runs[0]], FAST, epochs=3), strict=False):
        np.testing.assert_array_equal(one, many)
    assert (alone[0] != mlp_probes([Run(VECTORS, LABELS, TRAIN, TEST, 9)], FAST, epochs=3)[0]).any(), "seed"


def test_mlp_is_as_good_as_scikit_learns() -> None:
    [ours] = mlp_probes([Run(VECTORS, LABELS, TRAIN, TEST, 42)], FAST, epochs=20)
    x, z = standardised(VECTORS[TRAIN], VECTORS[TRAIN]), standardised(VECTORS[TRAIN], VECTORS[TEST])
    theirs = MLPClassifier(FAST.hidden, batch_size=16, learning_rate_init=1e-2, max_iter=20, alpha=0, random_state=0)
    with pytest.warns(UserWarning, match="converged"):
        accuracy = (theirs.fit(x, LABELS[TRAIN]).predict(z) == LABELS[TEST]).mean()
    assert (ours == LABELS[TEST]).mean() == pytest.approx(accuracy, abs=0.06)


def test_training_draws_nothing_from_torchs_generator() -> None:
    before = torch.get_rng_state()
    mlp_probes([Run(VECTORS, LABELS, TRAIN, TEST, 42)], FAST, epochs=1)
    assert torch.equal(before, torch.get_rng_state())
