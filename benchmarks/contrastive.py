"""A contrastive training step: ours and sentence-transformers' trainer, in turn, on the same texts.

    python benchmarks/contrastive.py [--cases wikipedia:64 fixed:64 ...] [--rounds 3] [--out benchmarks/reports]

Cases are MIX:PAIRS. Mixes: `wikipedia`, a description and the article's summary (up to 128 tokens); `sentences`, two
neighbouring sentences of a summary, as in similarity and inference data; `fixed`, every text cut at 64 tokens, so
that there is nothing to gain from padding. Above 64 pairs both sides recompute activations (here chunks, there
CachedMultipleNegativesRankingLoss).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Comparison, Contender, compare, report
from texts import BASE, articles, exported

from datamodules.plan import Plan

CACHED = 64  # pairs; larger batches recompute activations
OURS, PEER = "otherside", "sentence-transformers"


def pairs(mix: str) -> Iterator[tuple[str, str]]:
    """All pairs of a mix."""
    for article in articles():
        sentences = article.sentences
        if mix == "wikipedia" and article.description:
            yield article.description, " ".join(sentences)
        elif mix == "sentences" and len(sentences) > 1:
            yield sentences[0], sentences[1]
        elif mix == "fixed" and sum(map(len, sentences)) > 900:  # characters: two halves of at least 64 tokens
            text = " ".join(sentences)
            yield text[: len(text) // 2], text[len(text) // 2 :]


def case(mix: str, batch: int, folder: Path, settings: argparse.Namespace) -> Comparison:
    """Both contenders on one mix and batch size."""
    rounds, warm_up = (settings.rounds, 1) if batch <= CACHED else (settings.large_rounds, 0)
    needed = batch * (rounds + warm_up)
    rows = [{"query": a, "positive": b} for _, (a, b) in zip(range(needed), pairs(mix), strict=False)]
    if len(rows) < needed:
        raise SystemExit(f"{mix} has {len(rows)} pairs, {needed} are needed: fewer --rounds or pairs")
    plan = Plan([needed], None, batch, seed=42)
    ordered = [rows[i] for step in range(rounds + warm_up) for i in plan.batch(step).rows]
    files = {"pairs": rows, "ordered_pairs": ordered}
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    asked: dict[str, Any] = {
        **{name: str(folder / f"{name}.jsonl") for name in files},
        "model": settings.model,
        "exported": exported(settings.model),
        "batch": batch,
        "max_length": 64 if mix == "fixed" else 128,
        "dtype": settings.dtype,
        "dropout": settings.dropout,
        "steps": rounds + warm_up + 1,
        "recompute": batch > CACHED,
        "chunk_tokens": 2048 if batch > CACHED else settings.chunk_tokens,
        "mini_batch": 32,
    }
    contenders = {name: Contender(name, "contrastive", settings.threads, asked) for name in (OURS, PEER)}
    return compare(f"{mix}, {batch} pairs, {settings.dtype}", contenders, rounds, warm_up)


def first_losses(found: list[Comparison]) -> str:
    """How far they are apart at most: both begin with the same weights and texts, but each draws its own dropout."""
    each = [[rounds[0]["loss"] for rounds in c.rounds.values() if rounds] for c in found]
    apart = [abs(losses[1] / losses[0] - 1) for losses in each if len(losses) == 2]
    return f"Losses of the first round counted differ by at most {np.max(apart, initial=0):.1%}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["fixed:16", "wikipedia:16", "sentences:16", "fixed:64", "wikipedia:64", "sentences:64", "sentences:512"]
    parser.add_argument("--cases", nargs="+", default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-rounds", type=int, default=1, help="where activations are recomputed")
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--dropout", type=float, default=0.05, help="of LoRA")
    parser.add_argument("--chunk-tokens", type=int, default=2048, help="ours; chunks only save padding here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="contrastive", help="of the report")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [case(mix, int(n), Path(folder), settings) for mix, n in (c.split(":") for c in settings.cases)]
    kept = ("model", "dtype", "dropout", "threads", "chunk_tokens")
    report(
        settings.name,
        "Contrastive step: otherside and sentence-transformers",
        found,
        {name: getattr(settings, name) for name in kept} | {"lora": "r 16, alpha 32, all projections", "scale": 20},
        settings.out,
        first_losses(found),
    )


if __name__ == "__main__":
    main()
