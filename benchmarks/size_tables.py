"""Tables of `lightning size` for 1.3B, 8B and 70B on 8, 64 and 1,024 GPUs.

python benchmarks/size_tables.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_modules.sizing.command import needed, verdict
from lightning_modules.sizing.job import Overrides, read_job
from lightning_modules.sizing.memory import memory
from lightning_modules.sizing.speed import Machine, step_time, traffic

HERE = Path(__file__).parent
ROWS = {"mntp": 32, "simcse": 128, "supervised": 64}  # of one GPU, as LLM2Vec published them
MODELS = {"sheared-llama-1.3b": "ddp", "llama-3.1-8b": "ddp", "llama-3.1-70b": "fsdp2"}


def line(model: str, stage: str, gpus: int, strategy: str) -> str:
    options = Overrides(
        model=str(HERE / "shapes" / model),
        nodes=gpus // 8,
        gpus=8,
        strategy=strategy,
        global_batch=ROWS[stage] * gpus,
        chunk_tokens=8192,
        activation_checkpointing=stage != "simcse",
    )
    job, machine = read_job(HERE.parent / "configs" / "llama-3.1-8b" / f"{stage}.yaml", options), Machine()
    parts, time = memory(job), step_time(job, machine)
    loss = parts["vectors of all ranks"] + parts["logits of the loss"]
    run = parts["activations kept"] + parts["activations at work"]
    fixed = sum(parts[name] for name in ("base weights", "trained weights", "gradients", "optimizer"))
    sent = {part.what: part.size / 1e9 for part in traffic(job)}
    said = verdict(job, machine).partition(". ")[2] or "fits"
    cells = [model, stage, f"{gpus:,}", strategy, f"{job.global_batch:,}"]
    cells += [f"{value / 1e9:.1f}" for value in (fixed, parts["gathered weights"], run, loss)]
    cells += [f"{needed(job, machine):.1f}", f"{sent.get('weights, gathered', 0):,.0f}"]
    cells += [
        f"{sum(sent.values()) - sent.get('weights, gathered', 0):.2f}",
        f"{time.compute:.1f}",
        f"{time.total:.1f}",
    ]
    return f"| {' | '.join([*cells, said])} |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    heads = "base, stage, GPUs, strategy, global batch, weights and optimizer, gathered, activations, loss, sum"
    heads += ", weights sent, other sent, s a step, in 80 GB"
    names = heads.split(", ")
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for model, strategy in MODELS.items():
        for stage in ROWS:
            for gpus in (8, 64, 1024):
                print(line(model, stage, gpus, strategy))


if __name__ == "__main__":
    main()
