"""Memory of one rank, by what needs it. All sizes in bytes.

Activations are counted by kinds of tensors that autograd keeps for backward; a test compares the count with what it
really keeps. h, i: hidden and inner size; Q, K: width of all query and key heads; H heads; L tokens of a text.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from lightning_modules.sizing.job import SHARDED, Job
from otherside.llama import READERS

FLOAT = 4
LOGITS = 1024  # positions that MNTP's head runs on at once; see otherside.mntp.loss
PERSISTENT = 100_000  # elements; DeepSpeed keeps smaller parameters on every rank
WHOLE_GRADIENTS = ("ddp", "zero1")
LIVE = 1_000_000_000  # elements of the base that DeepSpeed keeps gathered at most
SHARE = 0.9  # of the free memory, as the estimate is one, and memory is cut into pieces
NF4 = 1 / 2 + 1 / 64 + FLOAT / (64 * 256)  # bytes of a weight, with its part of the constants of its blocks


def memory(job: Job) -> dict[str, float]:
    """Bytes of one rank at the peak of a step, by what they are for; their sum is the peak.

    That is reached in the loss, in backward or in the optimizer's step, which are not at the same time: where chunks
    are computed again in backward, the loss is done before.
    """
    held = {
        "base weights": base_weights(job),
        "trained weights": trained_weights(job),
        "gradients": gradients(job),
        "optimizer": optimizer(job),
        "gathered weights": gathered_weights(job),
    }
    passing = {
        "activations kept": activations(job),
        "activations at work": working(job),
        "gradients of one chunk": gradients_of_chunk(job),
        "vectors of all ranks": vectors(job),
        "logits of the loss": logits(job),
        "optimizer at work": stepping(job),
    }
    kept, work, of_chunk, of_all, scores, step = passing.values()
    peak = max(kept * (not job.recomputes) + of_all + scores, kept + work + of_chunk, step)
    return held | passing | {"not at the same time": peak - sum(passing.values())}


def decided(job: Job, free: float) -> Job:
    """The job with what is "auto" decided, as training, `lightning size` and `lightning new` do: the first that fits of
    nothing computed twice, chunks, layers, or both (layers three times). If none fits, the one that needs least.

    Args:
        job: a stage's settings.
        free: bytes beside its weights.
    """
    layers, chunks = (
        (False, True) if choice == "auto" else (choice,) for choice in (job.activation_checkpointing, job.recompute)
    )
    ways = [replace(job, activation_checkpointing=a, recompute=r) for a, r in product(layers, chunks)]
    needed = {way: sum(memory(way).values()) for way in ways}
    room = SHARE * free + held_weights(job)
    return next((way for way in ways if needed[way] <= room), min(ways, key=needed.__getitem__))


def held_weights(job: Job) -> float:
    """Those that are there before training begins."""
    return base_weights(job) + trained_weights(job)


def base_weights(job: Job) -> float:
    """The frozen base, or this rank's shard."""
    if job.offload_base:
        return 0
    frozen = job.shape.base - job.adapter.of_base(job.shape)
    if job.quantized:
        return NF4 * job.shape.matrices + job.element * (frozen - job.shape.matrices)
    return frozen * job.element / (job.ranks if job.strategy in SHARDED else 1)


def trained_weights(job: Job) -> float:
    """In float32; DeepSpeed shards large tensors only, and ZeRO keeps a second copy, sharded."""
    weights = job.adapter.weights(job.shape)
    whole = weights
    if job.strategy == "fsdp2":
        whole = 0
    elif job.strategy == "zero3":
        small = sum(size for size in job.adapter.tensors(job.shape) if size < PERSISTENT)
        whole = job.adapter.layers(job.shape) * small
    copies = weights / job.ranks if job.strategy.startswith("zero") and not job.offload_optimizer else 0
    return FLOAT * (whole + (weights - whole) / job.ranks + copies)


def gradients(job: Job) -> float:
    """Of what is trained, in float32, and the buffers that they are reduced in; DDP's gradients are parts of these.

    All chunks are one backward: a weight's gradient is the sum over them, and autograd hands it on, to be reduced, when
    the last chunk has added its part. Until then each rank holds all of them whole, under every strategy.
    """
    weights = job.adapter.weights(job.shape)
    if job.ranks == 1 and job.strategy in ("ddp", "fsdp2"):
        return FLOAT * weights
    buffers = {"ddp": weights, "fsdp2": 0, "zero3": job.bucket}.get(job.strategy, 2 * job.bucket)
    shards = weights / job.ranks if job.strategy not in WHOLE_GRADIENTS else 0
    whole = weights if job.strategy == "zero1" or job.chunks > 1 else 0
    return FLOAT * (shards + whole + buffers)


def gradients_of_chunk(job: Job) -> float:
    """Of a chunk that is computed again, before they are added to those of the chunks before. Where weights are shared
    out, torch's own checkpoint adds them one by one.
    """
    return FLOAT * job.adapter.weights(job.shape) * (job.recomputes and job.strategy not in SHARDED)


def optimizer(job: Job) -> float:
    """What AdamW keeps for each weight that is trained; other optimizers keep less."""
    if job.offload_optimizer:
        return 0
    return 2 * FLOAT * job.adapter.weights(job.shape) / (1 if job.strategy == "ddp" else job.ranks)


def stepping(job: Job) -> float:
    """What AdamW computes an update from: a copy of the second moment, on GPUs of all weights at once (`foreach`). ZeRO
    has them in one tensor; FSDP2's are taken one by one.
    """
    if job.offload_optimizer:
        return 0
    weights = FLOAT * job.adapter.weights(job.shape)
    if job.strategy == "ddp":
        return weights * job.cuda
    return weights / job.ranks if job.strategy != "fsdp2" else 0


def gathered_weights(job: Job) -> float:
    """Of a sharded base, what is whole at a time: the layer at work and the next one, or the embeddings."""
    if job.strategy not in SHARDED or job.ranks == 1:
        return 0
    size = FLOAT if job.is_full else job.element
    beside = 0 if job.is_full else FLOAT * job.adapter.weights(job.shape) / job.shape.layers
    live = max(2 * (job.shape.layer * size + beside), job.shape.embeddings * size)
    return live if job.strategy == "fsdp2" else max(live, min(LIVE, job.shape.base) * size)


def kept_by_attention(job: Job) -> float:
    """Kept per token of one layer by the attention kernel."""
    shape, size = job.shape, job.element
    dropped = job.attention_dropout > 0
    if job.attention == "fused":
        return 2 * shape.queries * size + 2 * shape.keys * size + FLOAT * shape.heads
    scores = shape.heads * job.length
    if job.attention == "math":  # in float32, keys and values repeated for each query head
        return 3 * shape.queries * FLOAT + scores * FLOAT * (3 if dropped else 1)
    half = size < FLOAT
    shares = FLOAT + size * (half or dropped) + dropped  # softmax, its rounded or dropped copy, the mask
    return (shape.queries + 2 * shape.keys) * size + scores * shares


def kept_by_adapter(job: Job) -> float:
    """Kept per token of one layer by the adapter: its inputs, their dropout's masks, and what is between A and B. Where
    the projections' own weights are trained, their inputs alone.
    """
    targets, dropped = job.adapter.of(job.shape), job.adapter.dropout > 0
    shared = job.adapter.share_dropout and not job.adapter.dora
    total = float(job.element * job.adapter.r * len(targets))
    for group in READERS:
        readers = [name for name in group if name in targets]
        if not readers:
            continue
        width = job.shape.projections[readers[0]][0]
        copies = len(readers) if dropped and not shared else 1
        mask = job.element if job.adapter.dora and not job.cuda else 1  # bytes; on CPUs torch's own has numbers
        is_attention = group == ("o_proj",) and job.unpadded and job.attention == "fused" and not dropped
        total += copies * width * (job.element * (not is_attention) + mask * dropped)
    return total


def kept_by_norm(job: Job) -> float:
    """Kept per token of one norm: float32, and for the gradient of its weights what they are multiplied with."""
    return FLOAT * (job.shape.hidden + 1) + job.element * job.shape.hidden * job.is_full


def kept_by_layer(job: Job) -> float:
    """Kept per token of one layer for backward."""
    gated = 3 * job.shape.inner * job.element  # gate, its activation, up
    return 2 * kept_by_norm(job) + gated + kept_by_attention(job) + kept_by_adapter(job)


def kept_by_token(job: Job) -> float:
    """Kept per token of the whole model between forward and backward."""
    rotary = 2 * job.shape.head_size * job.element
    if not job.layers_again:
        return job.adapter.layers(job.shape) * kept_by_layer(job) + rotary
    return job.shape.layers * job.shape.hidden * job.element + kept_by_norm(job) + rotary


def activations(job: Job) -> float:
    """Kept for backward at the peak: of one chunk where chunks are computed again, else of the whole batch.

    Where PEFT's own forward runs, in half precision also the adapter's rounded copies, of each run of the model; and so
    the base's own weights that are trained.
    """
    tokens, runs = (job.chunk, 1) if job.recomputes else (job.tokens, job.chunks)
    by_autocast = job.adapter.dora or job.strategy == "zero3" or job.is_full or job.quantized
    rounded = job.element * multiplied(job) if by_autocast and job.element < FLOAT else 0
    return tokens * kept_by_token(job) + rounded * runs * (not job.layers_again)


def multiplied(job: Job) -> float:
    """Trained weights of linear layers."""
    if job.is_full:
        return job.shape.matrices * job.adapter.layers(job.shape) / job.shape.layers
    return job.adapter.weights(job.shape)


def working(job: Job) -> float:
    """Passing through: gradients of one layer's largest tensors, and a layer that is computed again; of one chunk. A
    matrix of four bits is written out.
    """
    again = kept_by_layer(job) if job.layers_again else 0
    written = job.element * max(n * m for n, m in job.shape.projections.values()) if job.quantized else 0
    return written + job.chunk * (4 * job.shape.inner * job.element + 4 * job.shape.hidden * FLOAT + again)


def vectors(job: Job) -> float:
    """Text vectors that a contrastive loss gathers, in float32: themselves, their gradient, and both once more in parts
    on their way from and to other ranks; shortened copies for each smaller Matryoshka size.
    """
    if not job.candidates:
        return 0
    queries = job.global_batch * job.symmetric
    shortened = 4 * (sum(job.widths) - 1) * (job.candidates + queries)
    return FLOAT * job.shape.hidden * (2 * job.texts + 3 * job.candidates + queries + shortened)


def logits(job: Job) -> float:
    """Scores that the loss is computed from, with their copies and gradient."""
    if job.stage == "mntp":
        positions = min(LOGITS, round(job.tokens * job.masked))
        return positions * job.shape.vocabulary * 3 * FLOAT
    scores = job.rows * (job.candidates + job.symmetric * job.global_batch)
    return scores * len(job.widths) * 3 * FLOAT
