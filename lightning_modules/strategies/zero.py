"""DeepSpeed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.sizing.job import BUCKET
from lightning_modules.strategies.sharded import Sharded, has_shape
from lightning_modules.waiting import TIMEOUT
from otherside.sharding import whole_shape

if TYPE_CHECKING:
    import lightning.pytorch as pl


class ZeRO(Sharded, DeepSpeedStrategy):
    """DeepSpeed ZeRO, on CPUs too.

    The backbone computes in `backbone.dtype` and adapters are float32, as under every other strategy.

    Args:
        stage: 1 shards optimizer states, 2 also gradients, 3 also weights.
        timeout: seconds that ranks wait for each other in training before the run ends with an error.
        kwargs: see `lightning.pytorch.strategies.DeepSpeedStrategy`.
    """

    def __init__(self, stage: int = 2, timeout: float = TIMEOUT, **kwargs: Any) -> None:
        if find_spec("deepspeed") is None:
            raise ValueError(
                f"trainer.strategy zero{stage} must have the package deepspeed (Linux); it is not installed. "
                "Run `pip install deepspeed`, or use trainer.strategy: fsdp2."
            )
        for bucket in ("reduce_bucket_size", "allgather_bucket_size"):
            kwargs.setdefault(bucket, BUCKET)
        super().__init__(stage=stage, timeout=self.START, **kwargs)
        self.timeout = timedelta(seconds=timeout)
        assert isinstance(self.config, dict)
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)  # only DeepSpeed's own log reads it
        self.config.setdefault("zero_force_ds_cpu_optimizer", False)  # offloaded, torch's optimizer needs no C++ build

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING and trainer.accumulate_grad_batches > 1:
            self._check_epoch(trainer)

    def _check_epoch(self, trainer: pl.Trainer) -> None:
        """DeepSpeed counts batches on through epochs, Lightning anew in each, where it ends with a smaller step."""
        trainer.fit_loop.setup_data()  # or their number may not be known yet
        batches, each = trainer.num_training_batches, trainer.accumulate_grad_batches
        last = trainer.max_steps * each if trainer.max_steps > 0 else float("inf")
        if trainer.fast_dev_run or last <= batches:  # type: ignore[attr-defined]  # no epoch comes after another
            return
        if isinstance(batches, int) and batches % each:  # without a length it is infinite
            raise ValueError(
                "the batches of an epoch must be a multiple of trainer.accumulate_grad_batches with ZeRO; got "
                f"{batches} and {each}. Set trainer.limit_train_batches to {max(batches // each, 1) * each}."
            )

    @override
    def setup_environment(self) -> None:
        if (precision := self.precision_plugin.precision) != "32-true":
            raise ValueError(
                f"trainer.precision must be 32-true with ZeRO, or DeepSpeed would round what is trained; got "
                f"{precision}. Remove trainer.precision: the backbone computes in model.backbone.dtype."
            )
        self.precision_plugin.convert_module = _as_it_is  # type: ignore[method-assign]  # it would make all float32
        if isinstance(self.accelerator, CPUAccelerator):
            self._setup_on_cpu()
        else:
            super().setup_environment()

    def _setup_on_cpu(self) -> None:
        """The parent's set-up without its check for CUDA, nor DeepSpeed's build of a shared-memory collective."""
        os.environ["DS_ACCELERATOR"] = "cpu"
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
        # DeepSpeed reads the device's index
        self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices or []))]
        DDPStrategy.setup_environment(self)

    @override
    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        # Lightning divides the loss by accumulate_grad_batches already; DeepSpeed would do so again
        kwargs.setdefault("scale_wrt_gas", False)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """DeepSpeed leaves a step whose gradients are not finite out, and would go on as if it were done."""
        done = super().optimizer_step(*args, **kwargs)
        if self.deepspeed_engine.skipped_steps:
            module: Any = self.lightning_module
            module.finite("gradients", torch.as_tensor(self.grad_norm))
        return done

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last step's gradient, before clipping; None before the first step."""
        return self.deepspeed_engine.get_global_grad_norm()

    @property
    def shards_weights(self) -> bool:
        """Whether `shard` is to be called."""
        return self.zero_stage_3

    @override
    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        module: Any = self.lightning_module
        if self.zero_stage_3 and module.lora and module.lora.dora:
            raise ValueError(
                "model.lora.dora must be false with zero3, which shares out the weights whose norms DoRA takes; got "
                "true. Use trainer.strategy: fsdp2, or zero2."
            )
        self._init_config_if_needed()
        yield  # `shard` does the rest, and keeps each tensor's type

    @override
    def shard(self, modules: list[nn.Module]) -> None:
        import deepspeed

        for module in modules:
            deepspeed.zero.Init(module=module, config_dict_or_path=self.config, remote_device=self.remote_device)
            for buffer in module.buffers():
                buffer.data = buffer.data.to(self.root_device)

    @override
    def whole(self, parameter: nn.Parameter) -> Tensor | None:
        with self._gathered(parameter):
            return parameter.detach().to("cpu", copy=True) if self.is_global_zero else None

    @override
    def set_whole(self, parameter: nn.Parameter, value: Tensor) -> None:
        with self._gathered(parameter, modifier_rank=0):
            parameter.data.copy_(value)
        if self.optimizers:
            self._set_optimizers(parameter, value)

    def _set_optimizers(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Give the optimizer its own copy of a parameter's values, or with a `key` those of its state."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.zero_stage_3:  # DeepSpeed's own way to cut a value forgets that the last shards may be padded
            own = _shard_of(value, self.global_rank, parameter.ds_tensor.numel())  # type: ignore[attr-defined]
            safe_set_local_optimizer_state(parameter, own, key)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def _gathered(self, parameter: nn.Parameter, modifier_rank: int | None = None) -> Any:
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], modifier_rank, enabled=self.zero_stage_3)

    @override
    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """As torch's optimizer would have it in a single process; on rank 0."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner: Optimizer = optimizer.optimizer
        flat: dict[str, Any] = next(iter(inner.state.values()), {})
        state: dict[int, dict[str, Any]] = {}
        for i, parameter in enumerate(self.trainable.values()):
            # each its own copy of a counter: torch counts a shared one once for every parameter
            state[i] = {k: v.cpu().clone() if torch.is_tensor(v) else v for k, v in flat.items() if not has_shape(v)}
            for key in (k for k, v in flat.items() if has_shape(v)):
                value = safe_get_full_optimizer_state(parameter, key)
                if self.is_global_zero:
                    state[i][key] = value.view(whole_shape(parameter)).cpu()
        settings = {k: v for k, v in inner.param_groups[0].items() if k != "params"}
        return self.on_first({"state": state, "param_groups": [{**settings, "params": list(state)}]})

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        optimizer: Any = self.optimizers[0]
        inner: Optimizer = optimizer.optimizer
        saved = checkpoint["optimizer_states"][0]
        for group in inner.param_groups:
            kept = {"params": group["params"]}
            group.clear()
            group.update(saved["param_groups"][0] | kept)
        state = saved["state"]
        stage_3 = self.zero_stage_3
        flats = optimizer.fp32_partitioned_groups_flat if stage_3 else optimizer.single_partition_of_fp32_groups
        for flat in flats:
            inner.state[flat] = {k: of_shard(v, flat, inner.param_groups[0]) for k, v in state.get(0, {}).items()}
        if not stage_3:
            optimizer._lazy_init_hp_params_optimizer_state()
        for i, parameter in enumerate(self.trainable.values()):
            for key, value in state.get(i, {}).items():
                if has_shape(value):
                    self._set_optimizers(parameter, value.to(self.root_device), key)


def of_shard(value: Any, shard: Tensor, settings: Mapping[str, Any]) -> Any:
    """What an optimizer keeps of a parameter, for a shard: zeros, to be set, or its own copy of a counter.

    Args:
        value: of a parameter.
        shard: of one or several parameters.
        settings: the optimizer's. A fused or capturable one has its counters beside the weights, others on the CPU.
    """
    if has_shape(value):
        return torch.zeros_like(shard)
    if not torch.is_tensor(value):
        return value
    beside = settings.get("fused") or settings.get("capturable")
    return value.to(shard.device if beside else "cpu", copy=True)


def _shard_of(value: Tensor, rank: int, size: int) -> Tensor:
    """The elements of `value` that a rank has, `size` each as DeepSpeed shares them; zeros behind the last."""
    own = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(own, (0, size - len(own)))


def _as_it_is(module: nn.Module) -> nn.Module:
    return module
