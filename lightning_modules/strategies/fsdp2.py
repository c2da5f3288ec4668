"""torch's own sharding."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.strategies.sharded import Sharded, has_shape
from lightning_modules.waiting import TIMEOUT


class FSDP2(Sharded, ModelParallelStrategy):
    """torch's own sharding of weights, gradients and optimizer states.

    Args:
        timeout: seconds that ranks wait for each other in training before the run ends with an error.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=self.START)
        self.timeout = timedelta(seconds=timeout)

    shards_weights = True

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    @override
    def shard(self, modules: list[nn.Module]) -> None:
        for module in modules:
            module.to(self.root_device)
            for parameter in module.parameters():
                if not isinstance(parameter, DTensor):
                    dist.broadcast(parameter.data, src=0)
        fully_shard(modules, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)

    @override
    def whole(self, parameter: nn.Parameter) -> Tensor | None:
        return self._whole(parameter.detach())

    def _whole(self, value: Any) -> Any:
        """As `whole`, of a parameter or of what an optimizer keeps of one."""
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if not self.is_global_zero:
            return None
        return whole.cpu() if torch.is_tensor(whole) else whole

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            if isinstance(module, FSDPModule):  # behind the head, tied embeddings are whole until they run: what is set
                module.reshard()  # would go with that copy
        super().load_model_state_dict(checkpoint, strict)

    @override
    def set_whole(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(_like(value, parameter))

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As torch's optimizer would have it in a single process; on rank 0."""
        saved = optimizer.state_dict()
        state = {i: {k: self._whole(v) for k, v in entry.items()} for i, entry in saved["state"].items()}
        return self.on_first({**saved, "state": state})

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                i: {k: _like(v.to(self.root_device), parameters[i]) if has_shape(v) else v for k, v in entry.items()}
                for i, entry in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """`value`, which all ranks have, sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
