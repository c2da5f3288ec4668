import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from otherside.encoder import Encoder
from otherside.probing.similarity import read_rated, similarity


def test_spearman_of_cosines(tiny_llama: Path, sentences: list[str]) -> None:
    """Against the definition, and with a text in several pairs."""
    encoder = Encoder.load(tiny_llama)
    rated = [(one, other, float(i * 7 % 5)) for i, (one, other) in enumerate(pairwise(sentences))]
    rated += [(sentences[0], other, 2.0) for other in sentences[2:]]
    unit = {text: encoder.encode([text], normalize=True)[0] for text in sentences}
    cosines = [float(unit[one] @ unit[other]) for one, other, _ in rated]
    [row] = similarity(encoder, rated)
    assert (row.task, row.metric) == ("similarity", "spearman")
    assert row.score.value == pytest.approx(spearmanr(cosines, [rating for *_, rating in rated]).statistic, abs=1e-4)
    assert row.score.low < row.score.value < row.score.high


def test_a_rating_that_is_the_cosine_is_met(tiny_llama: Path, sentences: list[str]) -> None:
    encoder = Encoder.load(tiny_llama)
    vectors = encoder.encode(sentences, normalize=True)
    rated = [(one, sentences[0], float(v @ vectors[0])) for one, v in zip(sentences[1:], vectors[1:], strict=True)]
    assert similarity(encoder, rated)[0].score.value == pytest.approx(1)
    assert similarity(encoder, [(a, b, -score) for a, b, score in rated])[0].score.value == pytest.approx(-1)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "rated.jsonl"
    rows = [{"sentence1": "a", "sentence2": "b", "score": score, "more": 1} for score in (0, 2.5)]
    file.write_text("\n\n".join(map(json.dumps, rows)))
    assert read_rated(file) == [("a", "b", 0.0), ("a", "b", 2.5)]
    with pytest.raises(FileNotFoundError, match="--similarity must be a JSONL file"):
        read_rated(tmp_path / "none")
    for broken in (
        "no json",
        '{"sentence1": "a"}',
        '{"sentence1": "a", "sentence2": " ", "score": 1}',
        '{"sentence1": "a", "sentence2": "b", "score": "high"}',
    ):
        file.write_text(f"{json.dumps(rows[0])}\n{broken}\n")
        with pytest.raises(ValueError, match="line 2, is"):
            read_rated(file)
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="two different scores"):
        read_rated(file)


def test_vectors_that_are_all_the_same_score_nothing(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama)
    assert np.isfinite(similarity(encoder, [("Rain.", "Rain.", 1.0), ("Rain.", "Rain.", 0.0)])[0].score.value)
