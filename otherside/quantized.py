"""QLoRA (Dettmers et al., 2023): an adapter is trained on a frozen base whose layers' matrices have four bits a weight.

Each block of 64 weights is divided by its largest and rounded to 16 quantiles of a normal distribution (NF4); of these
largest values 256 at a time are rounded to eight bits in turn (double quantisation). They are multiplied with in the
base's type: each matrix is written out in it when it is needed. All else, embeddings, head and norms, keeps its type.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from otherside.full import Full

if TYPE_CHECKING:
    from otherside.adapters import Lora

Quantized = Literal["nf4"]
MOST = 0.9  # of a layer's weights; norms are the rest


def check(new: Lora | Full | None, is_sharded: bool = False) -> None:
    """Raise a ValueError where this cannot be trained on a base in four bits, or none can be made here.

    Args:
        new: what is to be trained.
        is_sharded: whether ranks share the base's weights out.
    """
    if isinstance(new, Full):
        raise ValueError(
            "model.backbone.quantized needs an adapter to train, as rounded weights cannot be; got model.lora: null. "
            "Set model.lora, or quantized: null."
        )
    if is_sharded:
        raise ValueError(
            "model.backbone.quantized needs ranks that hold the whole base, four bits a weight; got a strategy that "
            "shares it out (zero3, fsdp2). Use trainer.strategy: ddp, zero1 or zero2, or quantized: null."
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "model.backbone.quantized needs the package bitsandbytes, which is not installed. Run "
            "`pip install 'otherside[quantized]'`."
        )


def quantize(layer: nn.Module, dtype: torch.dtype) -> None:
    """Round the matrices of a decoder's layer, where it is; PEFT finds out by itself how to adapt them.

    Args:
        layer: with its matrices in torch's own linear layers.
        dtype: that they are multiplied in.

    Raises:
        ValueError: it has most of its weights elsewhere, as experts of a mixture are.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    linear = {name: part for name, part in layer.named_modules() if type(part) is nn.Linear}
    inside = sum(part.weight.numel() for part in linear.values())
    total = sum(parameter.numel() for parameter in layer.parameters())
    if inside < MOST * total:
        raise ValueError(
            f"backbone.quantized needs layers with their weights in torch's nn.Linear; of a {type(layer).__name__}'s "
            f"{inside / total:.0%} are. Set quantized: null, or use another backbone.model."
        )
    for name, part in linear.items():
        rounded: Any = Linear4bit(
            part.in_features, part.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        weight: Any = Params4bit(part.weight.data, requires_grad=False, quant_type="nf4", module=rounded)
        rounded.weight, rounded.bias = weight.to(part.weight.device), part.bias
        # Else a CPU's first forward without gradient would round the constants again, for good, and a later one with
        # a gradient would have none
        rounded.support_avx512bf16_for_cpu = False
        layer.set_submodule(name, rounded)
    layer.is_loaded_in_4bit = True  # type: ignore[assignment]  # which PEFT looks for


def is_quantized(lm: nn.Module) -> bool:
    """Whether some of its weights have four bits."""
    return any(hasattr(parameter, "quant_state") for parameter in lm.parameters())
