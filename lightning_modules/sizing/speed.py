"""What a step computes and sends, and the time that this takes under stated assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lightning_modules.sizing.job import SHARDED, Job
from lightning_modules.sizing.memory import FLOAT, LOGITS
from lightning_modules.sizing.shape import Shape

PEAKS = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}  # H100's; torch's float32 products are no TF32
FEW = 8192  # tokens of a rank's batch; with fewer a GPU waits for weights, kernel launches and other ranks


@dataclass(frozen=True)
class Machine:
    """What is assumed of the hardware; the defaults are a node of eight H100s with one 400 Gb/s link a GPU.

    Args:
        memory: of a device, in GB (10^9 bytes).
        reserve: of it, for the CUDA context, NCCL's buffers and fragmentation, in GB.
        flops: of a device per second, dense, in the base's type.
        utilisation: share of them that training reaches.
        bandwidth: of a device to another node, in GB/s.
        node_bandwidth: of a device to another of its node, in GB/s.
        latency: of one hop of a collective's ring, in seconds.
    """

    memory: float = 80
    reserve: float = 4
    flops: float = PEAKS["bfloat16"]
    utilisation: float = 0.4
    bandwidth: float = 50
    node_bandwidth: float = 450
    latency: float = 5e-6

    def __post_init__(self) -> None:
        for name in ("memory", "flops", "utilisation", "bandwidth", "node_bandwidth"):
            if getattr(self, name) <= 0:
                option = "gpu_memory" if name == "memory" else name
                raise ValueError(f"--{option} must be positive; got {getattr(self, name)}")
        if self.utilisation > 1:
            raise ValueError(f"--utilisation must be a share of at most 1; got {self.utilisation}")
        if self.reserve < 0 or self.latency < 0:
            raise ValueError(f"--reserve and --latency must be at least 0; got {self.reserve} and {self.latency}")


@dataclass(frozen=True)
class Traffic:
    """A kind of collective.

    Args:
        what: is sent.
        size: bytes that one rank receives in a step.
        calls: collectives of a step.
    """

    what: str
    size: float
    calls: int

    def seconds(self, job: Job, machine: Machine) -> float:
        """By bandwidth, and by one hop's latency for each rank of the ring."""
        bandwidth = machine.bandwidth if job.nodes > 1 else machine.node_bandwidth
        return self.size / (bandwidth * 1e9) + self.calls * (job.ranks - 1) * machine.latency


def passes(job: Job) -> int:
    """How often a batch's tokens go forward through the model."""
    return 1 + job.recomputes + job.layers_again


def traffic(job: Job) -> list[Traffic]:
    """Collectives of one optimizer step; none in a single process."""
    if job.ranks == 1:
        return []
    others = (job.ranks - 1) / job.ranks
    trained = FLOAT * job.adapter.weights(job.shape)
    found = []
    if job.strategy in SHARDED:
        unused = 0 if job.stage == "mntp" or job.shape.tied else job.shape.embeddings  # the head
        runs = (2 + job.recomputes) * job.chunks * job.accumulate
        size = (job.shape.base - job.adapter.of_base(job.shape) - unused) * job.element + trained
        found.append(Traffic("weights, gathered", runs * size * others, runs * (job.shape.layers + 1)))
        found.append(Traffic("gradients", job.accumulate * trained * others, job.accumulate * job.shape.layers))
    else:
        reduced = job.accumulate if job.strategy == "zero2" else 1  # it shares out each batch's
        parts = reduced + 1  # the sum comes back
        found.append(Traffic("gradients", parts * trained * others, parts * max(1, round(trained / 25e6))))
    if job.candidates:
        gathered = (job.candidates + job.symmetric * job.global_batch) * job.shape.hidden * FLOAT
        calls = 1 + (job.stage == "supervised") + job.symmetric
        found.append(Traffic("vectors", 2 * job.accumulate * gathered * others, 2 * calls * job.accumulate))
    return found


def of_texts(
    shape: Shape,
    adapter: int,
    tokens: int,
    squares: int,
    predicted: float,
    whole: float | None = None,
    passes: int = 1,
) -> float:
    """Floating-point operations of forward and backward.

    Frozen weights have no gradient of their own: backward costs what forward does, not twice. Through the frozen layers
    below those that are trained it does not go.

    Args:
        shape: of the Llama.
        adapter: number of weights beside its own.
        tokens: real ones.
        squares: sum over texts of their length squared.
        predicted: share of tokens that go through the head.
        whole: share of the layers whose own weights are trained. None: an adapter is.
        passes: how often tokens go forward.
    """
    beside, share, own = (adapter, 1.0, 2) if whole is None else (0, whole, 4)
    attention = 4 * squares * shape.queries * shape.layers
    forward = 2 * tokens * (shape.matrices + beside) + attention
    backward = share * (own * tokens * shape.matrices + 2 * attention) + 4 * tokens * beside
    return passes * forward + backward + 4 * predicted * tokens * shape.embeddings


def operations(job: Job) -> float:
    """Floating-point operations of one rank in one optimizer step."""
    shape, masked = job.shape, job.masked * (job.stage == "mntp")
    whole = job.adapter.layers(shape) / shape.layers if job.is_full else None
    squares, again = job.tokens * job.length, passes(job)
    total = of_texts(shape, job.adapter.weights(shape), job.tokens, squares, masked, whole, again)
    if job.stage == "mntp":  # its head runs once more where not all positions go through it at once
        total += 2 * masked * job.tokens * shape.embeddings * (masked * job.tokens > LOGITS)
    else:
        total += 6 * job.rows * job.candidates * shape.hidden
    return total * job.accumulate


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step.

    Args:
        compute: of its operations.
        weights: of gathering a sharded base; runs beside the computation.
        rest: of all other collectives; nothing runs beside them.
    """

    compute: float
    weights: float
    rest: float

    @property
    def total(self) -> float:
        """Of the step."""
        return max(self.compute, self.weights) + self.rest


def step_time(job: Job, machine: Machine) -> StepTime:
    """What a step takes; data loading is taken to run beside it."""
    seconds = {part.what: part.seconds(job, machine) for part in traffic(job)}
    weights = seconds.pop("weights, gathered", 0.0)
    return StepTime(operations(job) / (machine.flops * machine.utilisation), weights, sum(seconds.values()))


def too_few(tokens: float, ranks: int, accumulate: int = 1) -> str | None:
    """What to do where a rank gets too few tokens at once to keep a GPU busy; None where it gets enough.

    Args:
        tokens: that go through one rank's model for a batch; chunks are its parts.
        ranks: all.
        accumulate: batches of an optimizer step.
    """
    if tokens >= FEW:
        return None
    remedies = []
    if accumulate > 1:
        remedies.append("a larger data.global_batch_size and a smaller trainer.accumulate_grad_batches")
    if ranks > 1:
        remedies.append(f"as few as {max(1, int(tokens * ranks / FEW))} of the {ranks} GPUs (the same training)")
    remedies.append(f"{ceil(FEW / tokens)} times the data.global_batch_size (another training)")
    return (
        f"a GPU is kept busy by {FEW:,} tokens or more a batch; each gets {tokens:,.0f}. Take {', or '.join(remedies)}."
    )
