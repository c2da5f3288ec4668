from pathlib import Path

import numpy as np
import pytest
import torch

from otherside.batching import Packed, Tokens
from otherside.encoder import Encoder
from otherside.probing.features import tokens_of, word_vectors
from otherside.probing.templates import word_spans

TEXTS = ["the horse lectured the sound", "the naïve Zoë met 東京 today", "the cat sat"]
SPANS = [word_spans(text) for text in TEXTS]


@pytest.fixture(params=["tiny_llama", "tiny_llama_bos"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return Encoder.load(request.getfixturevalue(request.param))


def by_hand(encoder: Encoder, text: str) -> np.ndarray:
    """Word vectors without offsets: read off the tokens where words begin."""
    ids = encoder.tokenizer(text)["input_ids"]
    with torch.no_grad():
        hidden = encoder.backbone(Packed.from_tokens([Tokens(ids)]))
    groups: list[list[int]] = []
    for i, token in enumerate(encoder.tokenizer.convert_ids_to_tokens(ids)):
        if token == "<s>":
            continue
        if token.startswith("Ġ") or not groups:  # how byte-level BPE writes a leading space
            groups.append([])
        if token != "Ġ":  # a space that is a token of its own is no part of the word
            groups[-1].append(i)
    return np.stack([hidden[group].mean(0).numpy() for group in groups])


def test_word_is_the_mean_of_its_tokens(encoder: Encoder) -> None:
    for text, vectors in zip(TEXTS, word_vectors(encoder, TEXTS, SPANS), strict=True):
        expected = by_hand(encoder, text)
        assert vectors.shape == (len(text.split()), encoder.backbone.hidden_size)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_batches_do_not_matter(encoder: Encoder) -> None:
    alone = word_vectors(encoder, TEXTS, SPANS, batch_size=1)
    for one, many in zip(alone, word_vectors(encoder, TEXTS, SPANS), strict=True):
        np.testing.assert_allclose(one, many, rtol=0, atol=1e-5 * np.abs(one).max())


def test_layers(encoder: Encoder) -> None:
    text = "on the cat on the mat"
    [embedded] = word_vectors(encoder, [text], [word_spans(text)], layer=0)
    np.testing.assert_array_equal(embedded[1], embedded[4])
    assert np.abs(embedded[0] - embedded[3]).max() > 0, "the second carries its leading space"
    last = word_vectors(encoder, TEXTS, SPANS, layer=encoder.backbone.layers)
    for one, other in zip(last, word_vectors(encoder, TEXTS, SPANS), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="layer must lie in 0 … 2"):
        word_vectors(encoder, TEXTS, SPANS, layer=3)


def test_right_context_reaches_the_first_word_only_if_bidirectional(tiny_llama: Path) -> None:
    texts = ["the cat sat", "the dog sat"]
    spans = [word_spans(text) for text in texts]
    for attention, moves in (("causal", False), ("bidirectional", True)):
        encoder = Encoder.load(tiny_llama, attention=attention)  # type: ignore[arg-type]
        one, other = (vectors[0] for vectors in word_vectors(encoder, texts, spans))
        assert (np.abs(one - other).max() > 1e-3) == moves


def test_mode_is_restored(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama).train()
    [vectors] = word_vectors(encoder, TEXTS[:1], SPANS[:1])
    assert encoder.training
    assert isinstance(vectors, np.ndarray)


def test_word_without_a_token(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama, max_length=4)
    with pytest.raises(ValueError, match=r"'lectured' .* max_length"):
        word_vectors(encoder, TEXTS[:1], SPANS[:1])
    with pytest.raises(ValueError, match="the word is empty"):
        tokens_of("a b", (1, 1), [(0, 1), (1, 3)])


def test_offsets_with_or_without_the_leading_space() -> None:
    text, second = "the nun saw", (4, 7)
    assert tokens_of(text, second, [(0, 0), (0, 3), (3, 7), (7, 11)]) == [2]  # the space is the token's
    assert tokens_of(text, second, [(0, 0), (0, 3), (4, 6), (6, 7), (8, 11)]) == [2, 3]  # trimmed, two pieces
    assert tokens_of(text, second, [(0, 3), (4, 9), (9, 11)]) == [1]  # reaches into the next word
