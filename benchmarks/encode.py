"""Encoding texts of mixed length: `Encoder.encode` and `SentenceTransformer.encode`, in turn, on the same texts.

python benchmarks/encode.py [--texts 2000] [--rounds 4] [--dtype bfloat16] [--out benchmarks/reports]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from harness import Contender, compare, report
from texts import BASE, articles, exported

OURS, PEER = "otherside", "sentence-transformers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=2000, help="in all rounds together")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--at-once", type=int, help="texts, of both; default: each its own default")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="encode", help="of the report")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        # Titles, descriptions, sentences and whole summaries: 1 to 128 tokens
        kinds = [(a.title, a.description or a.title, a.sentences[0], " ".join(a.sentences)) for a in articles()]
        texts.write_text(json.dumps([kind[i % 4] for i, kind in enumerate(kinds[: settings.texts])]))
        for dtype in settings.dtypes:
            asked = {
                "texts": str(texts),
                "model": settings.model,
                "exported": exported(settings.model),
                "batch": settings.texts // settings.rounds,
                "at_once": settings.at_once,
                "max_length": settings.max_length,
                "dtype": dtype,
            }
            contenders = {name: Contender(name, "encode", settings.threads, asked) for name in (OURS, PEER)}
            case = f"{settings.texts // settings.rounds} texts, {dtype}"
            found.append(compare(case, contenders, settings.rounds, warm_up=0))
    kept = ("model", "threads", "at_once", "max_length", "texts")
    about = {name: getattr(settings, name) for name in kept}
    report(settings.name, "Encoding: otherside and sentence-transformers", found, about, settings.out)


if __name__ == "__main__":
    main()
