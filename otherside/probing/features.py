"""The files that keep vectors of words.

Shapes: D hidden size, L layers, M mentions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from otherside.encoder import Encoder
from otherside.files import atomic
from otherside.probing.tasks import Mention
from otherside.words import layer_vectors

VERSION = 2  # raise it when the same settings would give other vectors: it renames what is kept


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
        if missing:
            self._take(mentions, missing, paths, progress)
        elif progress is not None:
            progress.update(len(group_by_text(mentions)))
        return {layer: np.load(path, mmap_mode="r") for layer, path in paths.items()}

    def _take(
        self,
        mentions: Sequence[Mention],
        layers: Sequence[int],
        paths: dict[int, Path],
        progress: tqdm | None,
    ) -> None:
        encoder = self.encoder()
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (len(mentions), encoder.backbone.hidden_size)
        with ExitStack() as stack:
            files = [stack.enter_context(atomic(paths[layer])) for layer in layers]
            found = [np.lib.format.open_memmap(file, "w+", np.float32, shape) for file in files]
            for i, vector_LD in mention_vectors(encoder, mentions, layers, progress):
                for kept, vector_D in zip(found, vector_LD, strict=True):
                    kept[i] = vector_D
            for kept in found:
                kept.flush()


def group_by_text(mentions: Sequence[Mention]) -> dict[str, list[int]]:
    """Numbers of the mentions in each text; texts in the order of their first mention."""
    texts: dict[str, list[int]] = {}
    for i, mention in enumerate(mentions):
        texts.setdefault(mention.text, []).append(i)
    return texts


def mention_vectors(
    encoder: Encoder, mentions: Sequence[Mention], layers: Sequence[int], progress: tqdm | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Number and (L, D) vectors of each mention, text by text, see `layer_vectors`."""
    texts = group_by_text(mentions)
    numbers = list(texts.values())
    spans = [[mentions[i][1:] for i in inside] for inside in numbers]
    for text, vectors_MLD in layer_vectors(encoder, list(texts), spans, layers, progress=progress):
        yield from zip(numbers[text], vectors_MLD, strict=True)
