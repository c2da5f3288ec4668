"""Vectors of words inside texts."""

from pathlib import Path

import numpy as np
import pytest

from otherside.encoder import Encoder
from otherside.words import layer_vectors, span_of

TEXTS = ["The bank raised its rates.", "He sat on the bank of the river bank."]


def test_vectors_of_words_and_of_spans(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama)
    money, river = encoder.word_vectors(TEXTS, [["bank", "rates"], [(14, 18)]])
    assert money.shape == (2, 64) and river.shape == (1, 64) and money.dtype == np.float32
    assert np.abs(money[0] - river[0]).max() > 1e-3, "the same word, another context"
    expected = dict(layer_vectors(encoder, TEXTS, [[(4, 8), (20, 25)], [(14, 18)]], [0, 2]))
    assert np.array_equal(money, expected[0][:, 1])
    by_layer = encoder.word_vectors(TEXTS, [["bank"], [(14, 18)]], layers=[0, 2])
    assert by_layer[1].shape == (1, 2, 64) and np.array_equal(by_layer[1], expected[1])


def test_a_word_must_stand_in_its_text_once(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama)
    with pytest.raises(
        ValueError, match=r"once, as a whole word; 'bank' stands in 'He sat .* 2 times\. Give its first"
    ):
        encoder.word_vectors(TEXTS[1:], [["bank"]])
    with pytest.raises(ValueError, match="0 times"):
        span_of(TEXTS[0], "rate")
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        encoder.word_vectors(TEXTS[0], [["bank"]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        encoder.word_vectors(TEXTS, [["bank"]])
    assert span_of("A C++ text (in C).", "C++") == (2, 5)
