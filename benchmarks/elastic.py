"""Stop on N ranks, go on with M: is it the same training? Every strategy, and from one strategy to another.

    python benchmarks/elastic.py [--out benchmarks/reports]

Three steps of the supervised stage, then three more by the same command with other ranks, against six on one process:
largest relative difference of loss, gradient norm and final weights. A tiny Llama in float32, AdamW, without dropout,
which is drawn by rank; real ranks with gloo between them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path

from harness import keep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "distributed"))
from conftest import build_tiny_llama
from runs import write_data
from strategies import ADAMW, STRATEGIES, differences, train

SETTINGS = {"model.init_args.optimizer": ADAMW}
RANKS = ((2, 1), (1, 2), (2, 4))
ACROSS = (("zero2", "ddp"), ("ddp", "zero3"), ("zero3", "fsdp2"), ("fsdp2", "zero1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    out = parser.parse_args().out
    same = [(name, name, *ranks) for name, ranks in product(STRATEGIES, RANKS) if name != "auto"]
    lines = ["| before | after | ranks | loss | gradient | weights |", "| --- | --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        llama = build_tiny_llama(place / "llama")
        write_data(place, rows=30)
        whole = train(place, llama, "whole", "Supervised", "auto", 1, 6, **SETTINGS)
        for before, after, first, then in [*same, *((one, other, 2, 2) for one, other in ACROSS)]:
            root = f"{before}{first}-{after}{then}"
            train(place, llama, root, "Supervised", before, first, 3, **SETTINGS)
            worst = differences(train(place, llama, root, "Supervised", after, then, 6, **SETTINGS), whole)
            cells = [before, after, f"{first} → {then}", *(f"{value:.1e}" for value in worst.values())]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    keep(out, "elastic", "Going on with other ranks", lines)


if __name__ == "__main__":
    main()
