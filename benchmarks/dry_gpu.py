"""A training step on a GPU that is not there: does it fit together, what does it ask of the device, where does it wait?

    python benchmarks/dry_gpu.py [--stages mntp simcse supervised] [--shapes sheared-llama-1.3b llama-3.1-8b]
    python benchmarks/dry_gpu.py --check     # every stage, kernel and shape, with few texts; a line of JSON for each

Each stage trains a few steps in Lightning's own loop, with weights of a true shape but few layers, on fake CUDA tensors
(`fake_gpu.py`). An operation on two devices or of two types fails as on a real one. Reported are

- host synchronisations of a step, with the line each comes from: each empties the queue of kernels behind which the
  host hides its own time;
- kernels of a layer and of all else, and the bytes that they move;
- the modelled time by kind of kernel, for all layers, under the peaks in `fake_gpu.Peaks`: the larger of what a
  kernel's operations and its bytes take.

It cannot see: what a real kernel takes, and whether it is there; which SDPA kernel torch chooses (flash without a mask
and memory-efficient with one are assumed); waits that torch's kernels and its allocator make without being asked; time
of the host (Python, launches), so that a step of few tokens is slower than modelled; overlap; memory; values, so that
nothing is known about results; several ranks: NCCL, DeepSpeed and FSDP2. A chunk's texts count in attention as long as
its longest. Where the host asks for the size of a result, it is a fifth of the input's. Utilisation leaves the
adapter's own operations out. Needs a C++ compiler, and no GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fake_gpu import CUDA, FakeGPU  # before torch

# isort: split
import torch
import torch.nn.functional as F
from harness import command, machine
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from recipe_steps import REFERENCE, SHAPES, STAGES, Job, base, loop, published
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_modules.base import EncoderModule
from lightning_modules.callbacks import throughput
from lightning_modules.sizing.shape import Shape
from lightning_modules.sizing.speed import of_texts
from otherside import adapters
from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig, set_attention_dropout
from otherside.batching import PairBatch, TextBatch
from otherside.encoder import Encoder
from otherside.lineage import Lineage
from otherside.losses import Distillation, InfoNCE

LARGE = 700e12  # operations a second of one large product, of which utilisation is a share
STEPS = 3  # the first makes what later ones keep, the last logs
KINDS = ("smollm2-135m", "sheared-llama-1.3b")  # heads grouped and embeddings tied, neither
GROUPED = "llama-3.1-8b"  # and not tied; only MNTP has a head
TEACHERS = {"sdpa": "kl", "eager": "margin"}  # that the supervised stage is checked with, by kernel
SHOWN = 12  # kinds of kernel in a table


class OnFakeGPU(CPUAccelerator):
    """Lightning's for CPUs, which does not mind the device."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""


class OneFakeGPU(SingleDeviceStrategy):
    """All is on the fake device already, and stays there: what has no values cannot be moved."""

    def __init__(self) -> None:
        super().__init__(device=CUDA)

    def model_to_device(self) -> None:
        """Only say so."""
        self.lightning_module._device = CUDA  # type: ignore[union-attr]

    def teardown(self) -> None:
        """Nothing to move back."""


@dataclass
class Step:
    """What one training step asked of the device.

    Args:
        waits: host synchronisations by reason and source line.
        sent: bytes copied to the device.
        kernels: number by kind.
        bytes: moved, by kind.
        seconds: modelled, by kind.
    """

    waits: Counter[str]
    sent: int
    kernels: Counter[str]
    bytes: Counter[str]
    seconds: Counter[str]

    @classmethod
    def of(cls, gpu: FakeGPU) -> Step:
        """What was written down."""
        step = cls(gpu.waits, gpu.sent, Counter(), Counter(), Counter())
        for kernel in gpu.kernels:
            step.kernels[kernel.kind] += 1
            step.bytes[kernel.kind] += kernel.bytes
            step.seconds[kernel.kind] += kernel.seconds  # type: ignore[assignment]
        return step

    def plus(self, other: Step, times: int) -> Step:
        """Kernels of both, `other` so often; waits and copies of this one."""
        found = [
            Counter({kind: mine[kind] + times * its[kind] for kind in mine | its})
            for mine, its in ((self.kernels, other.kernels), (self.bytes, other.bytes), (self.seconds, other.seconds))
        ]
        return Step(self.waits, self.sent, *found)


class Batches(torch.utils.data.Dataset[Any]):
    """The steps of a job. Lightning asks for each one step ahead: what the device was asked for since the last time is
    what a step takes.

    Attributes:
        steps: from the first one that Lightning was done with.
    """

    def __init__(self, job: Job, vocabulary: int, gpu: FakeGPU) -> None:
        self.job, self.vocabulary, self.gpu, self.steps = job, vocabulary, gpu, list[Step]()

    def __len__(self) -> int:
        return STEPS + 2

    def __getitem__(self, number: int) -> TextBatch | PairBatch:
        if number > 1:
            self.steps.append(Step.of(self.gpu))
        self.gpu.reset()
        return self.job.batch(number, self.vocabulary)


def build(job: Job, layers: int, gpu: FakeGPU, folder: Path) -> EncoderModule:
    """The stage, as `configure_model` builds it, with weights that are not there."""
    config = base(folder, job.shape, layers)
    settings = BackboneConfig(str(folder), **{"dtype": "bfloat16", "keep_sink": False, **job.backbone})
    loss = {"loss": InfoNCE(teacher=Distillation(kind=job.teacher))} if job.teacher else {}
    more = {"chunk_tokens": job.chunk_tokens, "recompute": job.recompute, **loss}
    module = STAGES[job.stage](backbone=settings, lora=Lora(), **more)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))
        adapters.attach(lm, module.lora)
    gpu.take(lm)
    set_attention_dropout(lm, settings.attention_dropout)
    if settings.activation_checkpointing is True:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    backbone = Backbone(lm, Lineage(str(folder)), kernel=settings.kernel)
    module.encoder = Encoder(backbone, module.tokenizer, module.pooling, module.max_length, module.pool_start)
    return module


def run(job: Job, layers: int) -> list[Step]:
    """Train: an ordinary step, and one that logs.

    Raises:
        RuntimeError: an operation does not fit together.
    """
    gpu = FakeGPU()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(gpu)
        stack.enter_context(mock.patch.object(Backbone, "self_test", lambda self: None))  # looks at values
        stack.enter_context(mock.patch.object(throughput, "peak", lambda *of: LARGE))  # takes a device's time
        stack.enter_context(mock.patch.object(F, "rms_norm", OneKernel.apply))
        module = build(job, layers, gpu, Path(folder))
        steps = Batches(job, module.encoder.backbone.lm.config.vocab_size, gpu)
        trainer = loop(Path(folder), STEPS, accelerator=OnFakeGPU(), strategy=OneFakeGPU())
        trainer.fit(module, torch.utils.data.DataLoader(steps, batch_size=None))
    return [steps.steps[-1], Step.of(gpu)]


class OneKernel(torch.autograd.Function):
    """What `rms_norm` reads and writes on CUDA; without CUDA's kernel torch has only a chain."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *of: Any) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        return grads[0] * ctx.saved_tensors[0], None, None, None


@dataclass
class Profile:
    """A step of a whole model, from those of one layer and of two.

    Args:
        ordinary: the step, all layers.
        layer: what one layer adds.
        logs: host synchronisations of a step that logs.
    """

    job: Job
    ordinary: Step
    layer: Step
    logs: Counter[str]

    @property
    def seconds(self) -> float:
        """Modelled time."""
        return sum(self.ordinary.seconds.values())

    @classmethod
    def of(cls, job: Job) -> Profile:
        """Run it."""
        (one, logs), (two, _) = (run(job, layers) for layers in (1, 2))
        layer = two.plus(one, -1)
        layers = AutoConfig.from_pretrained(SHAPES / job.shape).num_hidden_layers
        return cls(job, one.plus(layer, layers - 1), layer, logs.waits)


def lines(profile: Profile) -> Iterator[str]:
    """What a profile says, as Markdown."""
    job, step, layer = profile.job, profile.ordinary, profile.layer
    config = AutoConfig.from_pretrained(SHAPES / job.shape)
    views = STAGES[job.stage].views
    tokens, squares = sum(job.lengths) * views, sum(n * n for n in job.lengths) * views
    shape = Shape.from_config(config.to_dict(), job.shape)
    needed = of_texts(shape, 0, tokens, squares, 0.2 if job.stage == "mntp" else 0.0)
    kernels, total = sum(step.kernels.values()), profile.seconds
    yield f"## {job.stage}, {job.shape}: {tokens} tokens"
    yield ""
    moved = sum(step.bytes.values())
    yield f"{kernels} kernels, {sum(layer.kernels.values())} of them a layer; {moved / 1e9:.0f} GB moved,"
    yield f"{step.sent / 1e6:.2f} MB sent to the device; {total * 1e3:.0f} ms modelled, {tokens / total:,.0f} tokens/s,"
    yield f"{needed / total / LARGE:.0%} of {LARGE / 1e12:.0f} TFLOP/s"
    yield ""
    waits, logs = sum(step.waits.values()), sum(profile.logs.values())
    yield f"Host synchronisations of a step: {waits}; of one that logs: {logs}"
    yield ""
    yield from (f"- {count} × {where}" for where, count in step.waits.most_common())
    yield from (f"- logging: {count} × {where}" for where, count in (profile.logs - step.waits).most_common())
    yield ""
    yield "| kind | ms | share | kernels | GB |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for kind, seconds in step.seconds.most_common(SHOWN):
        shown = f"{seconds * 1e3:.2f} | {seconds / total:.1%} | {step.kernels[kind]} | {step.bytes[kind] / 1e9:.2f}"
        yield f"| {kind} | {shown} |"
    yield ""


def checks(stages: list[str]) -> Iterator[dict[str, Any]]:
    """Each stage on every kind of shape and by every kernel, on few texts in two chunks.

    Raises:
        RuntimeError: an operation does not fit together.
    """
    lengths = [40, 33, 33, 20, 12, 9]
    for stage in stages:
        dropout = 0.3 if stage == "simcse" else 0.0
        kernels = ("sdpa", "eager") if dropout else ("sdpa", "eager", "varlen")
        shapes = (*KINDS, GROUPED) if stage == "mntp" else KINDS
        for shape, kernel in [*((shape, "auto") for shape in shapes), *(("tiny", kernel) for kernel in kernels)]:
            teacher = TEACHERS.get(kernel) if stage == "supervised" else None
            backbone = {"attention_dropout": dropout, "kernel": kernel}
            job = Job(stage, shape, lengths, 120, backbone=backbone, teacher=teacher)
            ordinary, logs = run(job, 1)
            row = {"stage": stage, "shape": shape, "kernel": kernel, "waits": ordinary.waits, "logs": logs.waits}
            if shape == REFERENCE:
                row["layer"] = sum(run(job, 2)[0].plus(ordinary, -1).kernels.values())
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--shapes", nargs="+", default=[REFERENCE])
    parser.add_argument("--check", action="store_true")
    settings = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if settings.check:
        for row in checks(settings.stages):
            print(json.dumps(row), flush=True)
        return
    print(f"{machine()}\n\nCommand: `{command()}`\n")
    for shape in settings.shapes:
        for stage in settings.stages:
            print("\n".join(lines(Profile.of(published(stage, shape)))), flush=True)


if __name__ == "__main__":
    main()
