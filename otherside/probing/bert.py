"""Encoders that were bidirectional from the start, such as BERT: a row beside ours, as the paper's baselines are.

Shapes: N texts, T tokens of packed texts, S tokens of the longest, D hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from otherside import weights
from otherside.backbone import Backbone, DTypes
from otherside.batching import Packed
from otherside.encoder import Encoder
from otherside.llama import fills_in, within
from otherside.tokenizer import load_tokenizer


class BertBackbone(nn.Module):
    """What probing needs of a `Backbone`, from a bidirectional model of transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.lm = model
        self.layers: int = model.config.num_hidden_layers
        self.hidden_size: int = model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = self.lm.device
        return found

    def forward(self, texts: Packed) -> Tensor:
        """Last hidden states (T, D) of packed texts."""
        return self.hidden_states(texts)[-1]

    def hidden_states(self, texts: Packed) -> list[Tensor]:
        """Hidden states of all layers, embeddings first: layers + 1 tensors (T, D)."""
        ids_NS = nn.utils.rnn.pad_sequence(list(texts.input_ids.split(texts.lengths.tolist())), batch_first=True)
        real_NS = (torch.arange(ids_NS.shape[1]) < texts.lengths[:, None]).to(ids_NS.device)
        found = self.lm(input_ids=ids_NS, attention_mask=real_NS.long(), output_hidden_states=True)
        return [states_NSD[real_NS] for states_NSD in found.hidden_states]


def is_bert(model: str) -> bool:
    """Whether `model` is an encoder of transformers: one trained to fill in masked words, without a decoder.

    Raises:
        FileNotFoundError: there is no such model.
    """
    place = weights.locate(model)
    if isinstance(place, Path) and place.suffix == ".gguf":
        return False
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"every ENCODER must be an encoder folder, a base model or a BERT; nothing is at {model}, here or on "
            f"the hub, that transformers knows without code of its own ({reason}). Train it first."
        ) from error
    return fills_in(config.model_type) and not config.is_encoder_decoder


def load_bert(model: str, dtype: DTypes) -> Encoder:
    """An encoder of transformers, mean-pooled where whole texts are asked for. Safetensors only, no remote code.

    Raises:
        FileNotFoundError: it has no weights in safetensors, or no tokenizer.
        ValueError: it has no fast tokenizer, which knows where words are.
    """
    place = weights.locate(model)
    try:
        lm = AutoModel.from_pretrained(place, dtype=getattr(torch, dtype), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{model} must have weights in safetensors; they could not be loaded: {error}"
        ) from error
    for name, module in lm.named_modules():
        # RoBERTa and its relatives number a text's tokens from behind the padding's number
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            lm.config.max_position_embeddings -= module.padding_idx + 1
    backbone, tokenizer = cast(Backbone, BertBackbone(lm.requires_grad_(False))), load_tokenizer(model)
    return Encoder(backbone, tokenizer, max_length=within(tokenizer.model_max_length, lm.config))
