"""Merged weights, config and tokenizer in transformers' own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from otherside.backbone import Backbone, DTypes
from otherside.encoder import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAST_NORM = ("norm", "final_layernorm")


def write(encoder: Encoder, folder: Path, head: bool, dtype: DTypes = "float32") -> None:
    """A folder for `AutoModel`, or for `AutoModelForCausalLM`.

    The encoder's own weights are rounded to `dtype` too, so that it stays comparable with what was written.

    Args:
        encoder: in float32, without an attached adapter.
        folder: an empty folder.
        head: whether with the language model's head.
        dtype: of the weights written.
    """
    lm = encoder.backbone.lm
    embed_sink(encoder.backbone)
    fold_factors(encoder)
    model: Any = lm if head else lm.base_model
    for parameter in lm.parameters():  # not buffers: rotary frequencies stay float32
        parameter.data = parameter.data.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    for parameter in lm.parameters():
        parameter.data = parameter.data.float()
    complete_config(folder / "config.json", encoder.backbone.attention == "causal")
    padding(encoder.tokenizer, lm.config.vocab_size)
    encoder.tokenizer.save_pretrained(folder)


def padding(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Make a tokenizer pad on the right, with whatever token has an embedding: attention never sees it."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= embeddings:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)


@torch.no_grad()
def embed_sink(backbone: Backbone) -> None:
    """What the start token enters with becomes its embedding; a head that shares its weights keeps the old ones."""
    sink, lm = backbone.sink, backbone.lm
    if sink is None or backbone.attention == "causal":
        return
    embeddings: Any = lm.get_input_embeddings()
    _untie(lm)
    scale = getattr(embeddings, "scalar_embed_scale", 1.0)  # Gemma multiplies what it reads
    embeddings.weight[sink.token] = sink.state / scale
    backbone.sink = None


@torch.no_grad()
def fold_factors(encoder: Encoder) -> None:
    """What rescales vectors becomes part of the last norm's weights; the head takes it back."""
    if encoder.factors is None:
        return
    factors, lm = encoder.factors, encoder.backbone.lm
    norm: Any = next((found for name in LAST_NORM if (found := getattr(lm.base_model, name, None)) is not None), None)
    states = torch.randn(4, len(factors), device=factors.device)
    for less in (0, 1):  # Gemma's weights are one less than what they multiply by
        expected, kept = norm(states) * factors, norm.weight.clone()
        norm.weight.copy_((kept + less) * factors - less)
        if torch.allclose(norm(states), expected, rtol=1e-4):
            break
        norm.weight.copy_(kept)
    else:
        raise ValueError(
            f"the last norm of a {lm.config.model_type} cannot hold what rescales vectors (model.rescaled: true). "
            "Train with model.rescaled: false."
        )
    _untie(lm)
    lm.get_output_embeddings().weight.div_(factors)
    encoder.factors = None


def _untie(lm: Any) -> None:
    """A head that shares the embeddings' weights gets its own."""
    head = lm.get_output_embeddings()
    if head.weight is lm.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
        lm.config.tie_word_embeddings = False


def complete_config(path: Path, causal: bool) -> None:
    """What tells other tools which attention the weights were trained for."""
    config = json.loads(path.read_text())
    config.pop("auto_map", None)  # code of the base's publisher, which was not run
    config["is_causal"] = causal  # transformers, sentence-transformers, vLLM
    if not causal and config["model_type"] != "gemma3_text":  # whose windows it would halve
        config["use_bidirectional_attention"] = True  # text-embeddings-inference
    rope = config.get("rope_parameters") or {}
    if theta := rope.get("rope_theta"):
        config["rope_theta"] = theta  # where tools written for transformers 4 look for it
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope  # text-embeddings-inference refuses it there, and ignores it above
    dump(path, config)


def dump(path: Path, content: Any) -> None:
    """Write JSON that people may read."""
    path.write_text(json.dumps(content, indent=2) + "\n")
