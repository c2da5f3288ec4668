"""Lightning's strategies, with three additions: a short time-out (`waiting`), weights that are sharded while they are
loaded, and checkpoints that depend neither on the strategy nor on the number of ranks.

`trainer.strategy` takes their names: ddp, zero1, zero2, zero3, fsdp2.
"""

from lightning.pytorch.strategies import StrategyRegistry

from lightning_modules.strategies.ddp import DDP
from lightning_modules.strategies.fsdp2 import FSDP2
from lightning_modules.strategies.sharded import Sharded
from lightning_modules.strategies.zero import ZeRO

__all__ = ["DDP", "FSDP2", "Sharded", "ZeRO"]

for stage in (1, 2, 3):
    StrategyRegistry.register(f"zero{stage}", ZeRO, override=True, stage=stage)
StrategyRegistry.register("ddp", DDP, override=True)
StrategyRegistry.register("fsdp2", FSDP2, override=True)
