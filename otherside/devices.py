"""From the host to a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`. A GPU is not waited for, busy as it may be with the step before: copies to it are from pinned
    memory.
    """
    if x.is_cpu and torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
