"""The files that make a folder of transformers one of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from otherside.encoder import Encoder
from otherside.export.transformers import dump
from otherside.tokenizer import start_id

REQUIREMENTS = {
    "transformers": {"specifier": ">=5.2", "reason": "earlier ones run bidirectional models as causal ones"}
}  # read by sentence-transformers 6


def write(encoder: Encoder, folder: Path) -> None:
    """The files that say: Llama, then pooling. Under names that sentence-transformers 2 to 6 know.

    A start token that is not pooled has the weight 0. With a prompt, the other weights then no longer sum to the number
    of tokens pooled, so vectors are scaled to length 1.
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
        {"prompts": {}, "similarity_fn_name": "cosine", "requirements": REQUIREMENTS},
    )
    if encoder.backbone.attention == "bidirectional":
        require_5(folder / "tokenizer_config.json")
    config = {"word_embedding_dimension": encoder.backbone.hidden_size, "include_prompt": False}
    (folder / names["Pooling"]).mkdir()
    modes = {f"pooling_mode_{mode}": on for mode, on in modes.items()}
    dump(folder / names["Pooling"] / "config.json", {**config, **modes})


def require_5(path: Path) -> None:
    """Name the tokenizer's class as transformers 5 does, which 4 refuses: it would run the model as a causal one. It
    reads `tokenizer.json`, like the class that it stands for.
    """
    dump(path, {**json.loads(path.read_text()), "tokenizer_class": "TokenizersBackend"})


def write_weights(folder: Path, start: int, encoder: Encoder) -> None:
    """Weight 0 for the start token, 1 for every other; tokens are told apart by their place in `vocab` alone."""
    weights = torch.ones(encoder.backbone.lm.config.vocab_size, 1)
    weights[start] = 0
    vocab = ["" if weight else "start" for weight in weights]
    folder.mkdir()
    dump(folder / "config.json", {"vocab": vocab, "word_weights": {"start": 0.0}, "unknown_word_weight": 1.0})
    save_file({"emb_layer.weight": weights}, folder / "model.safetensors")
