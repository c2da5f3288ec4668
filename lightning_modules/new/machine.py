"""The machine that a recipe is written for: this one."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from lightning_modules import host
from lightning_modules.callbacks.throughput import peak
from lightning_modules.sizing.speed import Machine
from otherside.backbone import fast_dtype

GPU, CPU = 0.4, {"float32": 0.5, "bfloat16": 0.25}  # shares of what large products reach; CPUs log more in a quickstart
RESERVE = {"cuda": 4.0, "cpu": 2.0}  # GB; on CPUs for the process itself, and others


@dataclass(frozen=True)
class Here:
    """What stages have to fit.

    Args:
        name: for people.
        gpus: their number; 0: the CPU.
        dtype: that it multiplies in fast.
        machine: its memory and speed.
    """

    name: str
    gpus: int
    dtype: str
    machine: Machine


def here() -> Here:
    """Look at this machine; a second of measuring."""
    kind, dtype = "cuda" if torch.cuda.is_available() else "cpu", fast_dtype()
    flops = peak(torch.device(kind), getattr(torch, dtype))
    gpus = torch.cuda.device_count()
    if kind == "cuda":
        memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(gpus)) / 1e9
        name = f"{gpus} GPU{'s' * (gpus > 1)} ({torch.cuda.get_device_name(0)}) of {memory:.0f} GB"
    else:
        memory, gpus = host.total() / 1e9, 0
        name = f"{len(os.sched_getaffinity(0))} CPU cores, {memory:.0f} GB"
    utilisation = GPU if gpus else CPU[dtype]
    return Here(name, gpus, dtype, Machine(memory, RESERVE[kind], flops, utilisation))
