"""What a model must show where it will run, before it is trusted: the mask asked for, and its own forward's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from otherside.attention import HALF, Kernel
from otherside.batching import Packed

if TYPE_CHECKING:
    from otherside.backbone import Backbone

LENGTHS = [5, 3]
WINDOW = 3
# Relative. Found on 30 layers: 1e-5, and .06 in bfloat16, where kernels round differently; wrong numbers differ more
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.2
WIDEST = 0.9  # states that are all zero are off by 1


class MaskError(RuntimeError):
    """The model does not compute what was asked for: another attention, or other numbers than its own forward's."""


@torch.no_grad()
def self_test(backbone: Backbone) -> None:
    """See `Backbone.self_test`. All ranks must call it where weights are shared between them."""
    training, kernel = backbone.training, backbone.kernel
    on_cpu = backbone.device.type == "cpu"
    if on_cpu and kernel == "varlen":
        raise ValueError("backbone.kernel: varlen must run on a CUDA device; this is a CPU. Use kernel: auto.")
    kernels: tuple[Kernel, ...] = ("eager", "sdpa") if kernel == "auto" and on_cpu else (kernel,)
    if kernel == "auto" and on_cpu and backbone.own_kernel == "eager":  # scores are capped
        kernels = ("eager",)
    has_dropout = any(getattr(module, "attention_dropout", 0) for module in backbone.lm.modules())
    try:
        with short_windows(backbone.lm):
            for mode in (False, True) if has_dropout else (False,):  # with dropout, training may take another kernel
                backbone.train(mode)
                for backbone.kernel in kernels:
                    _test_mask(backbone)
            backbone.eval()
            _test_numbers(backbone, kernels)
    finally:
        backbone.train(training)
        backbone.kernel = kernel


@contextmanager
def short_windows(lm: Any) -> Iterator[None]:
    """Inside the block sliding windows, where layers have them, are short enough to matter in a short text."""
    parts = [lm.config, *lm.modules()]
    windows = [(part, part.sliding_window) for part in parts if isinstance(getattr(part, "sliding_window", None), int)]
    try:
        for part, window in windows:
            part.sliding_window = min(window, WINDOW)
        yield
    finally:
        for part, window in windows:
            part.sliding_window = window


def _test_mask(backbone: Backbone) -> None:
    device = backbone.device
    ids = _ids(backbone)
    none = torch.tensor([0, 0])
    texts = Packed(ids, lengths=torch.tensor(LENGTHS), skip=none, start=none)
    changed = ids.clone()
    changed[4] = (ids[4] + sum(LENGTHS)) % backbone.lm.config.vocab_size  # none of the others
    states = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for tokens in (ids, changed):
            torch.manual_seed(0)  # the same dropout in both
            states.append(backbone(replace(texts, input_ids=tokens)).float())
    before, after = states
    moved = (before - after).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)
    early, late, neighbour = moved[:4].max().item(), moved[4].item(), moved[5:].max().item()
    sees_future = early > 1e-6
    where = _where(backbone)
    remedy = "Use another backbone.kernel (sdpa, eager) or the tested versions of transformers and torch."
    if not torch.isfinite(moved).all():
        raise MaskError(f"hidden states must be finite; some are not ({where}). {remedy}")
    if late == 0:
        raise MaskError(f"the model must react to its input; changing a token changed nothing ({where})")
    if sees_future != (backbone.attention == "bidirectional"):
        seen = "sees" if sees_future else "does not see"
        raise MaskError(
            f"attention must be {backbone.attention}, but an early token {seen} later ones ({where}). {remedy}"
        )
    if neighbour > 1e-6:
        raise MaskError(f"packed texts must not see each other, but they do ({where}). {remedy}")


def _test_numbers(backbone: Backbone, kernels: tuple[Kernel, ...]) -> None:
    """States and logits of one text against transformers' own forward, adapters included.

    It is causal, unless config.json says otherwise, as that of an exported encoder does. In half precision states that
    have grown to thousands and cancel at the end leave two correct kernels with little in common: there ours may differ
    from transformers' eager attention by twice as much as its SDPA does.
    """
    ids = _ids(backbone)
    none = torch.tensor([0])
    text = Packed(ids, lengths=torch.tensor([len(ids)]), skip=none, start=none)
    is_causal = getattr(backbone.lm.config, "is_causal", True) is not False
    attention, backbone.attention = backbone.attention, "causal" if is_causal else "bidirectional"
    try:
        own, logits = _by_transformers(backbone, ids, "eager")
        allowed = TOLERANCE
        if backbone.dtype in HALF:
            other = _by_transformers(backbone, ids, backbone.own_kernel)[0]
            allowed = max(HALF_TOLERANCE, min(2 * _off(other, own), WIDEST))
        for backbone.kernel in kernels:
            _compare("hidden states", backbone(text), own, backbone, allowed)
        closest = HALF_TOLERANCE if backbone.dtype in HALF else TOLERANCE  # they are of the same states
        _compare("logits", backbone.logits(own), logits, backbone, closest)
    finally:
        backbone.attention = attention


def _by_transformers(backbone: Backbone, ids: Tensor, kind: Literal["eager", "sdpa"]) -> tuple[Tensor, Tensor]:
    """Last hidden states (T, D) and logits (T, V) of the model's own forward."""
    inner: list[Any] = []  # what `output_hidden_states` returns is lost where FSDP2 wraps modules
    hook = backbone.lm.base_model.register_forward_hook(lambda module, inputs, output: inner.append(output))
    try:
        with backbone.own_attention(kind), backbone.base_type(ids.device):
            logits = backbone.lm(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        hook.remove()
    return inner[0].last_hidden_state[0], logits


def _off(found: Tensor, own: Tensor) -> float:
    """Relative to the size of `own`."""
    return ((found.float() - own.float()).norm() / own.float().norm().clamp_min(1e-30)).item()


def _compare(what: str, found: Tensor, own: Tensor, backbone: Backbone, allowed: float) -> None:
    if not (off := _off(found, own)) <= allowed:
        raise MaskError(
            f"{what} must be those of the model's own forward; of a {backbone.lm.config.model_type} they are off by "
            f"{off:.2g} of their size ({_where(backbone)}). Use another backbone.model, another backbone.kernel or the "
            "tested versions of transformers and torch."
        )


def _ids(backbone: Backbone) -> Tensor:
    """Ordinary words from the middle of the vocabulary, behind the start token where its sink is kept.

    The first numbers are special tokens to many tokenizers. States of these may grow to thousands and cancel at the
    end, so that two correct kernels in bfloat16 differ by as much as there is.
    """
    size, sink = backbone.lm.config.vocab_size, backbone.sink
    ids = torch.arange(size // 2, size // 2 + sum(LENGTHS), device=backbone.device) % size
    if sink is not None:
        ids[0] = sink.token
    return ids


def _where(backbone: Backbone) -> str:
    return f"kernel {backbone.kernel}, {backbone.device.type}, {backbone.dtype}"
