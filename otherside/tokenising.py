"""Texts to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import regex

from otherside.batching import Tokens
from otherside.template import template_of
from otherside.tokenizer import start_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = regex.compile(r"(?<=\S)\s")


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
