"""One text a row: for SimCSE, for MNTP on sentences, and for prediction."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from datamodules.base import TextData
from datamodules.sources import Source
from datamodules.texts import SentenceBatches


class Sentences(TextData):
    """Texts, one a row, as `TextBatch`: each is its source's instruction and the text, cut at `max_length` tokens."""

    @override
    def make_batch(self, sources: Sequence[Source]) -> SentenceBatches:
        """Tokenises and packs texts."""
        return SentenceBatches(self.tokenizer, self.max_length, [source.instruction for source in sources])
