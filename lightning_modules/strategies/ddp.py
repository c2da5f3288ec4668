"""DistributedDataParallel."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from lightning_modules.waiting import TIMEOUT, Patient


class DDP(Patient, DDPStrategy):
    """Every rank holds the whole model; gradients are averaged.

    Args:
        timeout: seconds that ranks wait for each other in training before the run ends with an error.
        kwargs: see `lightning.pytorch.strategies.DDPStrategy`.
    """

    def __init__(self, timeout: float = TIMEOUT, **kwargs: Any) -> None:
        kwargs = {"gradient_as_bucket_view": True, **kwargs}  # no second copy, to be reduced in
        super().__init__(timeout=self.START, **kwargs)
        self.timeout = timedelta(seconds=timeout)
