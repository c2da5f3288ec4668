"""The encoder as mteb knows models, and what is true of it.

Shapes: N texts, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from otherside import adapters
from otherside.backbone import Backbone
from otherside.hub import data_set
from otherside.measured import model_name
from otherside.pooling import Pooling
from otherside.quantized import is_quantized
from otherside.sharding import whole_shape
from otherside.tokenizer import start_name

if TYPE_CHECKING:
    from mteb.models import ModelMeta
    from transformers import PreTrainedTokenizerBase


class Encodes(Protocol):
    """What decides the vectors of an `Encoder`."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    max_length: int
    pool_start: bool | None
    factors: Tensor | None


class Cosine:
    """Similarity as mteb asks a model for it."""

    def similarity(self, one: Any, other: Any) -> Tensor:
        """(N, M) cosines of vectors (N, D) and (M, D)."""
        return _unit(one) @ _unit(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Tensor:
        """(N,) cosines of vectors (N, D) and (N, D)."""
        return (_unit(one) * _unit(other)).sum(-1)


class MTEBModel(Cosine):
    """What `mteb.evaluate` takes for a model (its `EncoderProtocol`).

    Args:
        encode: (texts, instruction) -> vectors (N, D).
        meta: of the model, from `model_meta`.
        instructions: put before texts as they are; by task (`SciFact`), type of task (`Retrieval`), side (`query`,
            `document`) or both (`SciFact-query`); the most special one holds.
    """

    def __init__(
        self,
        encode: Callable[[list[str], str], np.ndarray],
        meta: ModelMeta,
        instructions: Mapping[str, str] | None = None,
    ) -> None:
        self._encode, self.mteb_model_meta, self.instructions = encode, meta, dict(instructions or {})

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Vectors (N, D), float32, of a loader of batches with a list `text`, as mteb passes them."""
        from mteb.models.abs_encoder import get_prompt

        instruction = get_prompt(self.instructions, task_metadata, prompt_type) or ""
        return self._encode([text for batch in inputs for text in batch["text"]], instruction)


def _unit(vectors: Any) -> Tensor:
    return functional.normalize(torch.atleast_2d(torch.as_tensor(vectors)).float(), dim=-1)


def model_meta(
    encoder: Encodes,
    instructions: Mapping[str, str] | None = None,
    stage: str | None = None,
    step: int | None = None,
    sources: Sequence[str] = (),
) -> ModelMeta:
    """True metadata of an encoder, for mteb's results.

    The revision is a digest of all that decides vectors: base, adapters, attention, pooling, length, precision and
    instructions. Results that mteb keeps are therefore never taken for another encoder's.

    Args:
        encoder: what is evaluated.
        instructions: that it is evaluated with.
        stage: of the adapter in training.
        step: of the adapter in training; a digest of its weights stands in where it is None.
        sources: what the stage in training reads.
    """
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    backbone = encoder.backbone
    lineage = replace(backbone.lineage, adapters=()) if backbone.is_base else backbone.lineage
    lm = backbone.lm
    is_trained = (adapters.is_attached(lm) or backbone.trains_whole) and not backbone.is_base
    stages = [made.name for made in lineage.adapters] + ([stage or "adapter"] if is_trained else [])
    if not stages:
        stages = ["uni" if backbone.attention == "causal" else "bi"]
    settings: dict[str, Any] = {
        "lineage": {**asdict(lineage), "adapters": [adapter.sha256 for adapter in lineage.adapters]},
        "encoder": [backbone.attention, encoder.pooling, encoder.max_length, str(backbone.dtype)],
        "start": [start_name(encoder.tokenizer), encoder.pool_start],
        "sink": _bytes(backbone.sink.state).hex() if backbone.sink else None,
        "instructions": dict(instructions or {}),
        "attached": _digest_of_trained(backbone) if is_trained and step is None else None,
    }
    if is_quantized(lm):
        settings["quantized"] = True
    if encoder.factors is not None and not backbone.is_base:
        settings["rescaled"] = _bytes(encoder.factors).hex()
    revision = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    parameters = sum(whole_shape(parameter).numel() for parameter in lm.base_model.parameters())
    embeddings: Any = lm.get_input_embeddings().weight
    hub = filter(None, map(data_set, sources))
    return ModelMeta(
        loader=None,
        loader_kwargs=_noted(encoder, [adapter.sha256 for adapter in lineage.adapters], instructions),
        name=model_name(lineage.base, stages),
        revision=revision if step is None else f"{revision}-step{step}",
        release_date=None,
        languages=None,
        n_parameters=parameters,
        n_embedding_parameters=whole_shape(embeddings).numel(),
        memory_usage_mb=round(parameters * backbone.dtype.itemsize / 2**20),
        max_tokens=encoder.max_length,
        embed_dim=backbone.hidden_size,
        license=_license(lineage.base),
        open_weights=None,
        public_training_code=None,
        public_training_data=", ".join(f"https://huggingface.co/datasets/{name}" for name in hub) or None,
        framework=["PyTorch", "Transformers"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=bool(instructions),
        training_datasets=None,
        adapted_from=lineage.base,
    )


def _noted(encoder: Encodes, adapters: list[str], instructions: Mapping[str, str] | None) -> dict[str, Any]:
    """What stands beside results; see `measured.Evaluated`."""
    backbone = encoder.backbone
    return {
        "attention": backbone.attention,
        "pooling": encoder.pooling,
        "max_length": encoder.max_length,
        "start_token": start_name(encoder.tokenizer),
        "pool_start": encoder.pool_start,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "instructions": dict(instructions or {}),
        "adapters": adapters,
    }


def _digest_of_trained(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for name, parameter in backbone.named_parameters("backbone"):
        if "lora_" in name or parameter.requires_grad:
            digest.update(name.encode() + _bytes(parameter))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _license(base: str) -> str | None:
    """What the base's model card says, if there is one on this machine."""
    from huggingface_hub import ModelCard, hf_hub_download
    from mteb.models.model_meta import Licenses
    from pydantic import TypeAdapter

    try:
        file = Path(base) if Path(base).is_dir() else Path(hf_hub_download(base, "README.md", local_files_only=True))
        named = ModelCard.load(file / "README.md" if file.is_dir() else file).data.license
        return TypeAdapter(Licenses).validate_python(str(named).lower())
    except (OSError, ValueError):  # of huggingface_hub and pydantic, too
        return None
