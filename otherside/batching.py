"""Texts to tokens, and ragged batches of tokens: packed end to end, never padded.

Shapes: T tokens of all texts together, N texts, B texts of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Self

import regex
import torch
from torch import Tensor

from otherside.candidates import Marks
from otherside.devices import moved
from otherside.template import template_of
from otherside.tokenizer import start_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = regex.compile(r"(?<=\S)\s")


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


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    instruction: str = "",
    in_template: bool = True,
) -> list[Tokens]:
    """Token ids of start token, instruction and text, in the tokenizer's template if it carries one and is not told
    otherwise; cut after `max_length` tokens.

    Where the instruction ends is found by character offsets: a token that reaches into the text belongs to the text. In
    a template: see `Template.tokens`. A text without any token becomes the end-of-text token, so that it has a vector.

    Raises:
        ValueError: `max_length` leaves no room for the text behind the instruction, or the instruction spells a special
            token, which would be read as text.
    """
    check_unicode([instruction, *texts])
    start = 0 if start_id(tokenizer) is None else 1
    if instruction and tokenizer.split_special_tokens:
        _check_instruction(instruction, tokenizer)
    template = template_of(tokenizer)
    before = instruction
    if template is not None and in_template:
        before = template.around(instruction)[0]
        found = template.tokens(tokenizer, texts, max_length, instruction)
    else:
        found = _as_they_stand(tokenizer, texts, max_length, instruction, start)
    filler = [token for token in (tokenizer.eos_token_id, tokenizer.bos_token_id, 0) if token is not None][:1]
    batch = []
    for (ids, skip), text in zip(found, texts, strict=True):
        if skip >= len(ids) and before and text.strip():
            raise ValueError(
                f"max_length must leave room for text behind the instruction; got max_length={max_length} and {skip} "
                f"tokens before the text, of {before[:60]!r}. Raise max_length or shorten the instruction."
            )
        batch.append(Tokens(ids, min(skip, len(ids) - 1), start) if ids else Tokens(filler))
    return batch


def check_unicode(texts: Sequence[str]) -> None:
    """Raise a ValueError where a text has half of a surrogate pair, which stands for no character."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"every text must be valid Unicode; {text[:60]!r} has a lone surrogate, {text[error.start]!r}, at "
                f"character {error.start}. Replace it, as text.encode(errors='replace').decode() does."
            ) from error


def _as_they_stand(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, instruction: str, start: int
) -> list[tuple[list[int], int]]:
    """Token ids without a template, and how many of them are not of the text."""
    whole = [instruction + text for text in texts]
    shortened = [_beginning(text, (max_length + 1) * _longest(tokenizer)) for text in whole]
    options: dict[str, Any] = {"truncation": False, "return_attention_mask": False}
    options |= {"return_offsets_mapping": bool(instruction), "verbose": False}
    encoded = tokenizer(shortened, **options)
    # A token of unknown text may be of any length, and normalisation may leave out letters
    if any(
        len(ids) < max_length and len(short) < len(text)
        for ids, short, text in zip(encoded["input_ids"], shortened, whole, strict=True)
    ):
        encoded = tokenizer(whole, **options)
    # A tokenizer told to cut keeps that, and would cut what another thread asks of it
    ends = _ends(tokenizer)
    kept = [_cut(ids, max_length, ends) for ids in encoded["input_ids"]]
    if not instruction:
        return [(ids, start) for ids in kept]
    found = []
    for ids, offsets in zip(kept, encoded["offset_mapping"], strict=True):
        places = enumerate(_cut(offsets, max_length, ends))
        found.append((ids, next((i for i, (_, end) in places if end > len(instruction)), len(ids))))
    return found


def _ends(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens it puts behind a text."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return next((i for i, is_special in enumerate(reversed(special)) if not is_special), 0)


def _cut(tokens: list[Any], max_length: int, ends: int) -> list[Any]:
    """At most so many tokens, the last `ends` of them as they were."""
    if len(tokens) <= max_length:
        return tokens
    return tokens[: max_length - ends] + tokens[len(tokens) - ends :]


def _beginning(text: str, letters: int) -> str:
    """At least so many letters, and whole words: tokens do not depend on the words behind them."""
    space = SPACE.search(text, letters)
    return text[: space.start()] if space else text


@lru_cache(maxsize=4)
def _longest(tokenizer: PreTrainedTokenizerBase) -> int:
    """Letters of its longest token, at least."""
    return max(map(len, tokenizer.get_vocab()))


def _check_instruction(instruction: str, tokenizer: PreTrainedTokenizerBase) -> None:
    spelled = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if found := [token for token in spelled if token in instruction]:
        raise ValueError(
            f"instruction must be text; {instruction[:60]!r} spells the special token {found[0]}, which has no effect "
            "in texts. The start token is put before it by itself (backbone.start_token): leave it out."
        )


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
