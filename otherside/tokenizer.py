"""The tokenizer, and the start token that it puts before every text.

Attention of a Llama rests on the first token of a text, whose state is nearly the same in all texts (an "attention
sink"; Xiao et al., 2024). Without a token made for it, the first word is spent on it. So the tokenizer's own template
puts one there: training, evaluation, probing and exports all get it without asking.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from otherside import weights
from otherside.lineage import AUTO, BASE, OWN, Card
from otherside.template import Template, set_template, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOUNDARY = "<|endoftext|>"  # what GPT-2's successors put between two documents; an instructed model's EOS ends a turn


def load_tokenizer(
    model: str, revision: str | None = None, start_token: str | None = AUTO, template: Template | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model or of an encoder folder, with its start token and template.

    In texts that have no template, the spelling of a special token such as `<|endoftext|>` is text like any other.

    Args:
        model: see `BackboneConfig`.
        revision: of a hub id.
        start_token: see `BackboneConfig`.
        template: that a base model's texts are given; None: an encoder folder's own.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
        ValueError: it is not a fast tokenizer, or cannot have this start token.
    """
    card = weights.card_of(model, revision)
    is_base = card.stage == BASE
    card = replace(card, template=template or card.template)
    place = weights.resolve(model) if is_base else _tokenizer_folder(card, weights.locate(model, revision))
    if isinstance(place, Path) and not any(place.glob("tokenizer*")):
        raise FileNotFoundError(f"backbone.model must be a folder with a model and its tokenizer; {place} has none")
    # LLM2Vec read tokenizer.json as it stands; a LlamaTokenizer of transformers 5 sets a rule for spaces of its own
    reader: Any = AutoTokenizer if card.template is None else PreTrainedTokenizerFast
    options: dict[str, Any] = {"trust_remote_code": False} if reader is AutoTokenizer else {}
    try:
        tokenizer = reader.from_pretrained(place, revision=revision if is_base else None, **options)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"backbone.model must be a folder here or a model on the hub, with a tokenizer; that of {model} "
            f"could not be loaded: {error}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"backbone.model must have a fast tokenizer (tokenizer.json), which knows where words are; that of {model} "
            f"is a {type(tokenizer).__name__}"
        )
    tokenizer.init_kwargs.pop("auto_map", None)  # its publisher's code, which was not run, is not saved with it
    tokenizer.truncation_side = "right"  # what is cut is a text's end, never its instruction
    set_template(tokenizer, card.template)
    start_token = card.start_token if start_token == AUTO else start_token
    if start_token == OWN or (not is_base and start_token == card.start_token):
        return tokenizer  # as it came
    if card.template is not None:
        raise ValueError(
            f"backbone.start_token must be auto on {model}, whose template spells special tokens of its own; got "
            f"{start_token!r}"
        )
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True  # the latter is saved
    set_start(tokenizer, default_start(tokenizer) if start_token == AUTO else start_token)
    return tokenizer


def _tokenizer_folder(card: Card, place: str | Path) -> Path:
    """LLM2Vec reads with the tokenizer of its first stage; an encoder folder's adapters have none."""
    folders = [*(stage.path.parent for stage in card.lineage.files), Path(place)]
    return next((folder for folder in folders if any(folder.glob("tokenizer*"))), folders[-1])


def default_start(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What `auto` means for a base model: the token that its tokenizer puts first, else the document boundary.

    A nominal beginning of text comes after it: `<|im_start|>` serves SmolLM2 worse (`benchmarks/start_tokens.py`).
    """
    if (own := start_id(tokenizer)) is not None:
        return str(tokenizer.convert_ids_to_tokens(own))
    known = tokenizer.get_vocab()
    named = (BOUNDARY, tokenizer.bos_token, tokenizer.eos_token)
    return next((token for token in named if token in known), None)


def start_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the special token that the tokenizer puts before a text; None: it puts none."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    return encoded["input_ids"][0] if encoded["special_tokens_mask"][0] else None


def start_name(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The start token as it is written in `backbone.start_token`."""
    start = start_id(tokenizer)
    return None if start is None else str(tokenizer.convert_ids_to_tokens(start))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of all tokens that stand for no text."""
    return sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


def check_fits(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Raise a ValueError where a text may become a token that has no embedding.

    Special tokens that texts cannot spell may have none: Gemma 3's has one for images, its text models not.
    """
    if len(tokenizer) <= embeddings:
        return
    unspelled = set(special_ids(tokenizer)) if tokenizer.split_special_tokens else set()
    unspelled -= {*tokenizer("a")["input_ids"], tokenizer.eos_token_id}
    if beyond := [token for token, i in tokenizer.get_vocab().items() if i >= embeddings and i not in unspelled]:
        raise ValueError(
            f"backbone.model must have an embedding for every token; its tokenizer has {len(tokenizer)} tokens, the "
            f"model {embeddings} embeddings: none for {beyond[0]!r}. Use the model's own tokenizer, or resize its "
            "embeddings (resize_token_embeddings)."
        )


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that read texts alike, whatever they were used for before."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    for use in ("truncation", "padding"):  # left behind by the last call
        state.pop(use, None)
    if (template := template_of(tokenizer)) is not None:
        state["template"] = asdict(template)
    state |= {"eos": tokenizer.eos_token_id, "split_special_tokens": tokenizer.split_special_tokens}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def set_start(tokenizer: PreTrainedTokenizerBase, token: str | None) -> None:
    """Let the tokenizer put `token`, once, before every text, and nothing else there; None: nothing.

    Raises:
        ValueError: there is no such token, or what the tokenizer puts first cannot be taken away.
    """
    known = tokenizer.get_vocab()
    if token is not None and token not in known:
        raise ValueError(
            f"backbone.start_token must be auto, null or a token of the vocabulary, such as "
            f"{default_start(tokenizer)!r}; got {token!r}"
        )
    if token == start_name(tokenizer):
        return
    backend = tokenizer.backend_tokenizer
    old = json.loads(backend.post_processor.__getstate__()) if backend.post_processor else None
    steps = [] if old is None else old["processors"] if old["type"] == "Sequence" else [old]
    for step in steps:
        if step["type"] == "TemplateProcessing":
            step["single"], step["pair"] = _without_start(step["single"]), _without_start(step["pair"])
    if token is not None:
        steps.append(_template(token, known[token]))
    new = processors.Sequence([])
    new.__setstate__(json.dumps({"type": "Sequence", "processors": steps}).encode())
    backend.post_processor = new
    if (found := start_name(tokenizer)) != token:
        raise ValueError(
            f"backbone.start_token cannot be {token!r} here: the tokenizer puts {found!r} first by itself. Use auto."
        )


def _without_start(template: list[dict[str, Any]]) -> list[dict[str, Any]]:
    while template and "SpecialToken" in template[0]:
        template = template[1:]
    return template


def _template(token: str, number: int) -> dict[str, Any]:
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    one, other = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [special, one],
        "pair": [special, one, other],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
