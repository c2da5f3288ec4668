"""Runs on several ranks, and what they must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import runs

SHARDED = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
ZERO3 = {  # without its thresholds the tiny Llama's weights would all stay whole, and ever longer traces be searched
    "class_path": "lightning_modules.strategies.ZeRO",
    "init_args": {
        "stage": 3,
        "config": {
            "zero_allow_untested_optimizer": True,
            "zero_optimization": SHARDED,
        },
    },
}
STRATEGIES = {"auto": "auto", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": ZERO3, "fsdp2": "fsdp2"}
SHARING = ("zero3", "fsdp2")  # that share the base's weights out, too
CUT = {"model.init_args.chunk_tokens": 80, "trainer.accumulate_grad_batches": 2, "trainer.gradient_clip_val": 0.05}
FULL: dict[str, Any] = {"model.init_args.lora": None}
FROZEN = {**FULL, "model.init_args.frozen_layers": 1}
NF4 = {"model.init_args.backbone.quantized": "nf4"}
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
    if stage == "Supervised":  # the default, 20, is the factor by which the loss enlarges the rounding of cosines
        options["model.init_args.loss"] = {"scale": 2}
    config = runs.write_stage(place, stage, llama, root=root, **options | settings)
    runs.run_ranks(ranks, "fit", "--config", config, "--trainer.max_steps", str(stop), cwd=place, timeout=250)
    return place / root


def once(place: Path, llama: Path, root: str, *how: Any, **settings: Any) -> Path:
    """As `train`, but a run that is there already is taken as it is."""
    return place / root if (place / root).exists() else train(place, llama, root, *how, **settings)


def differences(found: Path, expected: Path) -> dict[str, float]:
    """Largest relative ones: of loss and gradient norm of all steps, and of the final weights."""
    worst = {}
    for name in ("train/loss", "grad_norm"):
        one, other = runs.metrics(found, name), runs.metrics(expected, name)
        assert one.keys() == other.keys(), f"{name} of steps {sorted(one)} instead of {sorted(other)}"
        worst[name] = max(abs(one[step] / other[step] - 1) for step in other)
    one, other = runs.adapter(found), runs.adapter(expected)
    worst["weights"] = max(float((one[name] - tensor).norm() / tensor.norm()) for name, tensor in other.items())
    return worst


def assert_same_training(found: Path, expected: Path, norm: float = 1e-6) -> None:
    """Loss and gradient norm of every step, and the final weights."""
    worst = differences(found, expected)
    assert worst["train/loss"] < 1e-6 and worst["grad_norm"] < norm and worst["weights"] < 1e-5, worst
