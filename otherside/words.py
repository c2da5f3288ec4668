"""Vectors of words inside texts.

Shapes: N texts, W words of one text, T tokens of a batch, L layers asked for, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import regex
import torch
from torch import Tensor
from tqdm import tqdm

from otherside.backbone import Backbone
from otherside.batching import Packed, Tokens, tokens_at_once
from otherside.modes import evaluating
from otherside.tokenising import check_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
TOKENS_AT_ONCE = 4096  # at most: the states of all layers may be asked for


class Reads(Protocol):
    """What of an `Encoder` plays a part."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase


def span_of(text: str, word: str) -> Span:
    """First and last + 1 character of `word` in `text`.

    Raises:
        ValueError: it does not stand there exactly once as a whole word.
    """
    # Of regex a word's letters include marks, as Hindi writes vowels
    found = [match.span() for match in regex.finditer(rf"(?<!\w){regex.escape(word)}(?!\w)", text)]
    if len(found) != 1 or not word:
        raise ValueError(
            f"a word must stand in its text once, as a whole word; {word!r} stands in {text[:80]!r} {len(found)} "
            "times. Give its first and its last + 1 character."
        )
    return found[0]


@torch.no_grad()
def layer_vectors(
    encoder: Reads,
    texts: Sequence[str],
    words: Sequence[Sequence[Span]],
    layers: Sequence[int],
    *,
    progress: tqdm | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each text, in any order, and (W, L, D) float32: its words' vectors, the means of their tokens' vectors.

    Texts are tokenised as they stand and words found by character offsets: tokenised word by word they would lose
    their leading spaces, and with them the vectors that the model knows. Texts are packed, sorted by length.

    Args:
        encoder: its pooling and `max_length` play no part; what the model itself can read is the limit.
        texts: N texts.
        words: per text, first and last + 1 character of each word.
        layers: numbers from 0 (embeddings) to `backbone.layers`.
        progress: advanced by one per text.

    Raises:
        ValueError: a word has no token, a text is too long for the model, or there is no such layer.
    """
    backbone = encoder.backbone
    last = backbone.layers
    if wrong := [layer for layer in layers if not 0 <= layer <= last]:
        raise ValueError(f"layers must lie in 0 … {last}, the model's last; got {', '.join(map(str, wrong))}")
    if not layers:
        raise ValueError("layers must name one layer or more; got none")
    if not any(words):
        nothing = np.zeros((0, len(layers), backbone.hidden_size), np.float32)
        yield from ((i, nothing) for i in range(len(texts)))
        return
    check_unicode(texts)
    encoded = encoder.tokenizer(
        list(texts), return_offsets_mapping=True, return_attention_mask=False, truncation=False, verbose=False
    )
    longest = getattr(backbone.lm.config, "max_position_embeddings", None) or 10**9
    tokens: list[list[list[int]]] = []
    for text, offsets, spans in zip(texts, encoded["offset_mapping"], words, strict=True):
        if len(offsets) > longest:
            raise ValueError(
                f"every text must fit into the model's {longest} positions; {text[:60]!r} … has {len(offsets)} tokens"
            )
        tokens.append([tokens_of(text, span, offsets) for span in spans])
    packed = Packed.from_tokens([Tokens(ids) for ids in encoded["input_ids"]])  # start tokens included
    device = backbone.device
    with evaluating(backbone):
        for chunk in _mixed(packed.lengths, min(TOKENS_AT_ONCE, tokens_at_once(device))):
            states = _states(backbone, packed.select(chunk).to(device), layers)
            rows = _means(states, packed.lengths[chunk], [tokens[i] for i in chunk.tolist()])
            yield from zip(chunk.tolist(), rows, strict=True)
            if progress is not None:
                progress.update(len(chunk))


def _mixed(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Text numbers of each chunk, of about so many tokens, at random. Rounding depends on the chunk; were its texts of
    one length, as elsewhere, a probe could read that from words that know nothing of it.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount((lengths[order].cumsum(0) - 1) // budget)
    yield from (chunk for chunk in order.split(counts.tolist()) if len(chunk))


def _states(backbone: Backbone, texts: Packed, layers: Sequence[int]) -> list[Tensor]:
    if list(layers) == [backbone.layers]:
        return [backbone(texts)]
    states = backbone.hidden_states(texts)
    return [states[layer] for layer in layers]


def _means(states: list[Tensor], lengths: Tensor, tokens: list[list[list[int]]]) -> list[np.ndarray]:
    """Per text (W, L, D): means of token vectors, as a product with a sparse (W, T) matrix."""
    firsts = (lengths.cumsum(0) - lengths).tolist()
    words = [[first + i for i in word] for first, text in zip(firsts, tokens, strict=True) for word in text]
    places = torch.tensor([(row, token) for row, word in enumerate(words) for token in word], dtype=torch.long)
    shares = torch.tensor([1 / len(word) for word in words for _ in word])
    size = (len(words), int(lengths.sum()))
    matrix_WT = torch.sparse_coo_tensor(places.reshape(-1, 2).T, shares, size, check_invariants=False).to(
        states[0].device
    )
    vectors_WLD = torch.stack([torch.sparse.mm(matrix_WT, state_TD.float()) for state_TD in states], dim=1)
    return [part.numpy() for part in vectors_WLD.cpu().split([len(text) for text in tokens])]


def tokens_of(text: str, word: Span, offsets: Sequence[Span]) -> list[int]:
    """Which tokens overlap the characters of `word`; one that also carries the space before it belongs to the word.

    Raises:
        ValueError: none does.
    """
    if not 0 <= word[0] < word[1] <= len(text):
        raise ValueError(
            f"every word must be some characters of its text, first and last + 1; {word[0]} to {word[1]} are not, of "
            f"the {len(text)} of {text[:80]!r}"
        )
    tokens = [i for i, (start, end) in enumerate(offsets) if start < word[1] and end > word[0]]
    if not tokens:
        raise ValueError(
            f"every word needs a token; {text[slice(*word)]!r} (characters {word[0]}–{word[1]}) of {text[:80]!r} has "
            "none"
        )
    return tokens
