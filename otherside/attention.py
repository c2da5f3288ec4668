"""The one attention function of the project: texts packed end to end, bidirectional or causal, several kernels.

transformers calls `packed_attention` in every layer with the keyword arguments given to the model's forward, so the
borders between texts travel with the call; there is no mask tensor that a library could drop on the way.

A sliding window of w tokens (Mistral, Qwen, Gemma, …) means: in causal attention a token sees itself and the w - 1
tokens before it, as the model was trained; in bidirectional attention all tokens up to w away, on both sides. The
latter is what transformers computes in the encoders of T5Gemma and ModernBERT, and in a decoder whose config says
`is_causal: false` (so exports agree): `sliding_window_bidirectional_overlay`, |i - j| <= w.

A soft cap of c (Gemma 2) turns scores into c tanh(scores / c), before the mask.

Shapes: T tokens of N packed texts, L the longest of them, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from otherside.batching import Packed
from otherside.dropout import dropout as drop

ATTENTION = "otherside_packed"
Kernel = Literal["auto", "sdpa", "eager", "varlen"]
HALF = (torch.float16, torch.bfloat16)
# What a forward also hands down: of no effect on attention, or, as the direction, told by `causal`
HARMLESS = ("is_causal", "position_ids", "cache_position", "use_cache", "output_hidden_states", "output_attentions")
CAPLESS = ("sdpa", "varlen")  # kernels that know no soft cap
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
    _bands: dict[tuple[bool, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

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

    def mask(self, causal: bool, window: int | None) -> Tensor | None:
        """Bool, True where a query (third dimension) sees a key (fourth): for a window (1 or N, 1, L, L), else
        `key_mask`. None: it sees all there is, up to itself if `causal`.
        """
        if window is None:
            return None if causal else self.key_mask
        if (causal, window) not in self._bands:
            self._bands[causal, window] = self._band(causal, window)
        return self._bands[causal, window]

    def _band(self, causal: bool, window: int) -> Tensor:
        places = torch.arange(self.longest, device=self.slots.device)
        distance_LL = places[:, None] - places
        if causal:
            return ((distance_LL >= 0) & (distance_LL < window))[None, None]
        band_LL, itself_LL = distance_LL.abs() <= window, distance_LL == 0
        if self.key_mask is None:
            return band_LL[None, None]
        return band_LL & (self.key_mask | itself_LL)  # who sees nothing at all becomes NaN, and all gradients with it


class Rule(NamedTuple):
    """Who sees whom, and how scores become shares.

    Args:
        causal: a token sees none behind it.
        scaling: of scores.
        dropout: on shares.
        window: how far a token sees; None: as far as texts reach.
        softcap: of scores; None: none.
    """

    causal: bool
    scaling: float
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None

    @property
    def reach(self) -> tuple[int, int]:
        """How many tokens a token sees before and behind it, as flash attention counts them; -1: all."""
        if self.window is None:
            return (-1, 0) if self.causal else (-1, -1)
        return (self.window - 1, 0) if self.causal else (self.window, self.window)


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention inside each text. query (1, H, T, d), key and value (1, G, T, d) -> (1, T, H, d).

    Raises:
        ValueError: the model asks for what this function does not compute, or not with this kernel.
    """
    check_asked(module, others)
    if softcap is not None and kernel in CAPLESS:
        raise ValueError(
            f"backbone.kernel must be auto or eager for a {type(module).__name__}, which caps "
            f"scores (softcap={softcap:g}); got {kernel}. Use kernel: auto."
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = sliding_window if sliding_window is not None and sliding_window < borders.longest else None
    if kernel == "auto":
        best = best_kernel(q.device, q.dtype, borders.longest, dropout, module.training)
        kernel = "eager" if softcap is not None else best
    rule = Rule(causal, scaling, dropout, window, softcap)
    if kernel == "varlen":
        return _unpadded(q, k, v, borders, rule)[None], None
    return _repadded(q, k, v, borders, kernel, rule)[None], None


def check_asked(module: nn.Module, others: dict[str, Any]) -> None:
    """Raise a ValueError if a layer asks for what ours does not compute, such as learned sinks."""
    asked = {name: value for name, value in others.items() if name not in HARMLESS and value is not None}
    for name, value in asked.items():
        shown = f"{name}={value}" if isinstance(value, int | float) else name
        raise ValueError(
            f"backbone.model must be a decoder whose attention is a Llama's, or has windows or soft caps besides; "
            f"{type(module).__name__} asks for {shown}. Use another backbone.model."
        )


def best_kernel(device: torch.device, dtype: torch.dtype, longest: int, dropout: float, training: bool) -> Kernel:
    """For `auto`: SDPA; in half precision `varlen` on CUDA without dropout, on CPUs `eager` to train short texts.

    Whether gradients are wanted must not count: what is computed again in backward was computed without at first, and
    each kernel draws its own dropout.
    """
    if dtype not in HALF:
        return "sdpa"
    if device.type != "cuda":
        return "eager" if longest <= EAGER_UP_TO and training else "sdpa"
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)  # what flash attention needs
    return "varlen" if ampere and not dropout else "sdpa"


def _repadded(q: Tensor, k: Tensor, v: Tensor, borders: Borders, kernel: Kernel, rule: Rule) -> Tensor:
    """Only q, k and v are padded; everything else of the layer sees no padding.

    Padding stands behind each text, so under a causal mask no token looks at it and no key mask is needed.
    """
    q, k, v = borders.pad(q), borders.pad(k), borders.pad(v)
    mask = borders.mask(rule.causal, rule.window)
    if kernel == "eager":
        return borders.unpad(_explicit(q, k, v, mask, rule))
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if grouped and mask is not None and q.is_cuda:  # no fused kernel takes both
        k, v, grouped = (*(x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v)), {})
    causal = rule.causal and mask is None
    out = F.scaled_dot_product_attention(
        q, k, v, mask, dropout_p=rule.dropout, scale=rule.scaling, is_causal=causal, **grouped
    )
    return borders.unpad(out)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attention written out, q (N, H, L, d), k and v (N, G, L, d): the query heads of a group are one product."""
    n, heads, length, size = q.shape
    groups = k.shape[1]
    scores = (q.reshape(n, groups, -1, size) @ k.transpose(-1, -2)).float() * rule.scaling
    scores = scores.view(n, heads, length, length)
    if rule.softcap is not None:
        scores = (scores / rule.softcap).tanh() * rule.softcap
    if rule.causal and mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if mask is not None:  # added, as `masked_fill` takes ten times longer on CPUs
        scores = scores + torch.zeros(mask.shape, device=q.device).masked_fill(~mask, float("-inf"))
    shares = scores.softmax(-1).to(v.dtype)
    if rule.dropout:
        shares = drop(shares, rule.dropout)
    return (shares.view(n, groups, -1, length) @ v).view(n, heads, length, size)


def _unpadded(q: Tensor, k: Tensor, v: Tensor, borders: Borders, rule: Rule) -> Tensor:
    """The kernel that reads the borders itself; CUDA and half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    b, n = borders.starts, borders.longest
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # torch 2.11 groups without being asked
        grouped = {}
    out: Any = varlen_attn(q, k, v, b, b, n, n, scale=rule.scaling, window_size=rule.reach, **grouped)
    return out


AttentionInterface.register(ATTENTION, packed_attention)
