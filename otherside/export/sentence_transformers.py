"""The files that make a folder of transformers one of sentence-transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers

from otherside.encoder import Encoder
from otherside.export.parity import FULL, TEXTS
from otherside.export.transformers import dump
from otherside.tokenising import tokenise
from otherside.tokenizer import start_id

NEARLY_NOTHING = 1e-12  # of a mean over a start token alone, that of an empty text, its state is all there is
REQUIREMENTS = {
    "transformers": {"specifier": ">=5.2", "reason": "earlier ones run bidirectional models as causal ones"}
}  # read by sentence-transformers 6


def write(encoder: Encoder, folder: Path, prompts: Mapping[str, str]) -> None:
    """The files that say: Llama, then pooling. Under names that sentence-transformers 2 to 6 know.

    Args:
        encoder: what is exported.
        folder: with what `transformers.write` wrote.
        prompts: name -> instruction; `query` and `document` are what `encode_query` and `encode_document` take.

    A start token that is not pooled has next to no weight. With a prompt, the other weights then no longer sum to the
    number of tokens pooled, so vectors are scaled to length 1.
    """
    names = {"Transformer": "", "Pooling": "1_Pooling"}
    start = start_id(encoder.tokenizer)
    if start is not None and encoder.pool_start is False and encoder.pooling != "last_token":
        if encoder.pooling == "weighted_mean":
            raise ValueError(
                "sentence-transformers cannot leave a start token out of weighted_mean; this encoder does (pool_start: "
                "false). Train it with pool_start: true, or export --kind=merged."
            )
        names = {"Transformer": "", "WordWeights": "1_WordWeights", "Pooling": "2_Pooling", "Normalize": "3_Normalize"}
        write_weights(folder / "1_WordWeights", start, encoder)
        (folder / "3_Normalize").mkdir()
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(names.items())
    ]
    dump(folder / "modules.json", modules)
    dump(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_length, "do_lower_case": False})
    modes = {
        "cls_token": False,
        "mean_tokens": encoder.pooling == "mean",
        "max_tokens": False,
        "mean_sqrt_len_tokens": False,
        "weightedmean_tokens": encoder.pooling == "weighted_mean",
        "lasttoken": encoder.pooling == "last_token",
    }
    dump(
        folder / "config_sentence_transformers.json",
        {"prompts": dict(prompts), "similarity_fn_name": "cosine", "requirements": REQUIREMENTS},
    )
    count_prompts(folder / "tokenizer.json", encoder, prompts)
    if encoder.backbone.attention == "bidirectional":
        require_5(folder / "tokenizer_config.json")
    config = {"word_embedding_dimension": encoder.backbone.hidden_size, "include_prompt": False}
    (folder / names["Pooling"]).mkdir()
    modes = {f"pooling_mode_{mode}": on for mode, on in modes.items()}
    dump(folder / names["Pooling"] / "config.json", {**config, **modes})


def count_prompts(path: Path, encoder: Encoder, prompts: Mapping[str, str]) -> None:
    """Let the tokens of a prompt alone be those that stand before a text.

    sentence-transformers reads a prompt alone to know how many tokens it must not pool. A space at its end is a token
    there, but before a text belongs to the first word's. So what is exactly the prompt is read without that space.

    Raises:
        ValueError: a prompt ends inside of a token in another way.
    """
    rules = []
    for name, prompt in prompts.items():
        if not prompt:
            continue
        read = tokenise(encoder.tokenizer, TEXTS, encoder.max_length, prompt)
        before = min(text.skip for text, is_full in zip(read, FULL, strict=True) if is_full)
        alone, shorter = tokenise(encoder.tokenizer, [prompt, prompt.rstrip(" ")], encoder.max_length)
        if before not in (len(alone.ids), len(shorter.ids)):
            raise ValueError(
                f"a prompt must end where a token ends, or in a space, for sentence-transformers to leave it out of "
                f"pooling; {name} ends inside of one: {prompt[-20:]!r}. Give others by --prompts."
            )
        if before != len(alone.ids):
            rules.append(normalizers.Replace(Regex(rf"\A{re.escape(prompt)}\z"), prompt.rstrip(" ")))
    if rules:
        tokenizer = Tokenizer.from_file(str(path))
        own = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([*rules, *own])
        tokenizer.save(str(path))


def require_5(path: Path) -> None:
    """Name the tokenizer's class as transformers 5 does, which 4 refuses: it would run the model as a causal one. It
    reads `tokenizer.json`, like the class that it stands for.
    """
    dump(path, {**json.loads(path.read_text()), "tokenizer_class": "TokenizersBackend"})


def write_weights(folder: Path, start: int, encoder: Encoder) -> None:
    """A weight of 1 for every token but the start token; tokens are told apart by their place in `vocab` alone."""
    weights = torch.ones(encoder.backbone.lm.config.vocab_size, 1)
    weights[start] = NEARLY_NOTHING
    vocab = ["start" if token == start else "" for token in range(len(weights))]
    folder.mkdir()
    known = {"start": NEARLY_NOTHING}
    dump(folder / "config.json", {"vocab": vocab, "word_weights": known, "unknown_word_weight": 1.0})
    save_file({"emb_layer.weight": weights}, folder / "model.safetensors")
