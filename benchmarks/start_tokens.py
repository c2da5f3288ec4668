"""Which special token serves as start token: an untrained Llama's encodings behind each of them.

    python benchmarks/start_tokens.py [--data runs/quickstart/data] [--tokens null "<|endoftext|>" ...] [--out DIR]

The Llama is the quickstart's, and so are the held-out texts: similarity and retrieval, causal (`uni`) and
bidirectional, with its sink kept (`bi`) and without (`backbone.keep_sink`).
`null` is no start token. What `backbone.start_token: auto` means was chosen by this.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import keep
from quickstart import BASE, ROOT

from otherside.encoder import Encoder
from otherside.probing.report import markdown
from otherside.probing.retrieval import read_pairs, retrieval
from otherside.probing.similarity import read_rated, similarity

VARIANTS = {
    "uni": {"attention": "causal"},
    "bi": {"attention": "bidirectional"},
    "bi, sink lost": {"attention": "bidirectional", "keep_sink": False},
}
TOKENS = ("null", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/quickstart/data"))
    parser.add_argument("--tokens", nargs="+", default=TOKENS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "reports")
    options = parser.parse_args()
    rated, pairs = read_rated(options.data / "similarity.jsonl"), read_pairs(options.data / "heldout.jsonl")
    rows = []
    for token in options.tokens:
        found = []
        for settings in VARIANTS.values():
            start = None if token == "null" else token
            encoder = Encoder.load(BASE, dtype="auto", start_token=start, **settings)  # type: ignore[arg-type]
            found += [similarity(encoder, rated)[0].score.value, retrieval(encoder, pairs)[0].score.value]
        rows.append([token.replace("|", "\\|"), *(f"{value:.3f}" for value in found)])
        print(*rows[-1], flush=True)
    header = ["start token", *(f"{v}: {m}" for v in VARIANTS for m in ("similarity", "retrieval MRR"))]
    keep(options.out, "start-tokens", "Start tokens before an untrained Llama's texts", [markdown(header, rows)])


if __name__ == "__main__":
    main()
