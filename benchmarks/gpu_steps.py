"""Steps of the published recipes on a real GPU, in Lightning's loop: the third part of `gpu.py`."""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from recipe_steps import SHAPES, STAGES, Job, base, loop
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, LlamaForCausalLM

from lightning_modules.automatic import job_of
from lightning_modules.base import EncoderModule
from lightning_modules.hardware import peak
from lightning_modules.sizing.memory import memory
from lightning_modules.sizing.shape import Shape
from lightning_modules.sizing.speed import of_texts
from otherside.adapters import Lora
from otherside.backbone import BackboneConfig

Row = dict[str, Any]
LONGEST = 12  # kernels that are named


class Steps(pl.LightningDataModule):
    """A job's batches, and what the estimate of memory asks of a data module."""

    def __init__(self, job: Job, steps: int, vocabulary: int) -> None:
        super().__init__()
        self.batches = [job.batch(step, vocabulary) for step in range(steps)]
        texts = len(job.lengths)
        self.global_batch_size, self.negatives = (texts // 3, 1) if job.stage == "supervised" else (texts, 0)
        self.max_length = max(job.lengths)

    def train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        return torch.utils.data.DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class Watch(pl.Callback):
    """Times the steps from the third on; of the last two one is watched for waits, the other for its kernels."""

    def __init__(self, steps: int) -> None:
        self.steps, self.marks, self.busy, self.kernels = steps, list[float](), 0.0, 0
        self.waits: list[str] = []
        self.longest = Counter[str]()  # seconds of a step, by kernel
        self._watching = ExitStack()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, step: int) -> None:
        if step in (2, self.steps - 2):
            wait(module.device.type)
            self.marks.append(time.perf_counter())
        if module.device.type != "cuda":
            return
        if step == self.steps - 2:
            self._said = self._watching.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if step == self.steps - 1:
            torch.cuda.set_sync_debug_mode("default")
            self._watching.close()
            said = [warning for warning in self._said if "synchroniz" in str(warning.message)]
            self.waits = [f"{Path(warning.filename).name}:{warning.lineno}" for warning in said]
            self._kernels = self._watching.enter_context(profile(activities=[ProfilerActivity.CUDA]))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        wait(module.device.type)
        self._watching.close()
        if module.device.type == "cuda":
            found = [event for event in self._kernels.events() if event.device_type == DeviceType.CUDA]
            found = [event for event in found if not event.name.startswith("Optimizer.")]  # spans, not kernels
            for event in found:
                self.longest[event.name] += event.device_time / 1e6
            self.kernels, self.busy = len(found), self.longest.total()

    @property
    def seconds(self) -> float:
        """Of a step, on average."""
        return (self.marks[1] - self.marks[0]) / (self.steps - 4)


def looped(job: Job, dtype: torch.dtype, settings: argparse.Namespace) -> Row:
    """A row of a recipe's step in Lightning's loop."""
    device, steps = settings.device, settings.steps + 4
    row: Row = {"shape": job.shape, "task": f"{job.stage} as published", "dtype": str(dtype).removeprefix("torch.")}
    with tempfile.TemporaryDirectory() as folder:
        config = base(Path(folder), job.shape, AutoConfig.from_pretrained(SHAPES / job.shape).num_hidden_layers)
        with torch.device(device):
            LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
        backbone = BackboneConfig(folder, dtype=row["dtype"], **job.backbone)
        module = STAGES[job.stage](
            backbone=backbone, lora=Lora(dropout=settings.dropout), chunk_tokens=job.chunk_tokens
        )
        watch = Watch(steps)
        where: dict[str, Any] = {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}
        trainer = loop(Path(folder), steps, [watch], **where)
        free()
        before = held(device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(module, datamodule=Steps(job, steps, config.vocab_size))
        peaked = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    tokens, squares = (module.views * sum(n**power for n in job.lengths) for power in (1, 2))
    sizes = Shape.from_config(config.to_dict(), job.shape)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    needed = of_texts(sizes, trained, tokens, squares, module.predicted)
    again = ["chunks"] * (tokens > module.kept_tokens) + ["layers"] * layers_again(module)
    row |= {"memory": f"{' and '.join(again)} recomputed" if again else "all kept"}
    row |= {"seconds": watch.seconds, "GB": peaked - before, "tokens / s": tokens / watch.seconds}
    row |= {"utilisation": needed / watch.seconds / peak(torch.device(device), dtype)}
    return (
        row
        | {"GB of lightning size": sum(memory(job_of(module)).values()) / 1e9, "waits": ", ".join(watch.waits) or 0}
        | {"kernels": watch.kernels, "seconds of kernels": watch.busy, "longest": watch.longest.most_common(LONGEST)}
    )


def layers_again(module: EncoderModule) -> bool:
    """Whether activations of layers are computed again."""
    return module.backbone_config.activation_checkpointing is True


def held(device: str) -> float:
    """GB of live tensors on the device."""
    return torch.cuda.memory_allocated() / 1e9 if device == "cuda" else 0.0


def wait(device: str) -> None:
    """For all that the device was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """What no tensor holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
