"""QLoRA: vectors of an encoder as it was trained, on four bits a weight, and as it opens; and what a step costs.

    python benchmarks/quantized.py ENCODER [--plain ENCODER] [--sts FILE] [--rounds 5]

ENCODER has one stage, trained with `model.backbone.quantized: nf4`; `--plain`: the same stage without. Retrieval is
description → first sentence among the quickstart's held-out articles; `--sts` a Parquet file of STSBenchmark's columns.
Steps, forward and backward on 64 texts of 8 to 64 tokens, take turns in one process on one thread; what is compared is
CPU time, which a busy machine hardly moves.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from harness import keep
from scipy.stats import spearmanr

from otherside.adapters import Lora, SavedAdapter
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed
from otherside.encoder import Encoder
from otherside.lineage import Card

DTYPE: Any = "bfloat16"


def as_trained(folder: Path) -> Encoder:
    """The encoder with its base in four bits."""
    encoder, lineage = Encoder.load(folder, dtype=DTYPE), Card.read(folder).lineage
    backbone = Backbone.load(BackboneConfig(lineage.base, dtype=DTYPE, quantized="nf4"))
    backbone.lm.is_loaded_in_4bit = True  # type: ignore[assignment]
    SavedAdapter(lineage.adapters[0]).attach(backbone.lm, "default")
    backbone.sink, backbone.sink_state = encoder.backbone.sink, encoder.backbone.sink_state
    encoder.backbone = backbone.eval()
    return encoder


class Texts:
    """What encoders are compared on."""

    def __init__(self, pairs: Path, sts: Path | None) -> None:
        rows = [json.loads(line) for line in pairs.read_text().splitlines()]
        self.sides = [[row[key] for row in rows] for key in ("query", "positive")]
        self.sts = pq.read_table(sts).to_pydict() if sts else None

    def measure(self, encoder: Encoder) -> tuple[np.ndarray, list[str]]:
        """Vectors of length 1, and what they are worth."""
        queries, documents = (encoder.encode(side, normalize=True) for side in self.sides)
        scores = queries @ documents.T
        found = [f"{(1 / (scores >= scores.diagonal()[:, None]).sum(1)).mean():.3f}"]
        if self.sts:
            one, other = (encoder.encode(self.sts[key], normalize=True) for key in ("sentence1", "sentence2"))
            found.append(f"{spearmanr((one * other).sum(1), self.sts['score']).statistic:.3f}")
        return np.concatenate([queries, documents]), found


def step_of(quantized: Any, base: str) -> Callable[[], None]:
    """A step of the recipe's adapter."""
    backbone = Backbone.load(BackboneConfig(base, dtype=DTYPE, quantized=quantized), Lora(dropout=0.0)).train()
    draw, none = random.Random(0), torch.zeros(64, dtype=torch.long)
    lengths = sorted((draw.randint(8, 64) for _ in range(64)), reverse=True)
    texts = Packed(torch.randint(100, 5000, (sum(lengths),)), torch.tensor(lengths), none, none)

    def step() -> None:
        backbone.zero_grad()
        backbone(texts).float().pow(2).mean().backward()

    return step


def cpu_seconds(run: Callable[[], None]) -> float:
    before = time.process_time()
    run()
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--pairs", type=Path, default=Path("runs/quickstart/data/heldout.jsonl"))
    parser.add_argument("--sts", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    texts, base = Texts(settings.pairs, settings.sts), Card.read(settings.encoder).lineage.base
    text = [f"{base}, {DTYPE}, one thread", ""]
    text += [
        "| vectors | cosine to as trained, mean (least) | retrieval MRR | STSBenchmark |",
        "| --- | --- | ---: | ---: |",
    ]
    opened: dict[str, Callable[[], Encoder]] = {
        "as trained, four bits": lambda: as_trained(settings.encoder),
        "opened in bfloat16": lambda: Encoder.load(settings.encoder, dtype="bfloat16"),
        "opened in float32": lambda: Encoder.load(settings.encoder, dtype="float32"),
    }
    if settings.plain:
        opened["trained without, bfloat16"] = lambda: Encoder.load(settings.plain, dtype="bfloat16")
    first = None
    for name, open_ in opened.items():
        vectors, worth = texts.measure(open_())
        first = vectors if first is None else first
        cosines = (first * vectors).sum(1)
        text.append(f"| {name} | {cosines.mean():.3f} ({cosines.min():.3f}) | {' | '.join([*worth, ''][:2])} |")
        print(text[-1], flush=True)
    steps = {"nf4": step_of("nf4", base), "bfloat16": step_of(None, base)}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(settings.rounds + 1):
        for name, step in steps.items():
            found[name] += [cpu_seconds(step)] * (round_ > 0)
    ratios = sorted(a / b for a, b in zip(*found.values(), strict=True))
    text += ["", "CPU seconds of a step: " + ", ".join(f"{name} {min(s):.2f}" for name, s in found.items())]
    text[-1] += f"; {statistics.median(ratios):.2f} × ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    keep(settings.out, "quantized", "QLoRA", text)


if __name__ == "__main__":
    main()
