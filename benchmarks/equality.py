"""Is training on several ranks the same training? Every strategy, chunked or not, accumulated or not, clipped or not,
against one process without any of it: largest relative difference of loss, gradient norm and final weights.

    python benchmarks/equality.py [--strategies ddp zero1 zero2 zero3 fsdp2] [--ranks 1 2] [--device cpu|cuda]

Six steps of the supervised stage on a tiny Llama in float32 (--dtype), without dropout, which is drawn by rank. Ranks
are forked with gloo between them; on a GPU there is one rank, with NCCL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

from harness import keep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "distributed"))
from conftest import build_tiny_llama
from runs import write_data
from strategies import STRATEGIES, differences, once

OPTIMIZERS = {
    "SGD": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.005}},
    # a smaller eps only blows up rounding of zeros
    "AdamW": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "eps": 1e-3}},
}
NAMES = ("strategy", "ranks", "chunk_tokens", "accumulate", "clip", "optimizer", "loss", "gradient", "weights")
CASES = list(itertools.product((None, 40), (1, 2), (None, 0.05), OPTIMIZERS))  # chunks, accumulated, clipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="*", default=[name for name in STRATEGIES if name != "auto"])
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        llama = build_tiny_llama(place / "llama")
        write_data(place, rows=60)

        def trained(strategy: str, ranks: int, chunk: int | None, accumulate: int, clip: float, optimizer: str) -> Path:
            settings = {
                "model.init_args.backbone.dtype": args.dtype,
                "model.init_args.loss": {},  # as users have it
                "model.init_args.chunk_tokens": chunk,
                "model.init_args.optimizer": OPTIMIZERS[optimizer],
                "trainer.accelerator": "gpu" if args.device == "cuda" else "cpu",
                "trainer.accumulate_grad_batches": accumulate,
                "trainer.gradient_clip_val": clip,
            }
            root = f"{strategy}-{ranks}-{chunk}-{accumulate}-{clip}-{optimizer}"
            return once(place, llama, root, "Supervised", strategy, ranks, 6, **settings)

        for name, ranks in itertools.product(args.strategies, args.ranks if args.device == "cpu" else [1]):
            for case in CASES:
                worst = differences(trained(name, ranks, *case), trained("auto", 1, None, *case[1:]))
                rows.append(dict(zip(NAMES, (name, ranks, *case, *worst.values()), strict=True)))
                print(json.dumps(rows[-1]), flush=True)
    lines = [f"{args.device}, {args.dtype}, six steps; of SGD and AdamW the larger difference.", ""]
    lines += ["| strategy | ranks | chunks | accumulated | clipped | loss | gradient | weights |", "| --- " * 8 + "|"]
    for group, members in itertools.groupby(rows, key=lambda row: tuple(row[name] for name in NAMES[:5])):
        both = list(members)
        worst = [f"{max(row[name] for row in both):.1e}" for name in NAMES[-3:]]
        lines.append(f"| {' | '.join(str(cell or 'no') for cell in (*group, *worst))} |")
    keep(args.out, f"equality-{args.device}-{args.dtype}", "Many ranks against one process", lines, rows)


if __name__ == "__main__":
    main()
