"""DeepSpeed as Lightning has it, made to run on CPUs too and to save adapters without their frozen base."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from typing_extensions import override

from lightning_modules.checkpoints import write_manifest
from otherside.files import replace_folder


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed ZeRO, stage 1, 2 or 3.

    Args:
        stage: 1 shards optimizer states, 2 also gradients, 3 also weights.
        kwargs: see `lightning.pytorch.strategies.DeepSpeedStrategy`.
    """

    def __init__(self, stage: int = 2, **kwargs: Any) -> None:
        kwargs.setdefault("exclude_frozen_parameters", True)
        super().__init__(stage=stage, **kwargs)
        assert isinstance(self.config, dict)
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)  # only DeepSpeed's own log reads it
        self._sharded_loading: Any = None

    @override
    def setup_environment(self) -> None:
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
    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Lightning divides the loss by accumulate_grad_batches already; DeepSpeed would do so again
        kwargs.setdefault("scale_wrt_gas", False)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    @override
    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Under ZeRO-3 transformers shards the weights as it loads them; nothing else may shard them first."""
        if self.zero_stage_3:
            from transformers.integrations import HfDeepSpeedConfig

            self._sharded_loading = HfDeepSpeedConfig(self.config)
        yield

    @contextmanager
    def whole(self, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        """The parameters unsharded inside the block; all ranks must enter it."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, enabled=self.zero_stage_3):
            yield

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """All ranks write into a temporary folder, which then gets its manifest and its name."""
        path = Path(self.broadcast(str(filepath)))
        work = path.with_name(f".{path.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(work, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, work, storage_options)
        self.barrier()
        if self.is_global_zero:
            write_manifest(work, step=checkpoint["global_step"])
            replace_folder(work, path)
        self.barrier()

    @override
    def teardown(self) -> None:
        if self._sharded_loading is not None:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()
        super().teardown()
