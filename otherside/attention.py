"""The one attention function of the project: texts packed end to end, bidirectional or causal, several kernels.

transformers calls `packed_attention` in every layer with the keyword arguments given to the model's forward, so the
borders between texts travel with the call; there is no mask tensor that a library could drop on the way.

Shapes: T tokens of N packed texts, L the longest of them, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from otherside.batching import Packed
from otherside.dropout import dropout as drop

ATTENTION = "otherside_packed"
Kernel = Literal["auto", "sdpa", "eager", "varlen", "flash_attention_2"]
HALF = (torch.float16, torch.bfloat16)
# What a forward also hands down: of no effect on attention, or, as the direction, told by `causal`
HARMLESS = ("is_causal", "position_ids", "cache_position", "use_cache", "output_hidden_states", "output_attentions")
EAGER_UP_TO = 128  # tokens; for short texts in half precision the backward of torch's CPU kernel is far slower


def _spread(x: Tensor, slots: Tensor, rows: int) -> Tensor:
    """The first rows of x, as many as there are `slots`, to these rows of a zero tensor."""
    return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, slots, x[: len(slots)])


def _collect(x: Tensor, slots: Tensor, rows: int) -> Tensor:
    """The rows `slots` of x, and behind them zeros up to `rows` rows."""
    found = x.index_select(0, slots)
    return found if len(found) == rows else torch.cat([found, x.new_zeros(rows - len(found), *x.shape[1:])])


class _Spread(torch.autograd.Function):
    """`_spread`. Each slot is used once, so backward only reads them back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, rows: int) -> Tensor:
        ctx.slots, ctx.rows = slots, len(x)
        return _spread(x, slots, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _collect(grad, ctx.slots, ctx.rows), None, None


class _Collect(torch.autograd.Function):
    """`_collect`. PyTorch's own backward adds up where this one, each slot being read once, copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, rows: int) -> Tensor:
        ctx.slots, ctx.rows = slots, len(x)
        return _collect(x, slots, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _spread(grad, ctx.slots, ctx.rows), None, None


@dataclass(frozen=True)
class Borders:
    """Where texts begin and end, on the device of the tokens; computed once per forward for all layers.

    Args:
        starts: (N + 1,) int32, cumulative lengths.
        slots: (T,) int64, each token's place in a padded (N, L) grid.
        count: N.
        longest: L, or more.
        even: whether all texts are that long (the grid has no holes).
        filler: tokens behind the last text that take no part in attention.
    """

    starts: Tensor
    slots: Tensor
    count: int
    longest: int
    even: bool
    filler: int = 0

    @classmethod
    def of(cls, texts: Packed, longest: int | None = None, filler: int = 0) -> Borders:
        """Borders of a packed batch with `filler` tokens behind it; `longest` makes its grid wider."""
        longest = longest or int(texts.lengths.max())
        return cls(
            starts=F.pad(texts.sizes[0].cumsum(0, dtype=torch.int32), (1, 0)),
            slots=texts.owners * longest + texts.positions,
            count=len(texts),
            longest=longest,
            even=int(texts.lengths.min()) == longest,
            filler=filler,
        )

    @property
    def dense(self) -> bool:
        """Whether the tokens fill the grid as they stand."""
        return self.even and not self.filler

    def pad(self, x_THd: Tensor) -> Tensor:
        """(T, H, d) -> (N, H, L, d), holes zero."""
        if not self.dense:
            x_THd = _Spread.apply(x_THd, self.slots, self.count * self.longest)
        return x_THd.unflatten(0, (self.count, self.longest)).transpose(1, 2)

    def unpad(self, x_NHLd: Tensor) -> Tensor:
        """(N, H, L, d) -> (T, H, d)."""
        flat = x_NHLd.transpose(1, 2).flatten(0, 1)
        return flat if self.dense else _Collect.apply(flat, self.slots, len(self.slots) + self.filler)

    @cached_property
    def key_mask(self) -> Tensor | None:
        """(N, 1, 1, L) bool, True where a token stands; None if the grid has no holes."""
        if self.even:
            return None
        mask = torch.zeros(self.count * self.longest, dtype=torch.bool, device=self.slots.device)
        return mask.index_fill(0, self.slots, True).view(self.count, 1, 1, self.longest)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    borders: Borders,
    causal: bool,
    kernel: Kernel,
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention inside each text. query (1, H, T, d), key and value (1, G, T, d) -> (1, T, H, d).

    Raises:
        ValueError: the model asks for what Llama does not have and this function does not compute.
    """
    check_asked(module, others)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if kernel == "auto":
        kernel = best_kernel(q, borders.longest, dropout)
    if kernel in ("varlen", "flash_attention_2"):
        out = _unpadded(q, k, v, borders, causal, kernel, scaling, dropout)
    else:
        out = _repadded(q, k, v, borders, causal, kernel, scaling, dropout)
    return out[None], None


def check_asked(module: nn.Module, others: dict[str, Any]) -> None:
    """Raise a ValueError if a layer asks for an attention that is not Llama's, such as sinks, caps or a window."""
    asked = {name: value for name, value in others.items() if name not in HARMLESS and value is not None}
    for name, value in asked.items():
        shown = f"{name}={value}" if isinstance(value, int | float) else name
        window = ' If no text is longer, set "sliding_window": null in its config.json.'
        raise ValueError(
            f"backbone.model must be a decoder whose attention is a Llama's; {type(module).__name__} asks for {shown}. "
            f"Use another backbone.model.{window if name == 'sliding_window' else ''}"
        )


def best_kernel(query: Tensor, longest: int, dropout: float) -> Kernel:
    """For `auto`: SDPA; in half precision `varlen` on CUDA without dropout, on CPUs `eager` to train short texts."""
    if query.dtype not in HALF:
        return "sdpa"
    if not query.is_cuda:
        return "eager" if longest <= EAGER_UP_TO and torch.is_grad_enabled() else "sdpa"
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    ampere = torch.cuda.get_device_capability(query.device) >= (8, 0)  # what flash attention needs
    return "varlen" if has_varlen and ampere and not dropout else "sdpa"


def _repadded(
    q: Tensor, k: Tensor, v: Tensor, borders: Borders, causal: bool, kernel: Kernel, scaling: float, dropout: float
) -> Tensor:
    """Only q, k and v are padded; everything else of the layer sees no padding.

    Padding stands behind each text, so under a causal mask no token looks at it and no key mask is needed.
    """
    q, k, v = borders.pad(q), borders.pad(k), borders.pad(v)
    mask = None if causal else borders.key_mask
    if kernel == "eager":
        return borders.unpad(_explicit(q, k, v, mask, causal, scaling, dropout))
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if grouped and mask is not None and q.is_cuda:  # no fused kernel takes both
        k, v, grouped = (*(x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v)), {})
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scaling, is_causal=causal, **grouped)
    return borders.unpad(out)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scaling: float, dropout: float
) -> Tensor:
    """Attention written out, q (N, H, L, d), k and v (N, G, L, d): the query heads of a group are one product."""
    n, heads, length, size = q.shape
    groups = k.shape[1]
    scores = (q.reshape(n, groups, -1, size) @ k.transpose(-1, -2)).float() * scaling
    scores = scores.view(n, heads, length, length)
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if mask is not None:  # added, as `masked_fill` takes ten times longer on CPUs
        scores = scores + torch.zeros(mask.shape, device=q.device).masked_fill(~mask, float("-inf"))
    shares = scores.softmax(-1).to(v.dtype)
    if dropout:
        shares = drop(shares, dropout)
    return (shares.view(n, groups, -1, length) @ v).view(n, heads, length, size)


def _unpadded(
    q: Tensor, k: Tensor, v: Tensor, borders: Borders, causal: bool, kernel: Kernel, scaling: float, dropout: float
) -> Tensor:
    """Kernels that read the borders themselves; CUDA and half precision only."""
    b, n = borders.starts, borders.longest
    if kernel == "flash_attention_2":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, b, b, n, n, dropout_p=dropout, softmax_scale=scaling, causal=causal)
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # torch 2.11 groups without being asked
        grouped = {}
    out: Any = varlen_attn(q, k, v, b, b, n, n, scale=scaling, window_size=window, **grouped)
    return out


def check_kernel(kernel: Kernel) -> None:
    """Raise if `kernel` is unknown or its package is not installed."""
    if kernel not in get_args(Kernel):
        raise ValueError(f"backbone.kernel must be one of {', '.join(get_args(Kernel))}; got {kernel!r}")
    if kernel == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ValueError(
            "backbone.kernel: flash_attention_2 needs the package flash-attn, which is not installed. "
            "Install it or use kernel: auto."
        )


AttentionInterface.register(ATTENTION, packed_attention)
