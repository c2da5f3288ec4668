from pathlib import Path

import numpy as np
import pytest
import torch
from probing_data import word_vectors

from otherside.batching import Packed, Tokens
from otherside.encoder import Encoder
from otherside.probing.features import Store
from otherside.probing.tasks import Mention, word_spans
from otherside.words import layer_vectors, tokens_of

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
    alone = [word_vectors(encoder, [text], [spans])[0] for text, spans in zip(TEXTS, SPANS, strict=True)]
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
    with pytest.raises(ValueError, match="layers must lie in 0 … 2"):
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
    with pytest.raises(ValueError, match="1 to 1 are not, of the 3 of 'a b'"):
        tokens_of("a b", (1, 1), [(0, 1), (1, 3)])
    with pytest.raises(ValueError, match=r"every word needs a token; ' ' \(characters 1–2\) of 'a b' has none"):
        tokens_of("a b", (1, 2), [(0, 1), (2, 3)])


def test_the_limit_is_the_models_not_the_encoders(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama, max_length=4)
    assert len(word_vectors(encoder, TEXTS[:1], SPANS[:1])[0]) == 5
    with pytest.raises(ValueError, match=r"model's 512 positions.*has 60\d tokens"):
        word_vectors(encoder, ["東" * 200], [[(0, 1)]])


def test_all_layers_in_one_pass(encoder: Encoder) -> None:
    found = dict(layer_vectors(encoder, TEXTS, SPANS, [0, 2]))
    for place, layer in enumerate([0, 2]):
        for i, vectors in enumerate(word_vectors(encoder, TEXTS, SPANS, layer=layer)):
            np.testing.assert_array_equal(found[i][:, place], vectors)


def test_offsets_with_or_without_the_leading_space() -> None:
    text, second = "the nun saw", (4, 7)
    assert tokens_of(text, second, [(0, 0), (0, 3), (3, 7), (7, 11)]) == [2]  # the space is the token's
    assert tokens_of(text, second, [(0, 0), (0, 3), (4, 6), (6, 7), (8, 11)]) == [2, 3]  # trimmed, two pieces
    assert tokens_of(text, second, [(0, 3), (4, 9), (9, 11)]) == [1]  # reaches into the next word


MENTIONS = [Mention("the cat sat", 8, 11), Mention("a dog", 2, 5), Mention("the cat sat", 4, 7)]


def store(folder: Path, encoder: Encoder, opened: list[Encoder], **settings: object) -> Store:
    def open_it() -> Encoder:
        opened.append(encoder)
        return encoder

    return Store(folder, {"weights": "a", **settings}, open_it)


def test_vectors_are_kept_and_taken_once(tiny_llama: Path, tmp_path: Path) -> None:
    encoder, opened = Encoder.load(tiny_llama), []
    kept = store(tmp_path, encoder, opened)
    first = kept.vectors(MENTIONS, [1, 2])
    for i, (text, *span) in enumerate(MENTIONS):
        [expected] = word_vectors(encoder, [text], [[tuple(span)]])
        np.testing.assert_allclose(first[2][i], expected[0], rtol=1e-4, atol=1e-5)
    again = kept.vectors(MENTIONS, [2, 1])
    assert len(opened) == 1
    for layer in (1, 2):
        np.testing.assert_array_equal(first[layer], again[layer])
    assert not np.array_equal(first[1], first[2])


def test_kept_vectors_belong_to_weights_layer_and_words(tiny_llama: Path, tmp_path: Path) -> None:
    encoder, opened = Encoder.load(tiny_llama), []
    kept = store(tmp_path, encoder, opened)
    kept.vectors(MENTIONS, [2])
    kept.vectors(MENTIONS[:2], [2])
    kept.vectors([*MENTIONS[:2], Mention("the cat sat", 0, 3)], [2])
    kept.vectors(MENTIONS, [1])
    store(tmp_path, encoder, opened, weights="b").vectors(MENTIONS, [2])
    assert len(opened) == 5 == len(list(tmp_path.iterdir()))
    next(tmp_path.iterdir()).unlink()
    kept.vectors(MENTIONS, [1, 2])
    assert len(opened) <= 6
