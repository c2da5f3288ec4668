"""What strategies share that share out weights or optimizer states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.waiting import LOADING, Patient
from otherside import distributed


class Sharded(Patient):
    """What ZeRO and FSDP2 have in common. Their checkpoints are those of a single process: rank 0 gathers what is
    trained and its optimizer's state, tensor by tensor; every strategy with any number of ranks can go on from there.
    """

    @abstractmethod
    def shard(self, modules: list[nn.Module]) -> None:
        """Share the weights of `modules` between the ranks; rank 0's values count."""

    @abstractmethod
    def whole(self, parameter: nn.Parameter) -> Tensor | None:
        """A parameter's values, unsharded, on rank 0 and in the host's memory; None elsewhere. All ranks must ask."""

    @abstractmethod
    def set_whole(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give a parameter the values that all ranks pass."""

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained by name, in the optimizer's order."""
        assert self.lightning_module is not None
        return {name: p for name, p in self.lightning_module.named_parameters() if p.requires_grad}

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trainable weights, on rank 0; empty elsewhere."""
        return self.on_first({name: self.whole(parameter) for name, parameter in self.trainable.items()})

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        for name, parameter in self.trainable.items():
            self.set_whole(parameter, checkpoint["state_dict"][name].to(self.root_device))

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        with self.writing():
            Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        found = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        distributed.meet(LOADING)  # each reads all of it, at its own pace
        return found

    def on_first(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """What was gathered, on rank 0, which writes it; no other rank has copied it to the host."""
        return values if self.is_global_zero else {}


def has_shape(value: Any) -> bool:
    """Whether a value of an optimizer's state belongs to each element of the parameter."""
    return torch.is_tensor(value) and value.dim() > 0
