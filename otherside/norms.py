"""RMSNorm on GPUs by one kernel of torch; transformers runs a chain of six."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedRMSNorm(nn.Module):
    """The forward of a norm which `fuse` replaces."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        if not hidden_states.is_cuda:  # where torch has the same chain
            return super().forward(hidden_states)
        with torch.autocast("cuda", enabled=False):  # which would give float32
            weight = self.weight.to(hidden_states.dtype)  # float32 in full fine-tuning
            return F.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the class that it replaces, as its own is in no module."""
        return _unpickled, type(self).__bases__[1:], self.__dict__


def _unpickled(kind: Any) -> nn.Module:
    fused: Any = _fused(kind)
    return fused.__new__(fused)


def fuse(lm: nn.Module) -> None:
    """Turn the norms of `lm` into `FusedRMSNorm`, where that computes the same."""
    for module in lm.modules():
        kind: Any = type(module)
        if fused := _fused(kind):
            module.__class__ = fused


@cache
def _fused(kind: Any) -> type[nn.Module] | None:
    """The class to take instead; None for what is another function, such as Gemma's, which adds 1 to its weights."""
    if not kind.__name__.endswith("RMSNorm") or issubclass(kind, FusedRMSNorm):
        return None
    fused = type(kind.__name__, (FusedRMSNorm, kind), {"__module__": kind.__module__})
    draw = torch.Generator("cpu").manual_seed(0)
    with torch.device("cpu"), torch.no_grad():
        try:
            norm: Any = kind(8, eps=0.1)
        except TypeError:
            return None
        if not hasattr(norm, "variance_epsilon"):
            return None
        norm.weight.copy_(torch.rand(8, generator=draw))
        x = torch.randn(4, 8, generator=draw)
        same = torch.allclose(norm(x), F.rms_norm(x, (8,), norm.weight, 0.1), atol=1e-6)
    return fused if same else None
