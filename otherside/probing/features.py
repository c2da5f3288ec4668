"""Vectors of words inside sentences, and the files that keep them.

Shapes: N texts, W words of one text, T tokens of a batch, L layers asked for, D hidden size, M mentions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from otherside.batching import Packed, Tokens, tokens_at_once
from otherside.encoder import Encoder
from otherside.files import atomic
from otherside.probing.tasks import Mention

VERSION = 1  # raise it when the same settings would give other vectors: it renames what is kept
Span = tuple[int, int]
TOKENS_AT_ONCE = 4096  # at most: the states of all layers may be asked for


@torch.no_grad()
def layer_vectors(
    encoder: Encoder,
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
        layers: numbers from 0 (embeddings) to `encoder.backbone.layers`.
        progress: advanced by one per text.

    Raises:
        ValueError: a word has no token, a text is too long for the model, or there is no such layer.
    """
    last = encoder.backbone.layers
    if wrong := [layer for layer in layers if not 0 <= layer <= last]:
        raise ValueError(f"--layers must lie in 0 … {last}, the model's last; got {', '.join(map(str, wrong))}")
    encoded = encoder.tokenizer(
        list(texts), return_offsets_mapping=True, return_attention_mask=False, truncation=False, verbose=False
    )
    longest = getattr(encoder.backbone.lm.config, "max_position_embeddings", None) or 10**9
    tokens: list[list[list[int]]] = []
    for text, offsets, spans in zip(texts, encoded["offset_mapping"], words, strict=True):
        if len(offsets) > longest:
            raise ValueError(
                f"every text must fit into the model's {longest} positions; {text[:60]!r} … has {len(offsets)} tokens"
            )
        tokens.append([tokens_of(text, span, offsets) for span in spans])
    packed = Packed.from_tokens([Tokens(ids) for ids in encoded["input_ids"]])  # start tokens included
    training = encoder.training
    encoder.eval()
    try:
        for chunk in packed.chunks(min(TOKENS_AT_ONCE, tokens_at_once(encoder.device))):
            states = _states(encoder, packed.select(chunk).to(encoder.device), layers)
            rows = _means(states, packed.lengths[chunk], [tokens[i] for i in chunk.tolist()])
            yield from zip(chunk.tolist(), rows, strict=True)
            if progress is not None:
                progress.update(len(chunk))
    finally:
        encoder.train(training)


def _states(encoder: Encoder, texts: Packed, layers: Sequence[int]) -> list[Tensor]:
    backbone = encoder.backbone
    if list(layers) == [backbone.layers]:
        return [backbone(texts)]
    states = backbone.hidden_states(texts)
    return [states[layer] for layer in layers]


def _means(states: list[Tensor], lengths: Tensor, tokens: list[list[list[int]]]) -> list[np.ndarray]:
    """Per text (W, L, D): means of token vectors, as a product with a sparse (W, T) matrix."""
    firsts = (lengths.cumsum(0) - lengths).tolist()
    words = [[first + i for i in word] for first, text in zip(firsts, tokens, strict=True) for word in text]
    places = torch.tensor([(row, token) for row, word in enumerate(words) for token in word]).T
    shares = torch.tensor([1 / len(word) for word in words for _ in word])
    size = (len(words), int(lengths.sum()))
    matrix_WT = torch.sparse_coo_tensor(places, shares, size, check_invariants=False).to(states[0].device)
    vectors_WLD = torch.stack([torch.sparse.mm(matrix_WT, state_TD.float()) for state_TD in states], dim=1)
    return [part.numpy() for part in vectors_WLD.cpu().split([len(text) for text in tokens])]


def tokens_of(text: str, word: Span, offsets: Sequence[Span]) -> list[int]:
    """Which tokens overlap the characters of `word`; one that also carries the space before it belongs to the word.

    Raises:
        ValueError: none does.
    """
    tokens = [i for i, (start, end) in enumerate(offsets) if start < word[1] and end > word[0]]
    if not tokens:
        raise ValueError(
            f"every word needs a token; {text[slice(*word)]!r} (characters {word[0]}–{word[1]}) of {text[:80]!r} has "
            "none. Is the word empty?"
        )
    return tokens


class Store:
    """Vectors of mentions, taken once per encoder and layer and kept in files that can be mapped into memory.

    A file's name is a digest of all that its content depends on: the encoder's weights and settings, the layer, the
    mentions, and the version of this code. Delete the folder at any time.

    Args:
        folder: where files are kept.
        settings: all of the encoder that vectors depend on.
        encoder: opens it; called only where vectors are missing.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], encoder: Callable[[], Encoder]) -> None:
        self.folder, self.settings, self.encoder = folder, settings, encoder

    def path(self, mentions: Sequence[Mention], layer: int) -> Path:
        """Where the vectors of these mentions are, or will be."""
        content = [VERSION, self.settings, mentions, layer]
        return self.folder / f"{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]}.npy"

    def vectors(
        self, mentions: Sequence[Mention], layers: Sequence[int], progress: tqdm | None = None
    ) -> dict[int, np.ndarray]:
        """(M, D) float32 vectors of the mentions by layer, read-only; all missing layers are taken in one pass."""
        paths = {layer: self.path(mentions, layer) for layer in layers}
        missing = [layer for layer, path in paths.items() if not path.exists()]
        texts = group_by_text(mentions)
        if missing:
            self._take(mentions, texts, missing, paths, progress)
        elif progress is not None:
            progress.update(len(texts))
        return {layer: np.load(path, mmap_mode="r") for layer, path in paths.items()}

    def _take(
        self,
        mentions: Sequence[Mention],
        texts: dict[str, list[int]],
        layers: Sequence[int],
        paths: dict[int, Path],
        progress: tqdm | None,
    ) -> None:
        encoder = self.encoder()
        vectors = np.empty((len(layers), len(mentions), encoder.backbone.hidden_size), np.float32)
        members = list(texts.values())
        spans = [[mentions[i][1:] for i in numbers] for numbers in members]
        for text, found in layer_vectors(encoder, list(texts), spans, layers, progress=progress):
            vectors[:, members[text]] = found.swapaxes(0, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        for layer, content in zip(layers, vectors, strict=True):
            with atomic(paths[layer]) as path, path.open("wb") as file:
                np.save(file, content)


def group_by_text(mentions: Sequence[Mention]) -> dict[str, list[int]]:
    """Numbers of the mentions in each text; texts in the order of their first mention."""
    texts: dict[str, list[int]] = {}
    for i, mention in enumerate(mentions):
        texts.setdefault(mention.text, []).append(i)
    return texts
