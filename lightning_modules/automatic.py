"""What `auto` means for `recompute` and `activation_checkpointing`: the cheapest way to train that memory allows."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, get_args

import torch

from lightning_modules import host
from lightning_modules.sizing.job import BUCKET, SHARDED, Job, Stage, strategy_named, widths
from lightning_modules.sizing.memory import SHARE, decided, held_weights, kept_by_token, memory
from lightning_modules.sizing.shape import Adapter, Full, Shape
from otherside import distributed

if TYPE_CHECKING:
    from lightning_modules.base import EncoderModule

GB = 1e9
RESERVE = 2 * GB  # of a GPU, for NCCL and what products need


def job_of(module: EncoderModule) -> Job:
    """What a module with its trainer and data module trains.

    Raises:
        ValueError: it is not one of our stages; its shape or the number of its texts is not known.
    """
    trainer, backbone = module.trainer, module.backbone_config
    data: Any = getattr(trainer, "datamodule", None)
    if module.stage not in get_args(Stage):
        raise ValueError(f"a stage must be one of {', '.join(get_args(Stage))}; got {module.stage}")
    length = getattr(data, "block_size", None) or getattr(data, "max_length", None)
    if length is None or not hasattr(data, "global_batch_size") or getattr(data, "negatives", 1) is None:
        raise ValueError("data must say how many texts a batch has, and how long they are")
    lm, loss = module.encoder.backbone.lm, getattr(module, "info_nce", None)
    shape, strategy = Shape.from_config(lm.config.to_dict(), "the model"), trainer.strategy
    zero = (getattr(strategy, "config", None) or {}).get("zero_optimization", {})
    return Job(
        stage=module.stage,  # type: ignore[arg-type]
        shape=shape,
        adapter=Adapter.read(asdict(module.lora)) if module.lora else Full(frozen_layers=module.frozen_layers),
        global_batch=data.global_batch_size,
        length=length,
        strategy=strategy_named(type(strategy).__name__, zero.get("stage", 2)),
        nodes=trainer.num_nodes,
        gpus=trainer.num_devices,
        dtype=str(module.encoder.backbone.dtype).removeprefix("torch."),
        quantized=backbone.quantized,
        kernel=backbone.kernel,
        attention_dropout=backbone.attention_dropout,
        activation_checkpointing=backbone.activation_checkpointing,
        chunk_tokens=module.chunk_tokens,
        recompute=module.recompute,
        negatives=getattr(data, "negatives", 1),
        symmetric=bool(loss and loss.symmetric),
        widths=widths(shape, loss.matryoshka if loss else ()),
        masked=module.predicted,
        accumulate=trainer.accumulate_grad_batches,
        offload_optimizer=bool(zero.get("offload_optimizer")),
        offload_base=bool(zero.get("offload_param")),
        bucket=zero.get("reduce_bucket_size", BUCKET),
        even=hasattr(data, "block_size"),
        cuda=module.device.type == "cuda",
    )


def free_memory(device: torch.device, processes: int) -> float:
    """Bytes that a process may still take: of its GPU, or its share of the machine's."""
    if device.type != "cuda":
        return host.free() / processes
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused - RESERVE


def settle(module: EncoderModule) -> None:
    """Decide what a module leaves open, alike on all ranks, and say so."""
    asked = (module.recompute, module.backbone_config.activation_checkpointing)
    if "auto" not in asked:
        return
    try:
        job = job_of(module)
    except ValueError as unknown:
        layers, said = asked[1] is True, f"what training needs is not known: {unknown}"
    else:
        free = distributed.least(free_memory(module.device, module.trainer.num_devices), module.device)
        job, free = decided(job, free), SHARE * free
        layers, needed = job.layers_again, sum(memory(job).values()) - held_weights(job)
        if asked[0] == "auto":
            module.kept_tokens = kept_tokens(job, free - needed)
        said = f"the longest batch needs {needed / GB:.1f} GB beside the weights; {free / GB:.1f} GB are free"
        if needed > free:
            said += ". Should it fail: lower model.chunk_tokens"
    module.backbone_config = replace(module.backbone_config, activation_checkpointing=layers)
    if layers:
        module.encoder.backbone.compute_layers_again()
    kept = module.kept_tokens
    chunks = [] if kept == math.inf else [f"chunks of batches over {kept:,.0f} tokens" if kept else "chunks"]
    again = " and ".join([*chunks, *["layers"] * layers]) or "nothing"
    distributed.say(f"computed again in backward: {again}; {said}")


def kept_tokens(job: Job, spare: float) -> float:
    """Tokens of a batch whose activations fit: most batches are shorter than the longest, for which a job is sized.

    Args:
        job: as decided.
        spare: bytes that it leaves.
    """
    if not job.recomputes:
        return math.inf
    if job.strategy in SHARDED:  # ranks gather weights together, and so run the model equally often
        return 0
    return job.chunk + int(max(spare, 0) / kept_by_token(job))
