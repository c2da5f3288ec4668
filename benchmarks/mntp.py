"""An MNTP training step: ours and LLM2Vec's, in turn.

    python benchmarks/mntp.py [--cases blocks:4 lines:64] [--rounds 3] [--out benchmarks/reports]

Cases are KIND:TEXTS. `blocks`: 512 tokens each, without a border; `lines`: one sentence each, up to 128 tokens.
LLM2Vec runs in an environment of its own, with the transformers it needs. Both hide 20 % of the tokens, each by its
own draw, so losses agree only roughly.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from harness import Comparison, Contender, compare, report
from texts import BASE, articles, exported

OURS, PEER = "otherside", "llm2vec"


def case(kind: str, batch: int, folder: Path, settings: argparse.Namespace) -> Comparison:
    """Both contenders on one kind of text and batch size."""
    steps = settings.rounds + 1
    texts = folder / "texts.txt"
    found = articles()
    lines = (
        [sentence for article in found for sentence in article.sentences if len(sentence) > 20]
        if kind == "lines"
        else [" ".join(article.sentences) for article in found]
    )
    texts.write_text("\n".join(lines[: batch * steps if kind == "lines" else batch * steps * 12]) + "\n")
    asked = {
        "texts": str(texts),
        "lines": kind == "lines",
        "model": settings.model,
        "merged": exported(settings.model, "merged"),
        "batch": batch,
        "max_length": 128 if kind == "lines" else 512,
        "dtype": settings.dtype,
        "dropout": settings.dropout,
        "steps": steps + 1,
        "recompute": False,
        "chunk_tokens": settings.chunk_tokens,
    }
    contenders = {name: Contender(name, "mntp", settings.threads, asked) for name in (OURS, PEER)}
    return compare(f"{kind}, {batch} texts, {settings.dtype}", contenders, settings.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["blocks:4", "lines:64"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--dropout", type=float, default=0.05, help="of LoRA")
    parser.add_argument("--chunk-tokens", type=int, default=2048, help="ours; chunks only save padding here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="mntp", help="of the report")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [case(kind, int(n), Path(folder), settings) for kind, n in (c.split(":") for c in settings.cases)]
    kept = ("model", "dtype", "dropout", "threads", "chunk_tokens")
    about = {name: getattr(settings, name) for name in kept} | {"lora": "r 16, alpha 32, all projections"}
    report(settings.name, "MNTP step: otherside and LLM2Vec", found, about, settings.out)


if __name__ == "__main__":
    main()
