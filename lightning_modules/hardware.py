"""The machines that a recipe is written for: this one, or others."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import torch

from lightning_modules import host
from lightning_modules.sizing.speed import Machine
from otherside.backbone import fast_dtype

# Shares of what large products reach; CPUs log more in a quickstart
GPU, CPU = 0.4, {"float32": 0.5, "bfloat16": 0.25, "float16": 0.25}
RESERVE = {"cuda": 4.0, "cpu": 2.0}  # GB; on CPUs for the process itself, and others


@dataclass(frozen=True)
class Hardware:
    """What stages have to fit.

    Args:
        name: for people.
        gpus: of a node; 0: the CPU.
        dtype: that it multiplies in fast.
        machine: memory and speed of a device.
        nodes: machines.
    """

    name: str
    gpus: int
    dtype: str
    machine: Machine
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """Processes that train."""
        return self.nodes * max(1, self.gpus)


def hardware(nodes: int, gpus: int | None, gpu_memory: float | None) -> Hardware:
    """What a user asks for; where gpus is None, machines like this one.

    Raises:
        ValueError: a number is none of machines or GPUs, or gpus is missing.
    """
    for option, number in (("--nodes", nodes), ("--gpus", gpus)):
        if number is not None and number < 1:
            raise ValueError(f"{option} must be at least 1; got {number}")
    if gpus is None:
        if gpu_memory is not None:
            raise ValueError(f"--gpu_memory must stand beside --gpus, whose memory it is; got {gpu_memory:g} alone")
        found = here()
        if nodes > 1 and not found.gpus:
            raise ValueError(
                f"--gpus must say how many GPUs each node has, as this machine has none; got --nodes {nodes}"
            )
        return replace(found, nodes=nodes, name=f"{nodes} nodes of {found.name}") if nodes > 1 else found
    machine = Machine() if gpu_memory is None else Machine(memory=gpu_memory)
    name = f"{gpus} GPU{'s' * (gpus > 1)} of {machine.memory:.0f} GB, as fast as an H100"
    name = f"{nodes} nodes of {name}" if nodes > 1 else name
    return Hardware(name, gpus, "bfloat16", machine, nodes)


def here() -> Hardware:
    """Look at this machine; a second of measuring."""
    if not torch.cuda.is_available():
        return cpu()
    gpus, dtype = torch.cuda.device_count(), fast_dtype()
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(gpus)) / 1e9
    name = f"{gpus} GPU{'s' * (gpus > 1)} ({torch.cuda.get_device_name(0)}) of {memory:.0f} GB"
    return Hardware(name, gpus, dtype, _measured("cuda", memory, dtype, GPU))


def cpu(dtype: str | None = None) -> Hardware:
    """This machine's processors, as fast as they are in `dtype`; None: in what they multiply fast."""
    memory, dtype = host.total() / 1e9, dtype or fast_dtype()
    name = f"{len(os.sched_getaffinity(0))} CPU cores, {memory:.0f} GB"
    return Hardware(name, 0, dtype, _measured("cpu", memory, dtype, CPU[dtype]))


def _measured(kind: str, memory: float, dtype: str, utilisation: float) -> Machine:
    return Machine(memory, RESERVE[kind], peak(torch.device(kind), getattr(torch, dtype)), utilisation)


def peak(device: torch.device, dtype: torch.dtype, patience: float = 0.5) -> float:
    """Operations a second of a large matrix product, the most of several; about a second. On CPUs small ones come
    first, as some emulate a type, and large ones then, which suffer less from what else runs there.
    """
    sizes = [8192] * 5 if device.type == "cuda" else [512, 512, 1024, 1024, 2048, 2048]
    until, most = time.monotonic() + patience, 0.0
    for size in sizes:
        if most and time.monotonic() > until:
            break
        most = max(most, 2 * size**3 / _seconds(size, device, dtype))
    return most


def _seconds(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of one product."""
    a = torch.rand(size, size, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    out = torch.empty_like(a)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    begun = time.perf_counter()
    torch.mm(a, a, out=out)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begun
