"""Vectors of words inside texts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from otherside.encoder import Encoder
from otherside.words import _mixed, layer_vectors, span_of

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


def test_whole_words_only() -> None:
    assert span_of("A bobcat and a cat.", "cat") == (15, 18)
    assert span_of("आज हमें और हम", "हम") == (11, 13), "vowel signs belong to the word"
    with pytest.raises(ValueError, match="0 times"):
        span_of("cafe\u0301 noir", "cafe")


@pytest.mark.parametrize("span", [(-2, 3), (5, 5), (4, 700)])
def test_spans_lie_inside_their_text(span: tuple[int, int], tiny_llama_bos: Path) -> None:
    with pytest.raises(ValueError, match=rf"{span[0]} to {span[1]} are not, of the 26 of"):
        Encoder.load(tiny_llama_bos).word_vectors(TEXTS[:1], [[span]])


def test_a_chunk_says_nothing_of_lengths() -> None:
    """A word's rounding would tell a probe the length of its sentence."""
    lengths = torch.arange(1, 401)
    chunks = list(_mixed(lengths, 2000))
    assert torch.equal(torch.cat(chunks).sort().values, torch.arange(400)) and len(chunks) > 30
    assert max(int(lengths[chunk].sum()) for chunk in chunks) <= 2000 + 400
    places = torch.cat([torch.full((len(chunk),), i) for i, chunk in enumerate(chunks)])
    assert abs(np.corrcoef(places, lengths[torch.cat(chunks)])[0, 1]) < 0.2
    assert [len(chunk) for chunk in _mixed(torch.tensor([9000]), 2000)] == [1]


def test_nothing_asked_for(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama).train()
    assert encoder.word_vectors([], []) == []
    assert [v.shape for v in encoder.word_vectors(TEXTS, [[], []])] == [(0, 64)] * 2
    assert [v.shape for v in encoder.word_vectors(TEXTS, [["bank"], []])] == [(1, 64), (0, 64)]
    many = [f"{TEXTS[0]} {TEXTS[0]}"] * 200  # longer, so that chunks hold no word that is asked for
    assert encoder.word_vectors([*many, TEXTS[0]], [*([[]] * 200), ["bank"]])[-1].shape == (1, 64)
    assert encoder.training, "left as it was"
    with pytest.raises(TypeError, match="a list of words for each text"):
        encoder.word_vectors(TEXTS[:1], ["bank"])
    with pytest.raises(ValueError, match="one layer or more"):
        encoder.word_vectors(TEXTS[:1], [["bank"]], layers=[])
