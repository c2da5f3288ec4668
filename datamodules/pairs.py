"""Queries with a text that answers them and texts that nearly do: for supervised contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from datamodules.base import TextData
from datamodules.labels import LabelledTable
from datamodules.sources import Kind, Source, Table
from otherside.batching import Packed, PairBatch
from otherside.candidates import Marks
from otherside.tokenising import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pairs(TextData):
    """(query, positive, negatives) rows as `PairBatch`, or (text, label) rows of sources with `labels: true`.

    The source's instruction is put before queries, its document instruction before positives and negatives.

    Args:
        negatives: most hard negatives of a row, drawn by (seed, epoch, row); null takes all.
    """

    kind: Kind = "pair"

    def __init__(self, *args: Any, negatives: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if negatives is not None and negatives < 0:
            raise ValueError(f"negatives must be 0 or more, or null for all; got {negatives}")
        alone = [str(source) for source in (*self.sources, *self.val_sources) if not source.in_batch]
        if alone and negatives == 0:
            raise ValueError(
                f"data.negatives must be at least 1, or null for all, as in_batch: false leaves no other "
                f"negatives; got 0, and {alone[0]}. Raise data.negatives."
            )
        labelled = [str(source) for source in (*self.sources, *self.val_sources) if source.labels]
        if labelled and negatives is None:
            raise ValueError(
                "data.negatives must say how many texts of other labels are negatives of a row of sources with labels: "
                f"true; got null, and {labelled[0]}. Set data.negatives, such as 4."
            )
        if self.streaming and self.sources and self.sources[0].labels:
            raise ValueError(
                "data.streaming must be false for a source with labels: true, as pairs are drawn from all rows; got "
                f"true, and {self.sources[0]}. Set streaming: false."
            )
        self.negatives = negatives

    @override
    def open(self, source: Source) -> Table:
        """The rows of a training or validation source."""
        table = super().open(source)
        return LabelledTable.of(table, self.negatives or 0, self.seed) if source.labels else table

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
        drawn = [self._draw(len(texts), int(row)) for texts, row in zip(rows["negatives"], ids, strict=True)]
        negatives = [[texts[i] for i in which] for texts, which in zip(rows["negatives"], drawn, strict=True)]
        if scores := rows.get("scores"):
            scores = [[row[0], *(row[1 + i] for i in which)] for row, which in zip(scores, drawn, strict=True)]
        settings = self.sources[source]
        queries = tokenise(self.tokenizer, rows["query"], self.max_length, settings.instruction)
        texts = [text for texts in (rows["positive"], *negatives) for text in texts]
        documents = tokenise(self.tokenizer, texts, self.max_length, settings.document_instruction)
        marks = Marks.of(rows["query"], rows["positive"], negatives, settings.in_batch, scores, rows.get("labels"))
        return PairBatch(step, Packed.from_tokens(queries + documents), len(queries), marks)

    def _draw(self, count: int, row: int) -> list[int]:
        """Which of a row's negatives."""
        if self.negatives is None or count <= self.negatives:
            return list(range(count))
        draws = np.random.default_rng((self.seed, row)).random(count)
        return [int(i) for i in np.argsort(draws)[: self.negatives]]
