"""LLM2Vec's published encoders (BehnamGhader et al., 2024), opened like encoder folders.

Such a folder holds a PEFT adapter and no word on how it is read: that stands in LLM2Vec's code, which we do not run but
reproduce (github.com/McGill-NLP/llm2vec, version 0.2.3, `llm2vec/llm2vec.py`). MNTP's adapter is trained on a base
model; those of SimCSE and of supervised training on the base with MNTP's merged, which their names alone tell:
`X-mntp-supervised` is trained on `X-mntp`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from otherside.hub import read_json, snapshot
from otherside.lineage import ADAPTER_WEIGHTS, OWN, Card, Lineage
from otherside.template import Template

ADAPTER, SETTINGS, CONFIG = "adapter_config.json", "llm2vec_config.json", "config.json"
FILES = [ADAPTER, ADAPTER_WEIGHTS, SETTINGS, CONFIG, "tokenizer*", "special_tokens_map.json", "added_tokens.json"]
PUBLISHER = "McGill-NLP"
MNTP = "mntp"
CONTRASTIVE = re.compile(r"(?<![^-/])(?:mntp-)?(?:unsup-)?(supervised|simcse)$")  # end of a name
MORE = ("modules_to_save", "trainable_token_indices")  # that PEFT trains beside LoRA's matrices
POOLINGS = ("mean", "weighted_mean", "last_token")

PLAIN = "{instruction} {text}"
TURN = "[INST] {instruction} {text} [/INST]"
QWEN = "<|im_start|>user\n{instruction} {text}<|im_end|>"
FORMS = {  # by the base's name; of all others PLAIN
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        "<|start_header_id|>user<|end_header_id|>\n\n{instruction} {text}<|eot_id|>"
    ),
    "meta-llama/Llama-2-7b-chat-hf": TURN,
    "mistralai/Mistral-7B-Instruct-v0.2": TURN,
    "Qwen/Qwen2-1.5B-Instruct": QWEN,
    "Qwen/Qwen2-7B-Instruct": QWEN,
}


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter by itself, LLM2Vec's or another."""
    return (folder / ADAPTER).is_file()


@lru_cache
def downloaded(model: str, revision: str | None = None) -> Path | None:
    """The folder of an adapter on the hub, or in its cache; None where `model` is none, or cannot be asked for."""
    return snapshot(model, revision, ADAPTER, FILES)


def card(folder: Path) -> Card:
    """What an encoder folder's card would say: base, adapters, and how LLM2Vec reads and pools texts.

    The start token takes part in attention and is not pooled, with an instruction and without.

    Raises:
        FileNotFoundError: the adapter it was trained on is not to be found.
        ValueError: it is another adapter than LLM2Vec's, has weights as a pickle, or a pooling that we do not have.
    """
    folder = folder.absolute()
    lineage = _lineage(folder)
    first = lineage.adapters[0].path.parent
    settings: dict[str, Any] = {
        "pooling_mode": "mean",
        "max_length": 512,
        "doc_max_length": 400,
        "skip_instruction": True,
    }
    settings |= read_json(folder / SETTINGS)
    pooling, skip = settings["pooling_mode"], settings["skip_instruction"]
    if pooling not in POOLINGS or not skip:
        raise ValueError(
            f"{folder / SETTINGS} must have a pooling_mode of {', '.join(POOLINGS)}, and skip_instruction true; got "
            f"{pooling!r} and {skip}. We have no pooling that equals it: use another model."
        )
    # The package asks for either: here, on the hub
    names = (read_json(first / CONFIG).get("_name_or_path"), lineage.base)
    template = Template(next((FORMS[name] for name in names if name in FORMS), PLAIN), settings["doc_max_length"])
    return Card(
        lineage, stage_of(folder), 0, "bidirectional", pooling, settings["max_length"], OWN, False, None, template
    )


def name_of(folder: Path) -> str:
    """Of a model: its folder's, or in the hub's cache (`models--ORG--NAME/snapshots/COMMIT`) its id."""
    cached = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/") if cached else folder.name


def stage_of(folder: Path) -> str:
    """mntp, simcse or supervised, by a folder's name; llm2vec where it does not tell."""
    name = name_of(folder)
    if found := CONTRASTIVE.search(name):
        return found[1]
    return MNTP if name.endswith(MNTP) else "llm2vec"


def _lineage(folder: Path) -> Lineage:
    """Of the adapter in `folder`."""
    settings = read_json(folder / ADAPTER)
    _check(folder, settings)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not base:
        raise ValueError(f"{folder / ADAPTER} must name its base in base_model_name_or_path; it does not")
    place = Path(base).expanduser()
    below = place if is_adapter(place) else None if place.exists() else downloaded(base, revision)
    below = below or _mntp(folder)
    lineage = _lineage(below) if below else Lineage(str(place.resolve()) if place.exists() else base, revision)
    return lineage.extended(stage_of(folder), folder)


def _mntp(folder: Path) -> Path | None:
    """MNTP's adapter that another was trained on, by their names: beside it or on the hub. None: on the base itself.

    Raises:
        FileNotFoundError: it is nowhere.
        ValueError: the name does not tell.
    """
    organisation, _, name = name_of(folder).rpartition("/")
    below = CONTRASTIVE.sub(MNTP, name)
    if below == name:
        if name.endswith(MNTP) or not (folder / SETTINGS).is_file():  # which contrastive stages write
            return None
        raise ValueError(
            f"{folder} must be named X-mntp-supervised or X-mntp-unsup-simcse, which says that it was trained on "
            f"X-mntp; nothing else does. Rename it, or let base_model_name_or_path in its {ADAPTER} be MNTP's folder."
        )
    if not organisation and is_adapter(folder.parent / below):
        return folder.parent / below
    address = f"{organisation or PUBLISHER}/{below}"
    if (cached := downloaded(address)) is None:
        raise FileNotFoundError(
            f"{name} was trained on {below}, which must be beside it or on the hub; it is neither in {folder.parent} "
            f"nor to be had as {address}. Download it into {folder.parent / below}."
        )
    return cached


def _check(folder: Path, settings: dict[str, Any]) -> None:
    # PEFT notes the class that it adapted, and the library it is from
    told = f"{name_of(folder)} {settings.get('auto_mapping')}".lower()
    if "llm2vec" not in told and not (folder / SETTINGS).is_file():
        raise ValueError(
            f"backbone.model must be a model or an encoder; {folder} is a PEFT adapter, and nothing says that it is "
            "LLM2Vec's: for which attention, pooling and texts is unknown. Name the encoder folder it belongs to; or "
            "merge it into its base (PEFT's merge_and_unload, save_pretrained) and name that folder."
        )
    if more := [name for name in MORE if settings.get(name)]:
        raise ValueError(
            f"{folder / ADAPTER} must be LoRA alone, as LLM2Vec's are; it has {' and '.join(more)}, not read. "
            "Merge it into its base (PEFT's merge_and_unload, save_pretrained) and name that folder."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("adapter_model*"))) or "none"
        raise ValueError(
            f"{folder} must have its weights as {ADAPTER_WEIGHTS}; it has {found}. A .bin is a pickle, which may run "
            "code, and is not read: take a revision with safetensors, or save it again by PEFT's save_pretrained, "
            "where you trust it."
        )
