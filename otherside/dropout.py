"""Dropout that is cheap on CPUs, and one that several layers share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORD = 2**16  # drawn at once are 64 random bits, read as four words


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each value of x with probability p (on the CPU rounded to 1 / 65,536) and scale the others to keep the mean.

    torch's CPU kernel draws number by number; this one draws four words at a time. It multiplies by 0 and 1 (kept in
    a byte), as torch's kernels that select (`where`, `masked_fill`) take ten times longer on CPUs.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    keep, scale = _draw(x, p)
    return (x * keep) * scale


def drop(x: Tensor, p: float) -> tuple[Tensor, Tensor, float]:
    """`dropout` without gradient: its result, what was kept, and what that was multiplied by."""
    if x.device.type != "cpu":
        dropped, keep = torch.native_dropout(x, p, True)
        return dropped, keep, 1 / (1 - p)
    keep, scale = _draw(x, p)
    return (x * keep).mul_(scale), keep, scale


def _draw(x: Tensor, p: float) -> tuple[Tensor, float]:
    dropped = round(p * WORD)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    words = words[: x.numel()].view(x.shape)
    keep = torch.ge(words, dropped - WORD // 2, out=torch.empty_like(words)).to(torch.int8)
    return keep, WORD / (WORD - dropped)


class SharedDropout(nn.Module):
    """Dropout whose result is reused by the layers that read the same tensor (q, k, v; gate, up).

    Drawing masks is the largest hidden cost of LoRA. The last input and its result are kept until another input
    comes or `users` layers have read it, so nothing outlives the layer's forward.
    """

    def __init__(self, p: float, users: int = 1) -> None:
        super().__init__()
        self.p, self.users = p, users
        self._input: Tensor | None = None
        self._dropped: Tensor | None = None
        self._reads = 0

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape; itself in eval mode."""
        if not self.training:
            return x
        if not same(x, self._input):
            self._input, self._dropped, self._reads = x, dropout(x, self.p), 0
        dropped = self._dropped
        assert dropped is not None
        self._reads += 1
        if self._reads == self.users:
            self._input = self._dropped = None
        return dropped


def same(x: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are one in memory: ZeRO-3 hands each layer a wrapper of its own around the same input."""
    if x is other or other is None:
        return x is other
    return x.data_ptr() == other.data_ptr() != 0 and x.shape == other.shape and x.stride() == other.stride()
