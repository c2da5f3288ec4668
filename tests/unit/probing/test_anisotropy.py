from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from probing_data import word_vectors

from otherside.encoder import Encoder
from otherside.probing.anisotropy import INSIDE, RANDOM, anisotropy, mean_cosine, sample
from otherside.probing.tasks import Mention, word_spans

TEXTS = ["the cat sat on the mat .", "a dog barked", "snow fell all night", "Rain ."]
WORDS = [Mention(TEXTS[0], 4, 7), Mention(TEXTS[1], 2, 5), Mention(TEXTS[2], 0, 4), Mention(TEXTS[3], 0, 4)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_known_answers() -> None:
    same, opposite = np.ones((3, 1, 4)) / 2, np.array([[[1.0, 0]], [[-1.0, 0]]])
    assert mean_cosine(same) == pytest.approx(1)
    assert mean_cosine(opposite) == pytest.approx(-1)
    assert np.isnan(mean_cosine(same[:1])).all()


def test_against_the_definition(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama)
    rows = {(row.input, row.layer): row.score for row in anisotropy(encoder, WORDS, [0, 2])}
    assert set(rows) == {(name, layer) for name in (RANDOM, INSIDE) for layer in (0, 2)}
    for layer in (0, 2):
        inside = []
        for text in TEXTS[:3]:  # the last has one word, and no pair
            spans = [span for span in word_spans(text) if text[slice(*span)] != "."]
            [vectors] = word_vectors(encoder, [text], [spans], layer=layer)
            inside.append(np.mean([cosine(a, b) for a, b in combinations(vectors, 2)]))
        assert rows[INSIDE, layer].value == pytest.approx(np.mean(inside), abs=1e-4)
        words = [word_vectors(encoder, [m.text], [[m[1:]]], layer=layer)[0][0] for m in WORDS]
        pairs = [cosine(a, b) for a, b in combinations(words, 2)]
        assert rows[RANDOM, layer].value == pytest.approx(np.mean(pairs), abs=0.05), "1,000 draws of six pairs"


def test_words_of_different_texts(tiny_llama: Path) -> None:
    many = [Mention(f"text {i // 2}", 0, 4) for i in range(40)]
    chosen = sample(many, 10)
    assert len({mention.text for mention in chosen}) == 10
    assert chosen == sample(many, 10)
    assert len(sample(many, 100)) == 20
    with pytest.raises(ValueError, match="at least two texts"):
        anisotropy(Encoder.load(tiny_llama), WORDS[:1], [0])
