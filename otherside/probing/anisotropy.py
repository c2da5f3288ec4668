"""Anisotropy: how much all word vectors point the same way, layer by layer (Figure 8 of the paper).

Shapes: N texts, W words of one text, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from otherside.encoder import Encoder
from otherside.probing.results import Row
from otherside.probing.scores import bootstrap
from otherside.probing.tasks import SEED, Mention, normalised, word_spans
from otherside.words import layer_vectors

PAIRS = 1000  # the paper's
TEXTS = 1000
RANDOM, INSIDE = "random words", "same sentence"


def sample(mentions: Sequence[Mention], size: int = TEXTS) -> list[Mention]:
    """At most `size` mentions in different texts, always the same."""
    different = list({mention.text: mention for mention in mentions}.values())
    chosen = np.random.default_rng(SEED).permutation(len(different))[:size]
    return [different[i] for i in chosen]


def anisotropy(
    encoder: Encoder, mentions: Sequence[Mention], layers: Sequence[int], progress: tqdm | None = None
) -> list[Row]:
    """Two rows a layer: the mean cosine of 1,000 random pairs of words from different texts, and, inside a text, of all
    pairs of its words, averaged over texts. The intervals resample pairs, and texts.

    Args:
        encoder: its pooling plays no part.
        mentions: N words in different texts.
        layers: numbers from 0 (embeddings) to the last.
        progress: advanced by one per text.

    Raises:
        ValueError: fewer than two texts.
    """
    if len(mentions) < 2:
        raise ValueError(f"anisotropy needs words of at least two texts; got {len(mentions)}")
    spans = [[mention[1:], *spans_of_words(mention.text)] for mention in mentions]
    words: list[np.ndarray] = [np.empty(0)] * len(mentions)
    inside: list[np.ndarray] = [np.empty(0)] * len(mentions)
    texts = [mention.text for mention in mentions]
    for i, vectors_WLD in layer_vectors(encoder, texts, spans, layers, progress=progress):
        unit_WLD = normalised(vectors_WLD)
        words[i], inside[i] = unit_WLD[0], mean_cosine(unit_WLD[1:])
    cosines = {RANDOM: pairs(words)}
    if several := [found for found in inside if not np.isnan(found).any()]:  # texts of several words
        cosines[INSIDE] = np.stack(several)
    return [
        Row("anisotropy", name, "", layer, "", "context", "cosine", bootstrap(found[:, place]))
        for place, layer in enumerate(layers)
        for name, found in cosines.items()
    ]


def from_vectors(mentions: Sequence[Mention], vectors: Mapping[Mention, np.ndarray]) -> dict[str, float]:
    """The two numbers of one layer from vectors (D,) at hand: of the mentions and of all words beside them."""
    words = [normalised(vectors[mention][None, None])[0] for mention in mentions]
    texts = [[vectors[Mention(m.text, *span)] for span in spans_of_words(m.text)] for m in mentions]
    inside = [mean_cosine(normalised(np.stack(text)[:, None])) for text in texts if len(text) > 1]
    return {RANDOM: float(pairs(words).mean()), INSIDE: float(np.mean(inside))}


def spans_of_words(text: str) -> list[tuple[int, int]]:
    """Words, without punctuation that stands alone."""
    return [span for span in word_spans(text) if any(map(str.isalnum, text[slice(*span)]))]


def pairs(words: Sequence[np.ndarray]) -> np.ndarray:
    """(P, L) cosines of random pairs of different ones of N (L, D) unit vectors."""
    rng = np.random.default_rng(SEED)
    first = rng.integers(len(words), size=PAIRS)
    second = (first + rng.integers(1, len(words), size=PAIRS)) % len(words)
    return np.stack([(words[a] * words[b]).sum(1) for a, b in zip(first, second, strict=True)])


def mean_cosine(unit_WLD: np.ndarray) -> np.ndarray:
    """(L,) mean cosine of all pairs of W unit vectors; NaN for fewer than two."""
    count = len(unit_WLD)
    if count < 2:
        return np.full(unit_WLD.shape[1], np.nan)
    return (np.square(unit_WLD.sum(0)).sum(1) - count) / (count * (count - 1))
