"""Is training on several ranks the same training? Every strategy, chunked or not, accumulated or not, clipped or not,
against one process without any of it: largest relative difference of loss, gradient norm and the adapter's change.

    python benchmarks/equality.py [--strategies ddp zero1 zero2 zero3 fsdp2] [--ranks 1 2] [--device cpu|cuda]

Six steps of the supervised stage on a tiny Llama in float32 (--dtype), without dropout, which is drawn by rank. Ranks
are forked with gloo between them; on a GPU there is one rank, with NCCL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from harness import command
from lightning.pytorch.loggers import CSVLogger

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import build_tiny_llama
from ranks import run_ranks
from runs import metrics, write_data

from datamodules import Pairs, Source
from lightning_modules import Supervised
from lightning_modules.strategies import DDP, FSDP2, ZeRO
from otherside.adapters import Lora
from otherside.backbone import BackboneConfig

STEPS = 6
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.005),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=2e-4, eps=1e-3),  # a smaller eps only blows up rounding of zeros
}


def strategy(name: str) -> Any:
    """A fresh one; under ZeRO-3 nothing stays whole, though all is small."""
    if name == "zero3":
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
        return ZeRO(3, config={"zero_allow_untested_optimizer": True, "zero_optimization": zero})
    if name.startswith("zero"):
        return ZeRO(int(name[-1]))
    return {"ddp": DDP, "fsdp2": FSDP2}[name]() if name != "one process" else "auto"


class Taken(pl.Callback):
    """The adapter before and after."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first = adapter(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = adapter(trainer, pl_module)
        if trainer.is_global_zero:
            self.change = torch.cat([(last[name] - self.first[name]).flatten() for name in sorted(last)])


def adapter(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, torch.Tensor]:
    """The trained weights, whole, on the CPU."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    state = trainer.strategy.lightning_module_state_dict()
    return {name: value.detach().cpu().clone() for name, value in state.items() if name in trained}


def train(args: argparse.Namespace, name: str, ranks: int, llama: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What a run gave on rank 0."""

    place = Path(tempfile.mkdtemp(dir=llama))

    def one_rank() -> dict[str, Any]:
        warnings.filterwarnings("ignore")
        taken = Taken()
        module = Supervised(
            backbone=BackboneConfig(str(llama), dtype=args.dtype),
            lora=Lora(r=4, dropout=0.0),
            optimizer=OPTIMIZERS[case["optimizer"]],
            chunk_tokens=case["chunk_tokens"],
        )
        pairs = [Source(str(llama / "pairs.jsonl"))]
        data = Pairs(module.tokenizer, pairs, global_batch_size=6, max_length=32, num_workers=0)
        trainer = pl.Trainer(
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=ranks,
            strategy=strategy(name),
            max_steps=STEPS,
            accumulate_grad_batches=case["accumulate"],
            gradient_clip_val=case["clip"],
            callbacks=[taken],
            default_root_dir=llama,
            use_distributed_sampler=False,
            logger=CSVLogger(place, name="csv"),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, data)
        return {"change": taken.change if trainer.is_global_zero else None}

    # a fork cannot use a GPU that its parent has touched
    found = one_rank() if args.device == "cuda" else run_ranks(ranks, one_rank, group=False, timeout=600)[0]
    return found | {name: metrics(place, name) for name in ("train/loss", "grad_norm")}


def difference(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Largest relative ones."""
    worst = {
        name: max(abs(found[name][step] / value - 1) for step, value in expected[name].items())
        for name in ("train/loss", "grad_norm")
    }
    return worst | {"change": float((found["change"] - expected["change"]).norm() / expected["change"].norm())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="*", default=["ddp", "zero1", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = ("chunk_tokens", "accumulate", "clip", "optimizer")
    cases = [
        dict(zip(names, values, strict=True))
        for values in itertools.product((None, 40), (1, 2), (None, 0.05), OPTIMIZERS)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        llama = build_tiny_llama(Path(place))
        write_data(llama, rows=60)
        plain = [train(args, "one process", 1, llama, case | {"chunk_tokens": None}) for case in cases]
        for name, ranks in itertools.product(args.strategies, args.ranks if args.device == "cpu" else [1]):
            for case, expected in zip(cases, plain, strict=True):
                found = difference(train(args, name, ranks, llama, case), expected)
                rows.append({"strategy": name, "ranks": ranks, **case, **found})
                print(json.dumps(rows[-1]), flush=True)
    write(args, rows)


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """A table with the worst of both optimizers, and all rows as JSON."""
    about = (
        f"{date.today()}, {args.device} ({platform.processor() or platform.machine()}), {args.dtype}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {STEPS} steps, SGD and AdamW"
    )
    lines = ["# Many ranks against one process", "", about, ""]
    lines += ["Largest relative difference of loss / gradient norm / the adapter's change, of both optimizers.", ""]
    lines += ["| strategy | ranks | chunks | accumulated | clipped | loss | gradient | change |", "| --- " * 8 + "|"]
    key = ("strategy", "ranks", "chunk_tokens", "accumulate", "clip")
    for group, members in itertools.groupby(rows, key=lambda row: tuple(row[k] for k in key)):
        both = list(members)
        name, ranks, chunk, accumulate, clip = group
        worst = [max(row[k] for row in both) for k in ("train/loss", "grad_norm", "change")]
        words = [name, ranks, chunk or "no", accumulate, clip or "no", *(f"{value:.1e}" for value in worst)]
        lines.append("| " + " | ".join(map(str, words)) + " |")
    lines += ["", f"Command: `{command()}`", ""]
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{date.today()}-equality-{args.device}-{args.dtype}"
    stem.with_suffix(".md").write_text("\n".join(lines))
    stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
