"""Blocks of running text, all of one length: for MNTP on a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from datasets import Features, Value
from numpy.typing import NDArray
from typing_extensions import override

from datamodules.base import TextData
from datamodules.cache import cached
from datamodules.rows import Skipped
from datamodules.sources import Kind, Source, Table, open_table
from otherside.batching import Packed, TextBatch, Tokens
from otherside.tokenizer import digest, start_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEATURES = Features({"input_ids": datasets.List(Value("int32"))})


class Blocks(TextData):
    """Texts in file order, each behind a start token, cut into blocks of the same number of tokens.

    A block that begins inside a text begins with a start token too. Without a start token, texts are joined by the
    end-of-text token. Blank texts, with which corpora mark paragraphs, are left out; what does not fill the last block
    is dropped. Tokenised once, into an Arrow table. Prediction reads texts as `Sentences` does.

    Args:
        block_size: tokens of a block, its start token included; at most `max_length`; null means `max_length`.
    """

    kind: Kind = "blank_ok"

    def __init__(self, *args: Any, block_size: int | None = 512, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block_size = self.max_length if block_size is None else block_size
        if not 1 < self.block_size <= self.max_length:
            raise ValueError(
                f"block_size must be between 2 and max_length={self.max_length}; got {block_size}. "
                "Set block_size: null for blocks of max_length."
            )
        if told := [source for source in (*self.sources, *self.val_sources) if source.instruction]:
            raise ValueError(
                f"sources of datamodules.Blocks must have no instruction, as blocks are running text; got "
                f"{told[0].instruction!r} for {told[0]}. Remove it."
            )
        self.start = start_id(self.tokenizer)
        if self.start is None and self.tokenizer.eos_token_id is None:
            raise ValueError(
                "texts must be joined by a start token or an end-of-text token; the tokenizer has neither. Name one in "
                "backbone.start_token."
            )

    @override
    def open(self, source: Source) -> Table:
        """The blocks of a training or validation source."""
        texts = open_table(source, self.kind, self.on_bad_row)

        def blocks(_: Skipped) -> Iterator[dict[str, Any]]:
            cutter = self.expander()
            for batch in texts.rows.iter(batch_size=256):
                yield from cutter([{"text": text} for text in batch["text"]])

        key = ["blocks", texts.rows._fingerprint, digest(self.tokenizer), self.block_size]
        rows, _, content = cached(key, FEATURES, blocks)
        return Table(source, rows, texts.skipped, texts.faults, content)

    @override
    def expander(self) -> Cutter:
        """Cuts blocks."""
        return Cutter(self.tokenizer, self.block_size, self.start)

    @override
    def make_batch(self, sources: Sequence[Source]) -> BlockBatches:
        """Packs blocks."""
        return BlockBatches(0 if self.start is None else 1)


@dataclass
class Cutter:
    """Joins texts and cuts blocks; keeps what does not fill a block for the next call.

    Args:
        tokenizer: of the model.
        block_size: tokens of a block.
        start: id of the start token, or None.
        rest: tokens not yet in a block.
    """

    tokenizer: PreTrainedTokenizerBase
    block_size: int
    start: int | None
    rest: list[int] = field(default_factory=list)

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The blocks that the texts of `rows` complete."""
        texts = [row["text"] for row in rows]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in encoded["input_ids"]:
            self.rest += [*ids, self.tokenizer.eos_token_id] if self.start is None else [self.start, *ids]
        head = [] if self.start is None else [self.start]
        blocks, taken = [], 0
        while True:
            missing = head if self.rest[taken : taken + 1] != head else []
            end = taken + self.block_size - len(missing)
            if end > len(self.rest):
                break
            blocks.append({"input_ids": missing + self.rest[taken:end]})
            taken = end
        self.rest = self.rest[taken:]
        return blocks


@dataclass(frozen=True)
class BlockBatches:
    """Rows of blocks to a `TextBatch`.

    Args:
        start: start tokens at the head of a block, 0 or 1.
    """

    start: int

    def __call__(self, step: int, source: int, rows: dict[str, list[Any]], ids: NDArray[np.int64]) -> TextBatch:
        """See `datamodules.loading.MakeBatch`."""
        blocks = [Tokens(block, self.start, self.start) for block in rows["input_ids"]]
        return TextBatch(step, Packed.from_tokens(blocks), torch.from_numpy(ids))
