"""Encoders for sentence-transformers, whoever made them: how texts are read and pooled, by `modules.json` and the files
beside it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from otherside.hub import read_json, snapshot
from otherside.lineage import OWN
from otherside.llama import fills_in

MODULES, CONFIG, TOKENIZER = "modules.json", "config.json", "tokenizer_config.json"
READING, USE = "sentence_bert_config.json", "config_sentence_transformers.json"
LIBRARY = "sentence_transformers."  # whose modules we know; a type of another place is code of the encoder's own
KINDS = ("Transformer", "Pooling", "Normalize", "WordWeights")
POOLINGS = {  # as sentence-transformers calls them since 6, and before
    "mean": "mean",
    "pooling_mode_mean_tokens": "mean",
    "weightedmean": "weighted_mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "lasttoken": "last_token",
    "pooling_mode_lasttoken": "last_token",
}
UNREAD = ("do_lower_case", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs", "processing_kwargs")
NO_WEIGHT = 1e-6
NO_LIMIT = 1_000_000  # tokens; transformers writes 1e30 where there is none


@lru_cache
def downloaded(model: str, revision: str | None = None) -> Path | None:
    """Where the settings of an encoder on the hub are now; None where `model` is none, or cannot be asked for."""
    return snapshot(model, revision, MODULES, [MODULES, CONFIG, TOKENIZER, READING, USE, "*/config.json"])


def settings(folder: Path) -> dict[str, Any]:
    """What an encoder's folder says of itself, by the names of `Card`; of a base model, and of a BERT, nothing.

    Texts are read as its tokenizer reads them, with an end-of-text token if it puts one. Prompts are `encode`'s
    `instruction`, and vectors are normalised where `encode` is told to.

    Raises:
        ValueError: it does something that we do not, such as another pooling, or has code of its own.
    """
    config, modules = read_json(folder / CONFIG), read_json(folder / MODULES)
    if not modules and "is_causal" not in config:
        return {}
    if modules and not isinstance(modules, list):
        raise ValueError(f"{folder / MODULES} must be a list of modules; got {modules}. Download it again.")
    attention = "causal" if config.get("is_causal", True) else "bidirectional"
    if not modules:
        return {"attention": attention}
    # No decoder; `lightning probe` has its own way to open them. Asking takes torch; our exports say `is_causal`
    if "is_causal" not in config and fills_in(config.get("model_type")):
        return {}
    own = {_kind(module["type"]): read_json(folder / module["path"] / CONFIG) for module in modules}
    tokenizer, reading = read_json(folder / TOKENIZER), read_json(folder / READING)
    modes = _modes(own.get("Pooling", {}))
    unlike = {
        f"consist of {', '.join(KINDS)}": ", ".join(kind for kind in own if kind not in KINDS),
        f"pool by {', '.join(dict.fromkeys(POOLINGS.values()))}": _others(modes),
        "have no code of its own, which is never run": _code(config, tokenizer),
        "give tokens a weight of 1, or none": _weights(own.get("WordWeights", {})),
        "normalise no tokens": own.get("Normalize", {}).get("module_output_name") == "token_embeddings" and "Normalize",
        "read texts as its model and tokenizer do": ", ".join(name for name in UNREAD if reading.get(name)),
        "read texts as they stand": "message" in reading.get("modality_config", {}) and "a chat template around them",
        "cut texts at their end": tokenizer.get("truncation_side") == "left" and "truncation_side: left",
        "give whole vectors of texts as they are": _use(read_json(folder / USE)),
    }
    for must, got in unlike.items():
        if got:
            raise ValueError(
                f"an encoder of sentence-transformers must {must}; {folder} has {got}. Name the base model that it was "
                "made from, or see docs/models.md."
            )
    longest = min(tokenizer.get("model_max_length") or NO_LIMIT, config.get("max_position_embeddings") or NO_LIMIT)
    return {
        "attention": attention,
        "pooling": POOLINGS[modes[0]],
        "pool_start": "WordWeights" not in own,
        "max_length": reading.get("max_seq_length") or longest,
        "start_token": OWN,
    }


def _kind(name: str) -> str:
    """A module's class, with its place if that is not the library's."""
    return name.rpartition(".")[2] if name.startswith(LIBRARY) else name


def _modes(pooling: dict[str, Any]) -> list[str]:
    """How vectors are pooled, in the library's words; several are put one behind the other."""
    flags = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    modes = pooling.get("pooling_mode", flags)
    return [modes] if isinstance(modes, str) else modes


def _others(modes: list[str]) -> str:
    if len(modes) == 1 and modes[0] in POOLINGS:
        return ""
    return " and ".join(modes) or "no pooling"


def _code(config: dict[str, Any], tokenizer: dict[str, Any]) -> str:
    """What the library runs where it is told to trust it: often other attention, of which config.json says nothing."""
    found = [("AutoModel", config), ("AutoTokenizer", tokenizer)]
    return ", ".join(f"auto_map of {name}" for name, file in found if name in file.get("auto_map", ()))


def _weights(words: dict[str, Any]) -> str:
    """Ours tell the start token from all others, see `otherside.export.sentence_transformers`."""
    plain = words.get("unknown_word_weight", 1) == 1
    light = all(weight < NO_WEIGHT for weight in words.get("word_weights", {}).values())
    return "" if plain and light else "WordWeights of words"


def _use(use: dict[str, Any]) -> str:
    name = use.get("default_prompt_name")
    prompted = f"default_prompt_name: {name}" if (use.get("prompts") or {}).get(name) else ""
    return f"truncate_dim: {use['truncate_dim']}" if use.get("truncate_dim") else prompted
