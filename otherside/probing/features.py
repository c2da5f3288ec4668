"""Vectors of words inside sentences.

Shapes: N sentences, W words of one sentence, T tokens of a batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from otherside.batching import Packed, Tokens
from otherside.encoder import Encoder

Span = tuple[int, int]


@torch.no_grad()
def word_vectors(
    encoder: Encoder,
    sentences: Sequence[str],
    words: Sequence[Sequence[Span]],
    *,
    layer: int | None = None,
    batch_size: int = 128,
    progress: tqdm | None = None,
) -> list[np.ndarray]:
    """Per sentence (W, D) float32: each word's vector, the mean of its tokens' vectors.

    Sentences are tokenised as they stand and words found by character offsets: tokenised word by word they would lose
    their leading spaces, and with them the vectors that the model knows.

    Sentences run in the order given, not sorted by length, so that rounding, which depends on what else is in a
    batch, cannot tell a sentence's length to a probe.

    Args:
        encoder: its pooling plays no part.
        sentences: N sentences.
        words: per sentence, first and last + 1 character of each word.
        layer: 0 (embeddings) to `encoder.backbone.layers`; None is the last.
        batch_size: sentences at once.
        progress: advanced by one per sentence.

    Raises:
        ValueError: a word has no token, or there is no such layer.
    """
    if layer is not None and not 0 <= layer <= encoder.backbone.layers:
        raise ValueError(f"layer must lie in 0 … {encoder.backbone.layers}, the model's last; got {layer}")
    training = encoder.training
    encoder.eval()
    vectors: list[np.ndarray] = []
    try:
        for first in range(0, len(sentences), batch_size):
            part = slice(first, first + batch_size)
            vectors += _one_batch(encoder, sentences[part], words[part], layer)
            if progress is not None:
                progress.update(len(sentences[part]))
    finally:
        encoder.train(training)
    return vectors


def _one_batch(
    encoder: Encoder, sentences: Sequence[str], words: Sequence[Sequence[Span]], layer: int | None
) -> list[np.ndarray]:
    encoded = encoder.tokenizer(
        list(sentences),
        truncation=True,
        max_length=encoder.max_length,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    rows, start = [], 0
    total = sum(len(ids) for ids in encoded["input_ids"])
    for text, offsets, spans in zip(sentences, encoded["offset_mapping"], words, strict=True):
        for span in spans:
            row = torch.zeros(total)
            row[[start + i for i in tokens_of(text, span, offsets)]] = 1
            rows.append(row / row.sum())
        start += len(offsets)
    packed = Packed.from_tokens([Tokens(ids) for ids in encoded["input_ids"]]).to(encoder.device)
    backbone = encoder.backbone
    hidden_TD: Tensor = backbone(packed) if layer is None else backbone.hidden_states(packed)[layer]
    vectors_WD = torch.stack(rows).to(hidden_TD.device) @ hidden_TD.float()
    return [part.numpy() for part in vectors_WD.cpu().split([len(spans) for spans in words])]


def tokens_of(text: str, word: Span, offsets: Sequence[Span]) -> list[int]:
    """Which tokens overlap the characters of `word`; one that also carries the space before it belongs to the word.

    Raises:
        ValueError: none does.
    """
    tokens = [i for i, (start, end) in enumerate(offsets) if start < word[1] and end > word[0]]
    if not tokens:
        raise ValueError(
            f"every word needs a token; {text[slice(*word)]!r} (characters {word[0]}–{word[1]}) of {text[:80]!r} has "
            "none. Either the sentence is longer than the encoder's max_length, or the word is empty."
        )
    return tokens
