"""One text a row: for SimCSE, for MNTP on sentences, and for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from datamodules.base import TextData
from datamodules.sources import Source
from otherside.batching import Packed, TextBatch, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Sentences(TextData):
    """Texts, one a row, as `TextBatch`: each is its source's instruction and the text, cut at `max_length` tokens."""

    @override
    def make_batch(self, sources: Sequence[Source]) -> SentenceBatches:
        """Tokenises and packs texts."""
        return SentenceBatches(self.tokenizer, self.max_length, [source.instruction for source in sources])


@dataclass(frozen=True)
class SentenceBatches:
    """Rows of texts to a `TextBatch`.

    Args:
        tokenizer: of the model.
        max_length: most tokens of a text.
        instructions: one for each source.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    instructions: list[str]

    def __call__(self, step: int, source: int, rows: dict[str, list[Any]], ids: NDArray[np.int64]) -> TextBatch:
        """See `datamodules.loading.MakeBatch`."""
        tokens = tokenise(self.tokenizer, rows["text"], self.max_length, self.instructions[source])
        return TextBatch(step, Packed.from_tokens(tokens), torch.from_numpy(ids))
