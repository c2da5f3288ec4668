"""Encoders for sentence-transformers, whoever made them: how texts are read and pooled, by `modules.json` and the files
beside it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from otherside.hub import snapshot
from otherside.lineage import OWN

MODULES, CONFIG, TOKENIZER, LENGTH = "modules.json", "config.json", "tokenizer_config.json", "sentence_bert_config.json"
KINDS = ("Transformer", "Pooling", "Normalize", "WordWeights")
POOLINGS = {  # as sentence-transformers calls them since 6, and before
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "last_token": ("lasttoken", "pooling_mode_lasttoken"),
}
NO_LIMIT = 1_000_000  # tokens; transformers writes 1e30 where there is none


@lru_cache
def downloaded(model: str, revision: str | None = None) -> Path | None:
    """Where the settings of an encoder on the hub are now; None where `model` is none, or cannot be asked for."""
    return snapshot(model, revision, MODULES, [MODULES, CONFIG, TOKENIZER, LENGTH, "*/config.json"])


def settings(folder: Path) -> dict[str, Any]:
    """What an encoder's folder says of itself, by the names of `Card`; of a base model nothing.

    Texts are read as its tokenizer reads them, with an end-of-text token if it puts one. Prompts are `encode`'s
    `instruction`, and vectors are normalised where `encode` is told to.

    Raises:
        ValueError: it does something that we do not, such as another pooling.
    """
    config, modules = _json(folder / CONFIG), _json(folder / MODULES)
    if not modules and "is_causal" not in config:
        return {}
    found: dict[str, Any] = {"attention": "causal" if config.get("is_causal", True) else "bidirectional"}
    for module in modules:
        kind, own = module["type"].rpartition(".")[2], _json(folder / module["path"] / CONFIG)
        if kind not in KINDS:
            raise ValueError(_refusal(folder, f"consist of {', '.join(KINDS)}", kind))
        if kind == "Pooling":
            found["pooling"] = _pooling(folder, own)
        if kind == "WordWeights":
            found["pool_start"] = False
    if not modules:
        return found
    for file in (TOKENIZER, LENGTH):
        own = _json(folder / file)
        length = own.get("max_seq_length") or own.get("model_max_length")
        if length and length < NO_LIMIT:
            found["max_length"] = length
    return {**found, "start_token": OWN}


def _pooling(folder: Path, own: dict[str, Any]) -> str:
    for pooling, (name, flag) in POOLINGS.items():
        if own.get("pooling_mode") == name or own.get(flag):
            return pooling
    others = [name for name, value in own.items() if name.startswith("pooling_mode") and value]
    raise ValueError(_refusal(folder, f"pool by {', '.join(POOLINGS)}", own.get("pooling_mode") or ", ".join(others)))


def _refusal(folder: Path, must: str, got: str) -> str:
    return (
        f"an encoder of sentence-transformers must {must}; {folder} has {got or 'no pooling'}. Name the base model "
        "that it was made from."
    )


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else {}
