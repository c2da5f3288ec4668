"""Blocks of running text, all of one length: for MNTP on a corpus."""

from __future__ import annotations

import hashlib
import json
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
from datamodules.rows import Skipped
from datamodules.sources import Kind, Source, Table, cached, open_table
from otherside.batching import Packed, TextBatch, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEATURES = Features({"input_ids": datasets.List(Value("int32"))})


class Blocks(TextData):
    """Texts in file order, joined by the end-of-text token and cut into blocks of the same number of tokens.

    Blank texts, with which corpora mark paragraphs, are left out; what does not fill the last block is dropped.
    Tokenised once, into an Arrow table. Prediction reads texts as `Sentences` does.

    Args:
        block_size: tokens of a block, at most `max_length`; null means `max_length`.
    """

    kind: Kind = "blank_ok"

    def __init__(self, *args: Any, block_size: int | None = 512, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block_size = self.max_length if block_size is None else block_size
        if not 0 < self.block_size <= self.max_length:
            raise ValueError(
                f"block_size must be between 1 and max_length={self.max_length}; got {block_size}. "
                "Set block_size: null for blocks of max_length."
            )
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer must have an end-of-text token to join texts; got none. Set eos_token.")

    @override
    def open(self, source: Source) -> Table:
        """The blocks of a training or validation source."""
        texts = open_table(source, self.kind, self.on_bad_row)

        def blocks(_: Skipped) -> Iterator[dict[str, Any]]:
            cutter = Cutter(self.tokenizer, self.block_size)
            for batch in texts.rows.iter(batch_size=256):
                yield from cutter([{"text": text} for text in batch["text"]])

        key = ["blocks", texts.rows._fingerprint, tokenizer_digest(self.tokenizer), self.block_size]
        rows, _, content = cached(key, FEATURES, blocks)
        return Table(source, rows, texts.skipped, texts.faults, content)

    @override
    def expander(self) -> Cutter:
        """Cuts blocks."""
        return Cutter(self.tokenizer, self.block_size)

    @override
    def make_batch(self, sources: Sequence[Source]) -> BlockBatches:
        """Packs blocks."""
        return BlockBatches()


@dataclass
class Cutter:
    """Joins texts and cuts blocks; keeps what does not fill a block for the next call.

    Args:
        tokenizer: of the model.
        block_size: tokens of a block.
        rest: tokens not yet in a block.
    """

    tokenizer: PreTrainedTokenizerBase
    block_size: int
    rest: list[int] = field(default_factory=list)

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The blocks that the texts of `rows` complete."""
        texts = [row["text"] for row in rows]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in encoded["input_ids"]:
            self.rest += [*ids, self.tokenizer.eos_token_id]
        borders = range(0, len(self.rest) - self.block_size + 1, self.block_size)
        blocks = [{"input_ids": self.rest[start : start + self.block_size]} for start in borders]
        self.rest = self.rest[len(blocks) * self.block_size :]
        return blocks


@dataclass(frozen=True)
class BlockBatches:
    """Rows of blocks to a `TextBatch`."""

    def __call__(self, step: int, source: int, rows: dict[str, list[Any]], ids: NDArray[np.int64]) -> TextBatch:
        """See `datamodules.loading.MakeBatch`."""
        return TextBatch(
            step, Packed.from_tokens([Tokens(block) for block in rows["input_ids"]]), torch.from_numpy(ids)
        )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that split texts alike, whatever they were used for before."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    for use in ("truncation", "padding"):  # left behind by the last call
        state.pop(use, None)
    state["eos"] = tokenizer.eos_token_id
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
