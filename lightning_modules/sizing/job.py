"""What is to be sized: a stage's settings as far as memory and time depend on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_modules.includes import merged
from lightning_modules.sizing.shape import Adapter, Full, Shape, read_shape
from lightning_modules.steps import matches, stages

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
Stage = Literal["mntp", "simcse", "supervised"]
SHARDED = ("zero3", "fsdp2")
STAGES: dict[str, Stage] = {"MNTP": "mntp", "SimCSE": "simcse", "Supervised": "supervised"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EAGER_UP_TO = 128  # tokens, on CPUs in half precision; otherside.attention has the same, but imports torch
BUCKET = 25_000_000  # elements that our ZeRO reduces at once; DeepSpeed's 200M are more than most adapters, and 1.6 GB


@dataclass(frozen=True)
class Job:
    """A stage on N nodes with M processes each.

    Args:
        stage: which.
        shape: of the base model.
        adapter: what is trained; `Full` where it is the base's own weights.
        global_batch: texts (mntp, simcse) or pairs (supervised) of a batch, all ranks together.
        length: tokens of a text.
        strategy: how weights and optimizer are shared between ranks.
        nodes: machines.
        gpus: processes of each, one a device.
        dtype: of the frozen base.
        quantized: nf4: its layers' matrices have four bits a weight instead.
        kernel: of attention, as in `BackboneConfig`.
        attention_dropout: on attention probabilities.
        activation_checkpointing: whether each layer is computed again in backward; "auto", not decided: no.
        chunk_tokens: tokens that go through the model at once; None: all.
        recompute: whether a chunk is computed again in backward; "auto", not decided: yes.
        negatives: hard negatives of a pair.
        symmetric: InfoNCE in both directions.
        widths: sizes of InfoNCE's vectors as shares of the whole, the whole among them.
        masked: share of tokens that MNTP predicts.
        even: whether all texts have the same length.
        accumulate: batches of an optimizer step.
        offload_optimizer: to the host's memory.
        offload_base: to the host's memory.
        bucket: elements of DeepSpeed's buffers for reduced gradients.
        cuda: on GPUs.
        notes: what was assumed, as settings leave it open.
    """

    stage: Stage
    shape: Shape
    adapter: Adapter
    global_batch: int
    length: int
    strategy: Strategy = "ddp"
    nodes: int = 1
    gpus: int = 1
    dtype: str = "bfloat16"
    quantized: str | None = None
    kernel: str = "auto"
    attention_dropout: float = 0.0
    activation_checkpointing: bool | Literal["auto"] = "auto"
    chunk_tokens: int | None = None
    recompute: bool | Literal["auto"] = "auto"
    negatives: int = 1
    symmetric: bool = False
    widths: tuple[float, ...] = (1.0,)
    masked: float = 0.2
    even: bool = False
    accumulate: int = 1
    offload_optimizer: bool = False
    offload_base: bool = False
    bucket: int = BUCKET
    cuda: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least_one = {
            "--nodes": self.nodes,
            "--gpus": self.gpus,
            "--length": self.length,
            "--chunk_tokens": 1 if self.chunk_tokens is None else self.chunk_tokens,
            "--global_batch": self.global_batch,
            "--lora_r": self.adapter.r if not self.is_full else 1,
            "trainer.accumulate_grad_batches": self.accumulate,
        }
        for name, value in at_least_one.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        if self.global_batch < self.ranks:
            raise ValueError(
                f"a global batch must have a row for each of the {self.ranks} ranks; got {self.global_batch} rows. "
                f"Pass --global_batch {self.ranks} or more, or use fewer GPUs."
            )
        if self.shape.positions and self.length > self.shape.positions:
            raise ValueError(
                f"texts must have at most {self.shape.positions} tokens, the positions of the base; got {self.length}. "
                "Lower data.max_length, or --length."
            )
        if self.dtype not in BYTES:
            raise ValueError(f"backbone.dtype must be one of {', '.join(BYTES)}; got {self.dtype!r}")
        if self.quantized and (self.is_full or self.strategy in SHARDED):
            raise ValueError(
                "backbone.quantized needs an adapter, and ranks that hold the whole base; got "
                f"{'model.lora: null' if self.is_full else f'--strategy {self.strategy}'}. Use an adapter with ddp, "
                "zero1 or zero2, or quantized: null."
            )
        self.adapter.of(self.shape)

    @property
    def is_full(self) -> bool:
        """Whether the base's own weights are trained."""
        return isinstance(self.adapter, Full)

    @property
    def ranks(self) -> int:
        """Processes, all together."""
        return self.nodes * self.gpus

    @property
    def element(self) -> int:
        """Bytes of one value in the base's type."""
        return BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """Rows of a batch that one rank reads, where it is most."""
        return -(-self.global_batch // self.ranks)

    @property
    def texts(self) -> int:
        """Texts of a batch that go through one rank's model."""
        return self.rows * {"mntp": 1, "simcse": 2, "supervised": 2 + self.negatives}[self.stage]

    @property
    def tokens(self) -> int:
        """Tokens of a batch that go through one rank's model."""
        return self.texts * self.length

    @property
    def chunk(self) -> int:
        """Tokens that go through it at once; a text is never cut."""
        return self.tokens if self.chunk_tokens is None else min(self.tokens, max(self.length, self.chunk_tokens))

    @property
    def chunks(self) -> int:
        """How often the model runs for a batch."""
        return -(-self.texts // (self.chunk // self.length))

    @property
    def recomputes(self) -> bool:
        """Whether chunks are computed again in backward."""
        return self.recompute is not False and self.chunks > 1

    @property
    def layers_again(self) -> bool:
        """Whether layers are computed again in backward."""
        return self.activation_checkpointing is True

    @property
    def candidates(self) -> int:
        """Vectors that each rank's loss compares its queries with."""
        return 0 if self.stage == "mntp" else self.global_batch * (1 + self.negatives * (self.stage == "supervised"))

    @property
    def attention(self) -> Literal["fused", "eager", "math"]:
        """Which kernel runs; `math` and `eager` keep the attention scores for backward."""
        if self.kernel in ("eager", "varlen"):
            return "eager" if self.kernel == "eager" else "fused"
        half, dropout, grouped = self.element == 2, self.attention_dropout > 0, self.shape.groups != self.shape.heads
        if not self.cuda:
            short = self.kernel == "auto" and half and self.length <= EAGER_UP_TO
            return "eager" if short else "math" if dropout else "fused"
        if self.kernel == "auto" and half and not dropout:
            return "fused"
        # torch's flash kernel takes no mask and no float32, its memory-efficient one no grouped queries
        return "math" if grouped and not (half and self.even) else "fused"

    @property
    def unpadded(self) -> bool:
        """Whether attention writes its result where the next projection reads it."""
        return self.even or self.kernel == "varlen" or (self.cuda and not self.attention_dropout)


@dataclass(frozen=True)
class Overrides:
    """Settings of the command line that replace the YAML's; None leaves them."""

    model: str | None = None
    nodes: int | None = None
    gpus: int | None = None
    strategy: str | None = None
    global_batch: int | None = None
    length: int | None = None
    chunk_tokens: int | None = None
    lora_r: int | None = None
    activation_checkpointing: bool | None = None


def read_job(config: Path, options: Overrides = Overrides()) -> Job:
    """The stage that a YAML describes, with what it includes.

    Raises:
        FileNotFoundError: the YAML or the base model's `config.json` is not there.
        ValueError: a setting is missing or wrong.
    """
    settings = merged(config)
    model, data, trainer = _mapping(settings, "model"), _mapping(settings, "data"), _mapping(settings, "trainer")
    name = str(model.get("class_path")).rpartition(".")[2]
    if name not in STAGES:
        raise ValueError(f"model.class_path must be a stage ({', '.join(STAGES)}); got {name} in {config}")
    stage, init, rows = STAGES[name], _mapping(model, "init_args"), _mapping(data, "init_args")
    backbone, loss = _mapping(init, "backbone"), _mapping(init, "loss")
    base = options.model or base_of(config, backbone)
    shape = read_shape(base, None if options.model else backbone.get("revision"))
    blocks = str(data.get("class_path")).endswith(".Blocks")
    length = (rows.get("block_size", 512) or rows.get("max_length")) if blocks else rows.get("max_length")
    taken = {key: backbone[key] for key in ("dtype", "quantized", "kernel", "attention_dropout") if key in backbone}
    run = _trainer(trainer, options)
    if taken.get("dtype", "auto") == "auto":  # of the machine in question, which is this one if there are no GPUs
        taken["dtype"] = "bfloat16" if run["cuda"] else _of_this_machine()
    taken |= {key: init[key] for key in ("recompute",) if key in init}
    negatives, assumed = _negatives(rows) if stage == "supervised" else (1, [])
    layers_again = backbone.get("activation_checkpointing")
    if assumed:  # training does not know their number either, and decides what is auto so
        taken["recompute"] = taken.get("recompute") is not False
        layers_again = layers_again is True
    return Job(
        stage=stage,
        shape=shape,
        adapter=_adapter(init, options),
        global_batch=_first(options.global_batch, rows.get("global_batch_size"), name="data.global_batch_size"),
        length=_first(options.length, length, name="data.max_length"),
        chunk_tokens=_first(options.chunk_tokens, init.get("chunk_tokens")),
        activation_checkpointing=_first(options.activation_checkpointing, layers_again, "auto"),
        negatives=negatives,
        symmetric=bool(loss.get("symmetric", False)),
        widths=widths(shape, loss.get("matryoshka") or ()),
        masked=_mapping(init, "masking").get("probability", 0.2),
        even=blocks,
        notes=(*_devices_assumed(trainer, options, run["cuda"]), *assumed),
        **taken,
        **run,
    )


def widths(shape: Shape, matryoshka: Iterable[int]) -> tuple[float, ...]:
    """Sizes of InfoNCE's vectors, see `Job`."""
    return (*(k / shape.hidden for k in matryoshka if k < shape.hidden), 1.0)


def _negatives(rows: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Of a pair, and what was assumed. None given: all that a row has."""
    if (given := rows.get("negatives")) is not None:
        return given, []
    # By name, as a YAML has it: data modules and stages never import each other
    sources = rows.get("sources")
    most = import_module("datamodules.recognise").most_negatives(sources) if sources else None
    said = "data.negatives: null takes all hard negatives of a row; "
    if most is None:
        return 1, [f"{said}no data are here to count them in, so 1 is assumed. Set data.negatives."]
    return most, [f"{said}{most} is assumed, the most that the first rows of data.sources have"]


def _devices_assumed(trainer: Mapping[str, Any], options: Overrides, cuda: bool) -> list[str]:
    """What is said where nothing names a number of GPUs."""
    devices = trainer.get("devices", "auto")
    if options.gpus is not None or not cuda or devices not in ("auto", "-1", -1):
        return []
    return [f"trainer.devices: {devices} takes all GPUs of a node; 1 is assumed. Pass --gpus for another number."]


def _of_this_machine() -> str:
    from otherside.backbone import fast_dtype  # imports torch

    return fast_dtype()


def _adapter(init: Mapping[str, Any], options: Overrides) -> Adapter:
    if init.get("lora", {}) is None and options.lora_r is None:
        return Full(frozen_layers=init.get("frozen_layers"))
    asked = {"r": options.lora_r} if options.lora_r is not None else {}
    return Adapter.read({**_mapping(init, "lora"), **asked})


def _trainer(trainer: Mapping[str, Any], options: Overrides) -> dict[str, Any]:
    """What `trainer:` says of ranks and their strategy."""
    devices = trainer.get("devices")
    devices = len(devices) if isinstance(devices, list) else devices
    strategy = options.strategy or trainer.get("strategy") or "auto"
    arguments = _mapping(strategy, "init_args") if isinstance(strategy, Mapping) else {}
    name = str(strategy.get("class_path")).rpartition(".")[2] if isinstance(strategy, Mapping) else str(strategy)
    return {
        "nodes": _first(options.nodes, trainer.get("num_nodes"), 1),
        "gpus": _first(options.gpus, devices if isinstance(devices, int) and devices > 0 else 1),
        "strategy": strategy_named(name, arguments.get("stage", 2)),
        "offload_optimizer": bool(arguments.get("offload_optimizer")),
        "offload_base": bool(arguments.get("offload_parameters")),
        "bucket": arguments.get("reduce_bucket_size", BUCKET),
        "accumulate": trainer.get("accumulate_grad_batches") or 1,
        "cuda": trainer.get("accelerator") != "cpu" or options.gpus is not None,
    }


def strategy_named(name: str, stage: int = 2) -> Strategy:
    """Our name of a strategy that `trainer.strategy` may hold, as a name or as a class.

    Raises:
        ValueError: there is none.
    """
    ours: dict[str, Strategy] = {known: known for known in get_args(Strategy)}
    ours |= dict.fromkeys(("auto", "SingleDeviceStrategy", "DDP", "DDPStrategy"), "ddp")
    ours |= dict.fromkeys(("FSDP2", "ModelParallelStrategy"), "fsdp2")
    zero: dict[int, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3"}
    ours |= {f"deepspeed_stage_{number}": known for number, known in zero.items()}
    if name in ("ZeRO", "DeepSpeedStrategy") and stage in zero:
        return zero[stage]
    if name not in ours:
        raise ValueError(f"--strategy must be one of {', '.join(get_args(Strategy))}; got {name!r}")
    return ours[name]


def base_of(config: Path, backbone: Mapping[str, Any]) -> str:
    """The base model; of a stage that is not trained yet, that of the stage in the same recipe it starts from."""
    model = str(_first(backbone.get("model"), name="backbone.model"))
    if Path(model).exists():
        return model
    for stage in reversed(stages(config.parent)):  # each before the one that it starts from
        if matches(model, stage.makes[1]) and not Path(model).exists():
            model = stage.model
    return model


def _mapping(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = settings.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} must hold settings by name (a YAML mapping); got {value!r}")
    return value


def _first(*values: Any, name: str | None = None) -> Any:
    """The first value that is given."""
    found = next((value for value in values if value is not None), None)
    if found is None and name:
        raise ValueError(f"{name} must be set; got nothing. Write it into the YAML, or pass it as an option.")
    return found
