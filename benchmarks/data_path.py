"""The data path alone: rows and tokens a second through plan, Arrow, tokenizer and packing, without a model.

    python benchmarks/data_path.py [--seconds 20] [--workers 0 1 2] [--out benchmarks/reports]

Pairs of Wikipedia summaries, batches of 512 pairs. Beside it, how many tokens a second a device can take: a GPU at
half of 990 TFLOP/s needs that many for a Llama of 1.3B and of 8B (4 FLOPs a token and frozen weight).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from harness import keep, machine
from texts import BASE, articles

from datamodules import Pairs, Source
from otherside.tokenizer import load_tokenizer

SHAPES = {"1.3B": 1.3e9, "8B": 8.0e9}
HALF_OF_A_GPU = 0.5 * 990e12


def measure(rows: Path, workers: int, batch: int, seconds: float) -> dict[str, float]:
    """Rates of one loader."""
    data = Pairs(
        load_tokenizer(BASE), [Source(str(rows))], global_batch_size=batch, max_length=128, num_workers=workers
    )
    data.setup("fit")
    batches = iter(data.train_dataloader())
    for _ in range(2 * max(workers, 1)):  # workers begin
        next(batches)
    tokens = pairs = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        found = next(batches, None)
        if found is None:
            batches = iter(data.train_dataloader())
            continue
        tokens += int(found.texts.lengths.sum())
        pairs += found.pairs
    passed = time.perf_counter() - begun
    return {"workers": workers, "pairs": pairs / passed, "tokens": tokens / passed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=512, help="pairs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "pairs.jsonl"
        pairs = [
            {"query": a.description, "positive": " ".join(a.sentences)} for a in articles() if a.description
        ] * 4  # an epoch of many batches
        rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        found = [measure(rows, workers, settings.batch, settings.seconds) for workers in settings.workers]
    text = ["| workers | pairs / s | tokens / s | "]
    needs = {name: HALF_OF_A_GPU / (4 * weights) for name, weights in SHAPES.items()}
    text[-1] += " | ".join(f"GPUs fed at {name} ({need:,.0f} tokens / s each)" for name, need in needs.items()) + " |"
    text += ["| ---: | ---: | ---: |" + " ---: |" * len(needs)]
    for row in found:
        fed = " | ".join(f"{row['tokens'] / need:.1f}" for need in needs.values())
        text.append(f"| {row['workers']} | {row['pairs']:,.0f} | {row['tokens']:,.0f} | {fed} |")
    keep(settings.out, "data-path", "Data path", text, {"machine": machine(), "rows": found})


if __name__ == "__main__":
    main()
