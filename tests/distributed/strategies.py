"""Runs on several ranks, and what they must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import runs

ZERO3 = {  # without its threshold the tiny Llama's weights would all stay whole
    "class_path": "lightning_modules.strategies.ZeRO",
    "init_args": {
        "stage": 3,
        "config": {
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        },
    },
}
STRATEGIES = {"auto": "auto", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": ZERO3, "fsdp2": "fsdp2"}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02}}
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "eps": 1e-3}}  # else it blows up rounding


def train(
    place: Path, llama: Path, root: str, stage: str, strategy: str, ranks: int, stop: int = 4, **settings: Any
) -> Path:
    """A run in the folder `place / root`, or its continuation, until step `stop`; its loss and gradient are logged."""
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(place / root), "name": "csv"},
    }
    options = {
        "trainer.strategy": STRATEGIES[strategy],
        "trainer.logger": logger,
        "model.init_args.lora": {"r": 4, "alpha": 8, "dropout": 0.0},  # dropout is drawn by rank
        "model.init_args.optimizer": SGD,
        "data.init_args.global_batch_size": 6,
    }
    config = runs.write_stage(place, stage, llama, root=root, **options | settings)
    runs.run_ranks(ranks, "fit", "--config", config, "--trainer.max_steps", str(stop), cwd=place, timeout=250)
    return place / root


def assert_same_training(found: Path, expected: Path) -> None:
    """Loss and gradient norm of every step, and the final weights."""
    for name in ("train/loss", "grad_norm"):
        one, other = runs.metrics(found, name), runs.metrics(expected, name)
        assert one.keys() == other.keys(), f"{name} of steps {sorted(one)} instead of {sorted(other)}"
        worst = max(abs(one[step] / other[step] - 1) for step in other)
        assert worst < 3e-6, f"{name} differs by {worst:.2g}: {one} instead of {other}"
    for name, tensor in runs.adapter(expected).items():
        worst = float((runs.adapter(found)[name] - tensor).norm() / tensor.norm())
        assert worst < 1e-5, f"{name} differs by {worst:.2g}"
