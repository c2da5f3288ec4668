"""Queries with a text that answers them and texts that nearly do: for supervised contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from datamodules.base import TextData
from datamodules.sources import Kind, Source
from otherside.batching import Packed, PairBatch, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pairs(TextData):
    """(query, positive, negatives) rows as `PairBatch`.

    The source's instruction is put before queries, its document instruction before positives and negatives.

    Args:
        negatives: most hard negatives of a row, drawn by (seed, epoch, row); null takes all.
    """

    kind: Kind = "pair"

    def __init__(self, *args: Any, negatives: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if negatives is not None and negatives < 0:
            raise ValueError(f"negatives must be 0 or more, or null for all; got {negatives}")
        self.negatives = negatives

    @override
    def make_batch(self, sources: Sequence[Source]) -> PairMaker:
        """Draws negatives, tokenises and packs."""
        return PairMaker(self.tokenizer, self.max_length, list(sources), self.negatives, self.seed)


@dataclass(frozen=True)
class PairMaker:
    """Rows of pairs to a `PairBatch`.

    Args:
        tokenizer: of the model.
        max_length: most tokens of a text.
        sources: where the instructions come from.
        negatives: most hard negatives of a row; None takes all.
        seed: draws them, together with the row id.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    sources: list[Source]
    negatives: int | None
    seed: int

    def __call__(self, step: int, source: int, rows: dict[str, list[Any]], ids: NDArray[np.int64]) -> PairBatch:
        """See `datamodules.loading.MakeBatch`."""
        negatives = [
            text for texts, row in zip(rows["negatives"], ids, strict=True) for text in self._draw(texts, int(row))
        ]
        settings = self.sources[source]
        queries = tokenise(self.tokenizer, rows["query"], self.max_length, settings.instruction)
        documents = tokenise(
            self.tokenizer, rows["positive"] + negatives, self.max_length, settings.document_instruction
        )
        return PairBatch(step, Packed.from_tokens(queries + documents), len(queries))

    def _draw(self, texts: list[str], row: int) -> list[str]:
        if self.negatives is None or len(texts) <= self.negatives:
            return texts
        draws = np.random.default_rng((self.seed, row)).random(len(texts))
        return [texts[i] for i in np.argsort(draws)[: self.negatives]]
