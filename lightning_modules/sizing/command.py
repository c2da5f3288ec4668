"""`lightning size`: memory, communication and time of a stage on N nodes, before anything is started."""

from __future__ import annotations

import json as json_
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_modules.sizing.job import SHARDED, Job, Overrides, read_job
from lightning_modules.sizing.memory import decided, held_weights, kept_by_token, memory
from lightning_modules.sizing.speed import PEAKS, Machine, operations, step_time, too_few, traffic

GB = 1e9


def size(
    config: Path,
    model: str | None = None,
    nodes: int | None = None,
    gpus: int | None = None,
    strategy: str | None = None,
    global_batch: int | None = None,
    length: int | None = None,
    chunk_tokens: int | None = None,
    lora_r: int | None = None,
    activation_checkpointing: bool | None = None,
    gpu_memory: float | None = None,
    reserve: float | None = None,
    flops: float | None = None,
    utilisation: float | None = None,
    bandwidth: float = 50,
    node_bandwidth: float = 450,
    latency: float = 5e-6,
    json: bool = False,
) -> None:
    """What a stage needs on N nodes: memory of each rank, communication and time of a step. No weights are loaded.

    Options replace the YAML's settings. GB are 10^9 bytes. Where `trainer.accelerator` is cpu and --gpus is not
    given, memory and speed are this machine's, shared by the processes of a node.

    Args:
        config: a stage's YAML.
        model: the base model, or a folder with its config.json.
        nodes: machines.
        gpus: GPUs of each; 1, if neither this nor trainer.devices is a number.
        strategy: ddp, zero1, zero2, zero3 or fsdp2.
        global_batch: texts or pairs of a batch, all ranks together.
        length: tokens of a text; the longest allowed, if not said.
        chunk_tokens: tokens that go through the model at once.
        lora_r: rank of the adapter; where the YAML has none (`lora: null`), one in place of full fine-tuning.
        activation_checkpointing: whether each layer is computed again in backward.
        gpu_memory: of a device, in GB; 80 if it is not given.
        reserve: of it, for CUDA, NCCL and fragmentation, in GB; 4 on GPUs, 2 on CPUs.
        flops: of a device per second, dense, in the base's type; an H100's, if they are not given: 989e12, or 67e12
            in float32.
        utilisation: share of them that training reaches; 0.4 on GPUs.
        bandwidth: of a device to another node, in GB/s.
        node_bandwidth: of a device to another of its node, in GB/s.
        latency: of one hop of a collective's ring, in seconds.
        json: print JSON instead, for programs.

    Raises:
        FileNotFoundError: the YAML or the base model's config.json is not there.
        ValueError: a setting is missing or wrong.
    """
    options = Overrides(
        model, nodes, gpus, strategy, global_batch, length, chunk_tokens, lora_r, activation_checkpointing
    )
    job = read_job(config, options)
    machine = Machine(flops=PEAKS[job.dtype]) if job.cuda else _cpus(job.gpus, job.dtype)
    given = {"memory": gpu_memory, "reserve": reserve, "flops": flops, "utilisation": utilisation}
    machine = replace(machine, **{name: value for name, value in given.items() if value is not None})
    machine = replace(machine, bandwidth=bandwidth, node_bandwidth=node_bandwidth, latency=latency)
    job = as_trained(job, machine)
    print(json_.dumps(report(job, machine), indent=2) if json else "\n".join(table(job, machine)))


def _cpus(processes: int, dtype: str) -> Machine:
    """This machine, as one of so many processes on it has it."""
    from lightning_modules.hardware import cpu  # imports torch, which no GPU needs to be sized

    whole = cpu(dtype).machine
    return replace(whole, memory=whole.memory / processes, flops=whole.flops / processes)


def as_trained(job: Job, machine: Machine) -> Job:
    """The job with what is "auto" decided for a device of this machine, on which nothing else runs."""
    return decided(job, (machine.memory - machine.reserve) * GB - held_weights(job))


def needed(job: Job, machine: Machine) -> float:
    """GB of one device."""
    return sum(memory(job).values()) / GB + machine.reserve


def report(job: Job, machine: Machine) -> dict[str, Any]:
    """Everything, as JSON has it: bytes, seconds."""
    time = step_time(job, machine)
    return {
        "job": asdict(job),
        "machine": asdict(machine),
        "parameters": {"base": job.shape.base, "trained": job.adapter.weights(job.shape)},
        "per_rank": {"texts": job.texts, "tokens": job.tokens, "chunks": job.chunks, "chunk_tokens": job.chunk},
        "activation_bytes_per_token": kept_by_token(job),
        "memory_bytes": memory(job),
        "needed_gb": needed(job, machine),
        "fits": needed(job, machine) <= machine.memory,
        "verdict": verdict(job, machine),
        "advice": advice(job),
        "communication": [asdict(part) | {"seconds": part.seconds(job, machine)} for part in traffic(job)],
        "operations": operations(job),
        "seconds": {**asdict(time), "step": time.total},
    }


def table(job: Job, machine: Machine) -> list[str]:
    """The report for people."""
    device, plural = ("GPU", "s") if job.cuda else ("process", "es")
    plural *= job.ranks > 1
    base, trained = job.shape.base, job.adapter.weights(job.shape) / 1e6
    kind = f"full fine-tuning of {trained:,.1f}M" if job.is_full else f"adapter of {trained:.1f}M (r {job.adapter.r})"
    time = step_time(job, machine)
    lines = [
        f"{job.stage}, {base / 1e9:.2f}B base in {job.quantized or job.dtype}, {kind}; "
        f"{job.nodes} x {job.gpus} = {job.ranks} {device}{plural}, {job.strategy}",
        f"global batch {job.global_batch}: {job.texts} texts of {job.length} tokens a {device}, in {job.chunks} "
        f"chunk{'s' * (job.chunks > 1)} of {job.chunk} tokens"
        + (", computed again in backward" if job.recomputes else "")
        + (", each layer once more" if job.layers_again else ""),
        "",
        f"{f'memory of one {device}':<34}{'GB':>10}",
    ]
    rows = {name: value / GB for name, value in memory(job).items()} | {"reserve": machine.reserve}
    lines += [f"  {name:<32}{value:>10.3f}" for name, value in rows.items() if value]
    lines += [
        f"  {'sum':<32}{needed(job, machine):>10.3f}",
        f"  {kept_by_token(job) / 1e3:,.0f} kB kept for each token",
    ]
    lines += ["", f"{'communication of a step':<34}{'GB':>10}{'calls':>10}{'s':>10}"]
    for part in traffic(job):
        lines.append(f"  {part.what:<32}{part.size / GB:>10.3f}{part.calls:>10}{part.seconds(job, machine):>10.3f}")
    lines += [] if traffic(job) else ["  none"]
    lines += [
        "",
        f"{'time of a step':<34}{'s':>10}",
        f"  {'computation':<32}{time.compute:>10.3f}   {operations(job) / 1e12:,.1f} TFLOP at "
        f"{machine.utilisation:.0%} of {machine.flops / 1e12:,.{1 if job.cuda else 3}f} TFLOP/s",
        f"  {'step':<32}{time.total:>10.3f}   {job.tokens * job.ranks * job.accumulate / time.total:,.0f} tokens/s",
        "",
        *(f"note: {said}" for said in (*job.notes, advice(job)) if said),
        verdict(job, machine),
    ]
    return lines


def advice(job: Job) -> str | None:
    """What would use the GPUs better."""
    return too_few(job.tokens, job.ranks, job.accumulate) if job.cuda else None


def verdict(job: Job, machine: Machine) -> str:
    """One line: whether it fits, and if not, what to change first."""
    total, room = needed(job, machine), f"{machine.memory:.4g} GB"
    if total <= machine.memory:
        return f"fits in {room}: {total:.1f} GB needed"
    if found := fitting(job, machine):
        changes, other = found
        remedy = f"It fits with {', '.join(changes)}: {needed(other, machine):.1f} GB"
    else:
        largest = max(memory(job).items(), key=lambda row: row[1])
        remedy = f"Most is for {largest[0]}: take more GPUs, a smaller global batch or a smaller base"
    return f"does not fit in {room}: {total:.1f} GB needed. {remedy}"


def fitting(job: Job, machine: Machine) -> tuple[list[str], Job] | None:
    """The job, with as few changes as make it fit, and the fastest of those; None: nothing does."""
    found = [(changes, other) for changes, other in variants(job) if needed(other, machine) <= machine.memory]
    return min(found, key=lambda each: (len(each[0]), step_time(each[1], machine).total), default=None)


def variants(job: Job) -> Iterator[tuple[list[str], Job]]:
    """The job with less memory: smaller chunks, activation checkpointing, a sharded base, and all of them together."""
    whole = job.ranks == 1 or job.strategy in SHARDED or job.quantized
    strategies = [job.strategy] if whole else [job.strategy, "fsdp2"]
    for strategy in strategies:
        for checkpointing in {job.layers_again, True}:
            chunk = job.chunk
            while True:
                smaller = chunk < job.chunk
                changes = [f"chunk_tokens {chunk}"] if smaller else []
                changes += ["recompute true"] if smaller and not job.recomputes else []
                changes += ["activation_checkpointing true"] if checkpointing != job.layers_again else []
                changes += [f"strategy {strategy} (or zero3)"] if strategy != job.strategy else []
                other = replace(job, strategy=strategy, activation_checkpointing=checkpointing)
                yield changes, replace(other, chunk_tokens=chunk, recompute=True) if smaller else other
                if chunk // 2 < job.length:
                    break
                chunk //= 2
