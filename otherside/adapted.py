"""Linear layers that read one tensor, with their LoRA, as one autograd function.

PEFT runs a chain of small operations for each layer, whose results are as large as the layer's own. Here products add
up in place, one product serves the A of all layers, and backward masks once what dropout left out.

Shapes: T tokens, D size of the input, E size of a layer's output, R rank of an adapter, or of all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from otherside.dropout import drop, same


class AdaptedLinear(lora.Linear):
    """PEFT's layer with a forward of its own, where `Readers` knows how; else with PEFT's."""

    readers: Readers

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, D) -> (…, E)."""
        output = None if args or kwargs else self.readers(self, x)
        return super().forward(x, *args, **kwargs) if output is None else output


class Readers:
    """Layers of a block that read the same tensor. The first that is called computes the outputs of all.

    Args:
        layers: with an adapter of this name, whose dropout they share.
        name: of the adapter.
    """

    def __init__(self, layers: Sequence[AdaptedLinear], name: str) -> None:
        self.layers, self.name = layers, name
        self._input: Tensor | None = None
        self._outputs: dict[AdaptedLinear, Tensor] = {}

    def __call__(self, layer: AdaptedLinear, x: Tensor) -> Tensor | None:
        """The output of one of the layers; None where only PEFT knows it."""
        if layer not in self._outputs or not same(x, self._input):
            if not all(self._knows(reader, x) for reader in self.layers):
                return None
            self._input, self._outputs = x, dict(zip(self.layers, self._run(x), strict=True))
        output = self._outputs.pop(layer)
        if not self._outputs:
            self._input = None
        return output

    def _knows(self, layer: AdaptedLinear, x: Tensor) -> bool:
        """Whether this adapter alone is at work, on a frozen base, scaled as the others, in one type, and no hook
        waits for a part to be called: ZeRO-3's bring the weights.
        """
        if layer.disable_adapters or layer.merged or layer.active_adapters != [self.name]:
            return False
        parts: list[Any] = [layer.base_layer, layer.lora_A[self.name], layer.lora_B[self.name]]
        return (
            layer.scaling[self.name] == self.layers[0].scaling[self.name]
            and (torch.is_autocast_enabled(x.device.type) or {part.weight.dtype for part in parts} == {x.dtype})
            and not any(weight.requires_grad for weight in parts[0].parameters())
            and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        )

    def _run(self, x: Tensor) -> tuple[Tensor, ...]:
        weights: list[Any] = []
        for layer in self.layers:
            base: Any = layer.base_layer
            weights += [base.weight, base.bias, layer.lora_A[self.name].weight, layer.lora_B[self.name].weight]
        first = self.layers[0]
        dropout: Any = first.lora_dropout[self.name]
        p = dropout.p if dropout.training and not isinstance(dropout, nn.Identity) else 0.0
        return _Adapted.apply(x, p, first.scaling[self.name], *weights)


class _Adapted(torch.autograd.Function):
    """For each layer x W^T + bias + scaling * dropped(x) A^T B^T, with gradients of x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, scaling: float, *weights: Any) -> tuple[Tensor, ...]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        w_ED, biases, a_RD, b_ER = (weights[i::4] for i in range(4))
        ctx.shape, ctx.dtype, ctx.adapter_dtype = x.shape, x.dtype, a_RD[0].dtype
        ctx.scaling, ctx.ranks = scaling, [len(a) for a in a_RD]
        x_TD = x.reshape(-1, x.shape[-1]).to(dtype)
        dropped_TD, keep_TD, ctx.scale = drop(x_TD, p) if p else (x_TD, None, 1.0)
        scaled_RD = (torch.cat(a_RD) * scaling).to(dtype)
        rounded_ER = [b.to(dtype) for b in b_ER]
        inner_TR = dropped_TD @ scaled_RD.t()
        outputs = []
        for w, bias, b, inner in zip(w_ED, biases, rounded_ER, inner_TR.split(ctx.ranks, 1), strict=True):
            w_DE = w.to(dtype).t()
            y_TE = x_TD @ w_DE if bias is None else torch.addmm(bias.to(dtype), x_TD, w_DE)
            outputs.append(y_TE.addmm_(inner, b.t()).view(*x.shape[:-1], len(w)))
        ctx.save_for_backward(dropped_TD, keep_TD, inner_TR, scaled_RD, *rounded_ER, *w_ED)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return _Adapted._gradients(ctx, *grads)

    @staticmethod
    def _gradients(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dropped_TD, keep_TD, inner_TR, scaled_RD, *weights = ctx.saved_tensors
        b_ER, w_ED = weights[: len(grads)], weights[len(grads) :]
        grads_TE = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grad_inner_TR = torch.cat([grad @ b for grad, b in zip(grads_TE, b_ER, strict=True)], 1)
        grad_a = (grad_inner_TR.t() @ dropped_TD).to(ctx.adapter_dtype) * ctx.scaling
        grads_b = [grad.t() @ inner for grad, inner in zip(grads_TE, inner_TR.split(ctx.ranks, 1), strict=True)]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_TD = grad_inner_TR @ (scaled_RD * ctx.scale)
            if keep_TD is not None:
                grad_TD.mul_(keep_TD)
            for grad, w in zip(grads_TE, w_ED, strict=True):
                grad_TD.addmm_(grad, w.to(grad.dtype))
            grad_x = grad_TD.view(ctx.shape).to(ctx.dtype)
        pairs = zip(grad_a.split(ctx.ranks), grads_b, strict=True)
        return grad_x, None, None, *(g for a, b in pairs for g in (None, None, a, b.to(ctx.adapter_dtype)))


def fuse(lm: nn.Module, groups: Sequence[Sequence[str]], name: str) -> None:
    """Turn the layers of `lm` whose adapter of this name is a plain LoRA into `AdaptedLinear`.

    Args:
        lm: a model or a part of one.
        groups: names of the layers of a block that read the same tensor and share its dropout.
        name: of the adapter.
    """
    for block in list(lm.modules()):
        for group in groups:
            layers: list[Any] = [layer for key in group if _is_plain(layer := getattr(block, key, None), name)]
            readers = Readers(layers, name)
            for layer in layers:
                layer.__class__, layer.readers = AdaptedLinear, readers


def _is_plain(layer: Any, name: str) -> bool:
    """Whether its base is torch's own layer (a quantised one is not) and its adapter no variant such as DoRA."""
    return (
        type(layer) is lora.Linear
        and type(layer.base_layer) is nn.Linear
        and name in layer.lora_A
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
        and not layer.fan_in_fan_out
    )
