"""Peak memory of a rank: while it loads a base, under each strategy; and of a step, while the global batch grows.

    python benchmarks/memory.py [--loading ddp:1 ddp:2 zero3:2 fsdp2:2] [--pairs 64 512 4096] [--out benchmarks/reports]

Real runs of the supervised stage in forked ranks with gloo between them, random weights of a Llama's shape. Memory is
the kernel's high-water mark of the process above what it held before.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from harness import held, keep
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import build_tiny_llama
from ranks import run_ranks

import lightning_modules.strategies  # noqa: F401  # their names
from datamodules import Pairs, Source
from lightning_modules import Supervised
from otherside.adapters import Lora
from otherside.backbone import BackboneConfig

LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}


@contextmanager
def peak() -> Iterator[dict[str, float]]:
    """MB that the block needs on top, at its peak, and seconds."""
    Path("/proc/self/clear_refs").write_text("5")
    found, before, begun = {}, held("VmRSS"), time.perf_counter()
    yield found
    found |= {"mb": (held("VmHWM") - before) / 2**20, "seconds": time.perf_counter() - begun}


def build(folder: Path, vocabulary: int, shape: dict[str, int]) -> Path:
    """A Llama with random weights in several files, and the tiny Llama's tokenizer."""
    build_tiny_llama(folder)
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **shape))
    print(f"{sum(p.numel() for p in lm.parameters()) / 1e6:.0f}M parameters", flush=True)
    lm.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")  # read as float32, so nothing is only mapped
    if (folder / "model.safetensors.index.json").exists():
        (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


def write_pairs(file: Path, rows: int) -> Path:
    """All different, 10 to 40 tokens long."""
    rows_ = (
        {"query": f"question {i} of {i * 7 % rows}", "positive": f"answer {i}" + " and so on" * (i % 9)}
        for i in range(rows)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_))
    return file


class Steps(pl.Callback):
    """Takes each training step's memory and time."""

    def __init__(self) -> None:
        self.taken: list[dict[str, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.block = peak()
        self.found = self.block.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.block.__exit__(None, None, None)
        self.taken.append(self.found)


def train(strategy: str, ranks: int, model: Path, pairs: Path, batch: int, chunk_tokens: int, steps: int) -> list[Any]:
    """For each rank: peak of loading (before the first step), and of the last step."""

    def one_rank() -> dict[str, dict[str, float]]:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back to the system, and is not counted
        libc.malloc_trim(0)
        callback = Steps()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=ranks,
                strategy=strategy if ranks > 1 or strategy != "ddp" else "auto",
                max_steps=steps,
                callbacks=[callback],
                enable_progress_bar=False,
                use_distributed_sampler=False,
                default_root_dir=folder,
                **quiet,
            )
            module = Supervised(
                backbone=BackboneConfig(str(model), dtype="float32"),
                lora=Lora(r=8, dropout=0.0),
                chunk_tokens=chunk_tokens,
            )
            data = Pairs(module.tokenizer, [Source(str(pairs))], global_batch_size=batch, max_length=64, num_workers=0)
            with peak() as loading:
                configure, loaded = type(module).configure_optimizers, {}

                def after_setup(self: Supervised) -> Any:  # the model is loaded and, but for DeepSpeed's hooks, set up
                    loaded["mb"] = (held("VmHWM") - before) / 2**20
                    loaded["kept"] = (held("VmRSS") - before) / 2**20
                    return configure(self)

                before = held("VmRSS")
                type(module).configure_optimizers = after_setup  # type: ignore[method-assign]
                trainer.fit(module, data)
        return {"loading": loaded, "step": callback.taken[-1], "all": loading}

    return run_ranks(ranks, one_rank, group=False, timeout=3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loading", nargs="*", default=["ddp:1", "ddp:2", "zero3:1", "zero3:2", "fsdp2:2", "fsdp2:4"])
    parser.add_argument("--pairs", nargs="*", type=int, default=[64, 512, 4096])
    parser.add_argument("--strategy", default="ddp:2", help="of the growing batch")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["One thread a rank, gloo, float32", ""]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = write_pairs(folder / "pairs.jsonl", 10_000)
        large = build(folder / "large", 32_000, LARGE)
        size = 2 * sum(file.stat().st_size for file in large.glob("*.safetensors")) / 2**20
        lines += [f"Loading a base that takes {size:.0f} MB as float32, the rank that needs most:", ""]
        lines += ["| strategy | ranks | peak MB | kept MB | peak / base |", "| --- | --- | --- | --- | --- |"]
        for case in settings.loading:
            strategy, ranks = case.split(":")
            found = train(strategy, int(ranks), large, rows, 8, 512, 1)
            most = max((rank["loading"] for rank in found), key=lambda rank: rank["mb"])
            lines.append(f"| {strategy} | {ranks} | {most['mb']:.0f} | {most['kept']:.0f} | {most['mb'] / size:.2f} |")
            print(lines[-1], flush=True)
        small = build(folder / "small", 2_000, SMALL)
        strategy, ranks = settings.strategy.split(":")
        lines += [
            "",
            f"Chunks of 1,024 tokens, {strategy}, {ranks} ranks, a small Llama (hidden 128):",
            "",
        ]
        lines += ["| pairs | peak MB | s | s / pair |", "| --- | --- | --- | --- |"]
        for batch in settings.pairs:
            found = train(strategy, int(ranks), small, rows, batch, 1024, 2)
            most = max((rank["step"] for rank in found), key=lambda rank: rank["mb"])
            each = most["seconds"] / batch
            lines.append(f"| {batch} | {most['mb']:.0f} | {most['seconds']:.1f} | {each:.4f} |")
            print(lines[-1], flush=True)
    keep(settings.out, "memory", "Memory of a rank", lines)


if __name__ == "__main__":
    main()
