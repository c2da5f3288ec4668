"""What some encoders were trained to have around every text: LLM2Vec's, the header and end of a chat's turn.

A tokenizer carries its encoder's template, as it carries its start token: training, evaluation and use all get it
without asking (`tokenising.tokenise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION, TEXT = "{instruction} ", "{text}"
_CARRIED = "template"  # the tokenizer's attribute


@dataclass(frozen=True)
class Template:
    """How a text is put to an encoder. What stands before the text is not pooled; the text and what follows it are.

    Args:
        form: with `{instruction} ` and `{text}`. The instruction is stripped; without one, its place and the space
            behind it fall away.
        text_length: a text of more tokens loses words at its end until it has at most so many.
    """

    form: str
    text_length: int

    def around(self, instruction: str = "") -> tuple[str, str]:
        """What stands before a text, and behind it."""
        before, _, after = self.form.partition(TEXT)
        asked = f"{instruction.strip()} " if instruction.strip() else ""
        return before.replace(INSTRUCTION, asked), after

    def tokens(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, instruction: str = ""
    ) -> list[tuple[list[int], int]]:
        """Token ids of each text in the template, cut after `max_length`, and how many of them stand before the text.

        The latter are counted as LLM2Vec does: all tokens, less those that the text makes by itself.
        """
        before, after = self.around(instruction)
        pooled = [self.shortened(tokenizer, text, max_length) for text in texts]
        if after:
            pooled = [text.rstrip() + after for text in pooled]
        whole = _ids(tokenizer, [before + text for text in pooled])
        alone = _ids(tokenizer, pooled, add_special_tokens=False)
        return [(ids[:max_length], len(ids) - len(own)) for ids, own in zip(whole, alone, strict=True)]

    def shortened(self, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> str:
        """Without the words that make it longer than `text_length`; as many at a time as LLM2Vec leaves out.

        Of a text without spaces LLM2Vec leaves nothing; here its last word stays, and is cut by tokens.
        """
        while len(text.encode()) >= self.text_length:  # else it cannot have so many tokens
            count = min(len(_ids(tokenizer, [text], add_special_tokens=False)[0]), max_length)
            words = text.split()
            kept = int(len(words) * (self.text_length / count)) if count > self.text_length else 0
            if not kept:
                break
            text = " ".join(words[:kept])
        return text


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The template that a tokenizer carries."""
    return getattr(tokenizer, _CARRIED, None)


def set_template(tokenizer: PreTrainedTokenizerBase, template: Template | None) -> None:
    """Let a tokenizer carry `template`."""
    setattr(tokenizer, _CARRIED, template)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: Any) -> list[list[int]]:
    return tokenizer(texts, truncation=False, return_attention_mask=False, verbose=False, **options)["input_ids"]
