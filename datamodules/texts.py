"""Rows of texts to batches, as training on sentences and prediction read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from otherside.batching import Packed, TextBatch
from otherside.tokenising import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
