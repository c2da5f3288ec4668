"""What a training step on this CPU is spent on, and what is gained over torch's own kernels.

    python benchmarks/profile_step.py [--dtype bfloat16] [--rounds 3] [--out benchmarks/reports]

A contrastive step on 64 texts of 8 to 64 tokens: time by kind of operation (torch.profiler), then rounds in turn with
and without `otherside.dropout`, attention written out, and sizes rounded up.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path

from harness import Contender, compare, report
from texts import BASE

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "casts and copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::fill_", "aten::zero_"),
    "random numbers and masks of dropout": ("aten::random_", "aten::ge"),
    "packing and padding": ("aten::index_select", "aten::index_copy_"),
    "softmax, activation": ("aten::_softmax", "aten::_softmax_backward_data", "aten::silu", "aten::silu_backward"),
    "products and sums, value by value": (
        "aten::mul",
        "aten::add",
        "aten::add_",
        "aten::div",
        "aten::pow",
        "aten::sum",
    ),
}


def shares(dtype: str) -> dict[str, float]:
    """Share of a step's time by kind of operation; in a process of its own."""
    command = [sys.executable, __file__, "--profile", "--dtype", dtype]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def profile(dtype: str) -> None:
    import torch
    from torch.profiler import profile as profiler

    from otherside.adapters import Lora
    from otherside.backbone import Backbone, BackboneConfig
    from otherside.batching import Packed

    torch.set_num_threads(1)
    backbone = Backbone.load(BackboneConfig(BASE, dtype=dtype), Lora()).train()  # type: ignore[arg-type]
    draw = random.Random(0)
    lengths = sorted((draw.randint(8, 64) for _ in range(64)), reverse=True)
    ids = torch.randint(100, 5000, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    none = torch.zeros(len(lengths), dtype=torch.long)
    texts = Packed(ids, torch.tensor(lengths), none, none)
    for warm in (True, False):
        with profiler() as found:
            backbone(texts).float().pow(2).mean().backward()
        if warm:
            backbone.zero_grad()
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    times: Counter[str] = Counter()
    for event in found.key_averages():
        times[kinds.get(event.key, "everything else")] += event.self_cpu_time_total
    total = sum(times.values())
    print(json.dumps({kind: time / total for kind, time in times.most_common()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    if settings.profile:
        return profile(settings.dtype)
    found = shares(settings.dtype)
    draw, words = random.Random(0), ["rain", "snow", "wind", "sun", "cloud", "storm", "ice", "fog"]
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        rows = [
            {key: " ".join(draw.choices(words, k=draw.randint(8, 64))) for key in ("query", "positive")}
            for _ in range(32 * (settings.rounds + 1))
        ]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = {
            "pairs": str(pairs),
            "model": BASE,
            "batch": 32,
            "max_length": 64,
            "dtype": settings.dtype,
            "dropout": 0.05,
            "steps": settings.rounds + 2,
            "recompute": False,
            "chunk_tokens": None,
        }
        contenders = {
            "otherside": Contender("otherside", "contrastive", 1, asked),
            "with torch's dropout, SDPA, any size": Contender("otherside", "contrastive", 1, asked | {"plain": True}),
        }
        compared = compare(f"32 pairs, {settings.dtype}", contenders, settings.rounds)
    notes = ["", "| share of a step | |", "| --- | ---: |"]
    notes += [f"| {kind} | {share:.0%} |" for kind, share in found.items()]
    about = {"model": BASE, "threads": 1, "date": date.today()}
    report("profile", "What a step is spent on", [compared], about, settings.out, "\n".join(notes))


if __name__ == "__main__":
    main()
