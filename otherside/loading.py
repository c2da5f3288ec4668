"""Loading a base that every rank holds whole; `sharding` loads one that none does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from otherside import adapters, conversion, full, stages, weights
from otherside.adapters import Lora, SavedAdapter
from otherside.full import Full
from otherside.lineage import CARD, Card, Lineage
from otherside.llama import check_decoder, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    lineage: Lineage, dtype: torch.dtype, new: Lora | Full | None, model: str, merge: bool = True
) -> tuple[PreTrainedModel, str | None]:
    """The base, its lineage merged, and what is to be trained: a new adapter attached, or its own weights.

    Args:
        lineage: what to load.
        dtype: of the frozen weights.
        new: what is to be trained; None: nothing.
        model: as the user named it, for errors.
        merge: False attaches the lineage's adapters, too, and leaves the base's weights as they are.

    Returns:
        The model, and the fingerprint of the base.

    Raises:
        FileNotFoundError: there is no such model or adapter.
        ValueError: a stage's file was changed or does not fit, or the base was; a LoRA target matches nothing; no layer
            is left to train; with merge=False, there is no base inside.
    """
    lm = base(lineage, torch.float32 if isinstance(new, Full) else dtype, model)
    found = adapters.fingerprint(lm)
    check_fingerprint(found, lineage, model)
    trained = new.names(lm) if isinstance(new, Full) else []
    if trained:
        full.set_types(lm, trained, dtype)
    saved = stages.opened(lineage, lm)
    if merge:
        for stage in saved:
            stage.merge(lm)
    else:
        adapters.put_beside(lm, [stage for stage in saved if isinstance(stage, SavedAdapter)])
    if isinstance(new, Lora):
        adapters.attach(lm, new)
    if trained:
        full.train(lm, trained)
    return lm, found


def fetch(lineage: Lineage, model: str) -> str | Path:
    """The base of a lineage, brought here: see `conversion.fetch`.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
        ValueError: it is a pickle that holds code.
    """
    try:
        return conversion.fetch(lineage.base, lineage.revision)
    except FileNotFoundError as error:
        if not lineage.adapters:
            raise
        raise FileNotFoundError(
            f"the base model of {model} must be where it was in training; nothing is at {lineage.base}. Put it "
            f"back, or write its new place into {_noted(lineage, model, 'base')}."
        ) from error


def _noted(lineage: Lineage, model: str, what: Literal["base", "revision"]) -> str:
    """Where an encoder's folder says what it is based on."""
    folder = Path(weights.locate(model))
    if Card.is_at(folder):
        return f"{folder / CARD}, as lineage.{what}"
    name = {"base": "base_model_name_or_path", "revision": "revision"}[what]
    return f"{lineage.adapters[0].path.with_name(adapters.CONFIG)}, as {name}"


def base(lineage: Lineage, dtype: torch.dtype, model: str) -> PreTrainedModel:
    """The base model of a lineage, frozen: read from safetensors, no code from the checkpoint.

    Raises:
        FileNotFoundError: it is neither here nor on the hub, or cannot be read.
        ValueError: it is a pickle that holds code, or no decoder that can be turned.
    """
    place = fetch(lineage, model)
    if isinstance(place, Path) and not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"backbone.model must be a folder with a model or an encoder; {place} has no config.json or encoder.json"
        )
    with _reading(lineage.base):
        config = AutoConfig.from_pretrained(place, revision=lineage.revision, trust_remote_code=False)
    check_decoder(config)
    with _reading(lineage.base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            revision=lineage.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    lm, told = loaded
    check_whole(told["missing_keys"], lineage.base)
    if told["missing_keys"]:  # the head alone, which transformers fills with other numbers at each load
        head = lm.get_output_embeddings()
        torch.nn.init.zeros_(head.weight)
        head.is_made_up = True
    return lm.requires_grad_(False)


@contextmanager
def _reading(base: str) -> Iterator[None]:
    """Raise one kind of error for all that transformers may find wrong with files of a model."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise FileNotFoundError(
            f"backbone.model must be a folder here or a model on the hub, with safetensors weights; {base} could not "
            f"be loaded: {error}"
        ) from error


def check_fingerprint(found: str | None, lineage: Lineage, model: str) -> None:
    """Raise a ValueError unless the base is the one that the lineage's adapters were trained on."""
    if lineage.fingerprint and found and found != lineage.fingerprint:
        raise ValueError(
            f"the adapters of {model} were trained on a base with fingerprint {lineage.fingerprint[:12]}…; "
            f"{lineage.base} has {found[:12]}…. The base's weights have changed: restore them, or (of the "
            f"hub) write the revision that was used into {_noted(lineage, model, 'revision')}."
        )
