"""How long ranks wait for each other: an hour until all have come and loaded, a short time-out from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch.strategies import ParallelStrategy
from typing_extensions import override

from otherside import distributed

if TYPE_CHECKING:
    import lightning.pytorch as pl

TIMEOUT = 120.0
LOADING = 3600.0  # seconds that ranks wait for the slowest to come and to load the base; dead ones are found sooner


class Patient(ParallelStrategy):
    """A strategy with two time-outs, as torchtitan has them (`init_timeout_seconds`, `train_timeout_seconds`).

    What is short enough to end a hang is too short for a checkpoint of a large model, and for a start: nodes import
    from a cold file system, download and read the base, each at its own pace. So process groups are made with
    `START`, and when all ranks are ready every one that there is gets `timeout`. That reaches groups which the
    strategy cannot be told a time-out for: DeepSpeed works in a clone of the first group, to which torch gives its
    own default (NCCL 10 minutes, gloo 30).
    """

    START: ClassVar[timedelta] = timedelta(seconds=LOADING)
    timeout: timedelta

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        distributed.meet(LOADING)  # who shortens its wait while another is still at work would wait too short
        distributed.wait_at_most(self.timeout)

    @override
    def teardown(self) -> None:
        """Lightning moves all to the host here; what only training needs would be there once for each rank."""
        self.optimizers = []
        if self.lightning_module is not None:
            self.lightning_module.zero_grad(set_to_none=True)
        super().teardown()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        with self.writing():
            super().save_checkpoint(checkpoint, filepath, storage_options)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Rank 0 writes, and reads what it wrote, which may take longer than a step may; all come at once."""
        self.barrier()
        distributed.wait_at_most(self.START)
        yield
        self.barrier()  # unlike a meeting at the store, hears at once of a rank that died
        distributed.wait_at_most(self.timeout)
