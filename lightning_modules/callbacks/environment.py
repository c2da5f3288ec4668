"""Notes with which software, on which hardware and for how long a stage was trained: `environment.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from lightning_modules.finished import ENVIRONMENT, starts
from otherside.files import atomic
from otherside.sharding import whole_shape

PACKAGES = ("otherside", "torch", "lightning", "transformers", "peft", "deepspeed", "datasets", "mteb", "scikit-learn")


class Environment(pl.Callback):
    """Writes `<trainer.default_root_dir>/environment.json`: an entry per start of the run, brought up to date at every
    checkpoint, so that a killed run is told of too.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._earlier: list[dict[str, Any]] = []
        self._entry: dict[str, Any] = {}

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._began = time.monotonic()
        self._earlier = self._read(Path(trainer.default_root_dir))
        self._entry = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "first_step": trainer.global_step,
            "python": platform.python_version(),
            "packages": versions(),
            "commit": commit(),
            "system": platform.platform(terse=True),
            "device": device_name(trainer.strategy.root_device),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "ranks": trainer.world_size,
            "nodes": trainer.num_nodes,
            "strategy": type(trainer.strategy).__name__,
            "precision": str(trainer.precision),
            "parameters": sizes(pl_module),
        }
        self._write(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._write(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer)

    @staticmethod
    def _read(root: Path) -> list[dict[str, Any]]:
        """Earlier starts; notes that are broken are moved aside, as no training waits for them."""
        try:
            return starts(root)
        except ValueError:
            aside = root / f"{ENVIRONMENT}.broken"
            (root / ENVIRONMENT).replace(aside)
            print(f"{root / ENVIRONMENT} cannot be read, and is now {aside}", file=sys.stderr, flush=True)
            return []

    def _write(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or not self._entry or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._entry |= {"last_step": trainer.global_step, "seconds": round(time.monotonic() - self._began, 1)}
        with atomic(Path(trainer.default_root_dir) / ENVIRONMENT) as temporary:
            temporary.write_text(json.dumps({"starts": [*self._earlier, self._entry]}, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Of the packages that decide about numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Of this project's source, if it is a git repository; with a + if files were changed since."""
    folder = Path(__file__).parents[2]
    try:
        if not (folder / ".git").exists():
            return None
        asked = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def sizes(module: torch.nn.Module) -> dict[str, int]:
    """Numbers of parameters, also of sharded ones."""
    counts = [(whole_shape(p).numel(), p.requires_grad) for p in module.parameters()]
    return {"all": sum(n for n, _ in counts), "trained": sum(n for n, trained in counts if trained)}
