"""Ragged batches of tokens: packed end to end, never padded.

Shapes: T tokens of all texts together, N texts, B texts of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from otherside.candidates import Marks
from otherside.devices import moved


@dataclass(frozen=True)
class Tokens:
    """One tokenised text.

    Args:
        ids: token ids.
        skip: how many leading tokens are not of the text itself: start token, template and instruction. They take part
            in attention, not in pooling (the start token: as `pool_start` says).
        start: how many of these are the start token: 0 or 1.
    """

    ids: list[int]
    skip: int = 0
    start: int = 0


@dataclass
class Packed:
    """N texts, one after the other without padding.

    What the host plans with is on the CPU; what tokens need is computed where they are, from `sizes`, so that neither
    waits for the other.

    Args:
        input_ids: (T,) int64.
        lengths: (N,) int64, on the CPU.
        skip: (N,) int64, on the CPU; start token and instruction of each text. See `Tokens`.
        start: (N,) int64, on the CPU; 1 where a text has a start token.
        sizes: (3, N) int64, lengths, skip and start once more, where `input_ids` are; made if not given.
    """

    input_ids: Tensor
    lengths: Tensor
    skip: Tensor
    start: Tensor
    sizes: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.sizes is None:
            self.sizes = moved(torch.stack([self.lengths, self.skip, self.start]), self.input_ids.device)

    @classmethod
    def from_tokens(cls, texts: Sequence[Tokens]) -> Packed:
        """Pack N texts in the order given; each must have at least one token."""
        if not texts or not all(text.ids for text in texts):
            raise ValueError("every text of a batch needs at least one token")
        return cls(
            input_ids=torch.tensor([token for text in texts for token in text.ids]),
            lengths=torch.tensor([len(text.ids) for text in texts]),
            skip=torch.tensor([text.skip for text in texts]),
            start=torch.tensor([text.start for text in texts]),
        )

    @classmethod
    def cat(cls, parts: Iterable[Packed]) -> Packed:
        """Several batches as one."""
        parts = list(parts)
        return cls(*(torch.cat([getattr(part, column.name) for part in parts], dim=-1) for column in fields(cls)))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def borders(self) -> Tensor:
        """(N + 1,) int64 on the CPU: text i is `input_ids[borders[i]:borders[i + 1]]`."""
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    @cached_property
    def owners(self) -> Tensor:
        """(T,) int64 where the tokens are: the text that each is of."""
        return torch.repeat_interleave(self.sizes[0], output_size=len(self.input_ids))

    @cached_property
    def positions(self) -> Tensor:
        """(T,) int64 where the tokens are: each token's position in its text."""
        firsts = self.sizes[0].cumsum(0) - self.sizes[0]
        return torch.arange(len(self.input_ids), device=self.input_ids.device) - firsts[self.owners]

    def select(self, texts: Tensor) -> Packed:
        """The texts numbered `texts` (B,), in that order."""
        lengths, starts = self.lengths[texts], self.borders[texts]
        firsts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])[:-1]
        tokens = (starts - firsts).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
        ids = self.input_ids[tokens.to(self.input_ids.device)]
        return Packed(ids, lengths, self.skip[texts], self.start[texts])

    def chunks(self, budget: int | None, padded: bool = True) -> list[Tensor]:
        """Text numbers of each chunk: sorted by length, at most `budget` tokens a chunk, as if all were as long as its
        longest where attention has them `padded`.

        A text longer than the budget gets a chunk of its own. `None` puts everything in one chunk.
        """
        order = self.lengths.argsort(descending=True, stable=True)
        if budget is None:
            return [order]
        chunks: list[list[int]] = []
        left = 0
        for text in order.tolist():
            needed = int(self.lengths[chunks[-1][0] if padded and chunks else text])
            if not chunks or needed > left:
                chunks.append([])
                needed, left = int(self.lengths[text]), budget
            chunks[-1].append(text)
            left -= needed
        return [torch.tensor(chunk) for chunk in chunks]

    def to(self, device: torch.device | str) -> Packed:
        """Token ids and sizes on `device`; lengths stay on the CPU, where chunks are planned."""
        return replace(self, input_ids=moved(self.input_ids, device), sizes=moved(self.sizes, device))


@dataclass
class Chunks:
    """N texts in the chunks in which they go through the model.

    Args:
        parts: texts of each chunk.
        places: (N,) int64, where each text is in `parts`, one after the other.
    """

    parts: list[Packed]
    places: Tensor

    @classmethod
    def of(cls, texts: Packed, budget: int | None, padded: bool = True) -> Chunks:
        """See `Packed.chunks`."""
        chunks = texts.chunks(budget, padded)
        places = torch.cat(chunks).argsort()
        return cls([texts.select(chunk) for chunk in chunks], moved(places, texts.input_ids.device))

    def to(self, device: torch.device | str) -> Chunks:
        """See `Packed.to`."""
        return Chunks([part.to(device) for part in self.parts], moved(self.places, device))


def tokens_at_once(device: torch.device) -> int:
    """Tokens, counted with re-padding, that a model without gradients runs on at once.

    On a GPU this needs a few hundred MB even for an 8B model. On a CPU larger tensors leave the caches and get fresh
    pages: 16,384 tokens at once take more than twice the time of 2,048.
    """
    return 2048 if device.type == "cpu" else 16_384


def rounded(n: int) -> int:
    """n, or up to a sixteenth more (and a multiple of 8), so that there are few different sizes."""
    step = max(8, 2 ** n.bit_length() // 32)
    return -(-n // step) * step


@dataclass
class Batch:
    """What a stage reads.

    Args:
        step: number of this batch in the plan.
        texts: N texts; on the CPU, once the batch is `cut`.
        chunks: what goes through the model, once the batch is `cut`.
    """

    step: int
    texts: Packed
    chunks: Chunks = field(default=None, kw_only=True)  # type: ignore[assignment]

    def cut(self, budget: int | None, views: int = 1, padded: bool = True) -> Self:
        """With its texts in chunks of `budget` tokens, see `Packed.chunks`, each text `views` times; as it is if that
        was done.
        """
        if self.chunks is not None:
            return self
        return replace(self, chunks=Chunks.of(Packed.cat([self.texts] * views), budget, padded))

    def to(self, device: torch.device | str) -> Self:
        """Chunks, or texts that are not cut, on `device`."""
        name = "texts" if self.chunks is None else "chunks"
        return replace(self, **{name: getattr(self, name).to(device)})


@dataclass
class TextBatch(Batch):
    """What MNTP, SimCSE and prediction read.

    Args:
        rows: (N,) int64, on the CPU; a number of its own for every (source, epoch, row): seeds what is drawn per row.
    """

    rows: Tensor


@dataclass
class PairBatch(Batch):
    """What supervised contrastive learning reads: `pairs` queries, then their `pairs` positives in the same order, then
    any number of hard negatives.

    Args:
        pairs: number of (query, positive) pairs.
        marks: which texts are the same, and which are negatives of which query.
    """

    pairs: int
    marks: Marks

    def to(self, device: torch.device | str) -> Self:
        """Also the marks."""
        return replace(super().to(device), marks=self.marks.to(device))
