"""What every stage shares: the encoder, what is trained, optimizer, seeding, checkpoints of trainable weights only."""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from typing_extensions import override

from lightning_modules import history
from lightning_modules.automatic import settle
from lightning_modules.identity import told
from lightning_modules.schedules import Schedule, set_rates
from lightning_modules.waiting import LOADING
from otherside import distributed, loading, quantized
from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig, keeps_sink
from otherside.batching import Chunks, Packed, TextBatch, tokens_at_once
from otherside.encoder import Encoder
from otherside.full import Full
from otherside.lineage import AUTO, BASE, ENCODER, Card
from otherside.llama import check_length
from otherside.pooling import Pooling
from otherside.recompute import recomputed
from otherside.sharding import Shard, whole_shape
from otherside.tokenizer import load_tokenizer, start_id, start_name
from otherside.waits import saying
from otherside.weights import card_of

Item = TypeVar("Item")

FACTORS = "factors"  # in a checkpoint, what rescales vectors
PRECISIONS = ("32-true", "bf16-mixed")  # of the trainer, in which weights keep their types
SMALLER = (
    "Lower the learning rate (model.optimizer); the same command goes on from the newest checkpoint, whose weights are "
    "finite. Where gradients are not clipped, begin anew with trainer.gradient_clip_val: 1.0."
)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The default optimizer."""
    return torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.0)


def departures(card: Card, **now: Any) -> str:
    """Where a stage is set to be another encoder than the folder it starts from; empty on a base model."""
    changed = {name: (getattr(card, name), value) for name, value in now.items() if getattr(card, name) != value}
    return told(changed) if card.stage != BASE else ""


# That hooks of batches are the module's is meant, and nothing that users could change
warnings.filterwarnings("ignore", message="You have overridden `.*` in `LightningModule` but have passed in a")


class EncoderModule(pl.LightningModule, ABC):
    """One training stage of an encoder.

    Args:
        backbone: which Llama, and how its attention runs.
        lora: the adapter to train. None: no adapter, but the base's own weights (full fine-tuning), in float32, except
            for a head of its own.
        frozen_layers: in full fine-tuning, so many of the lowest layers keep their weights, and so do the embeddings;
            0: the embeddings alone; None: nothing does.
        pooling: how token vectors become a text's vector. None: as the encoder folder that `backbone.model` names; mean
            on a base model.
        pool_start: whether the start token (`backbone.start_token`) is pooled like a token of the text, in training and
            use, with an instruction and without. None: as the encoder folder; yes on a base model.
        rescaled: whether each dimension of a text's vector is divided by its spread in the model that the stage starts
            from, so that all count alike (`otherside.rescale`). None: as the encoder folder; where that says nothing,
            yes in contrastive stages.
        max_length: longest text that the finished encoder reads, in tokens; training has its own, in `data`. None: as
            the encoder folder; 512 on a base model.
        optimizer: over the weights that are trained.
        schedule: of the learning rate.
        chunk_tokens: texts go through the model in chunks of at most so many tokens, whatever the batch size; padding
            counts where attention has some (on CPUs, and with `attention_dropout`).
            None: all at once.
        recompute: keep no activations of a chunk but compute them again in backward (GradCache; Gao et al., 2021):
            memory for one chunk instead of all, for about 1.4 times the time. False: chunks only save padding. auto:
            of as many chunks of a batch as do not fit into the free memory.
        seed: of the adapter's start, dropout and masks. The command line takes it from `seed_everything`.
    """

    stage: ClassVar[str]
    predicted = 0.0  # share of tokens that go through the language model's head
    views = 1  # how often each text goes through the model
    rescales = False  # whether it does where neither setting nor encoder folder says so

    def __init__(
        self,
        backbone: BackboneConfig,
        lora: Lora | None = Lora(),  # noqa: B008  # jsonargparse shows it as the default; never changed
        frozen_layers: int | None = None,
        pooling: Pooling | None = None,
        pool_start: bool | None = None,
        rescaled: bool | None = None,
        max_length: int | None = None,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008
        chunk_tokens: int | None = None,
        recompute: bool | Literal["auto"] = "auto",
        seed: int = 42,
    ) -> None:
        super().__init__()
        if chunk_tokens is not None and chunk_tokens < 1:
            raise ValueError(f"model.chunk_tokens must be at least 1, or null for one chunk; got {chunk_tokens}")
        if max_length is not None and max_length < 2:
            raise ValueError(f"model.max_length must be at least 2 tokens; got {max_length}")
        if lora is not None and frozen_layers is not None:
            raise ValueError(
                f"model.frozen_layers is for full fine-tuning, an adapter's base is frozen; got {frozen_layers}. Set "
                "model.lora: null, or leave it out."
            )
        self.trained: Lora | Full = lora or Full(frozen_layers)
        if backbone.quantized:
            quantized.check(self.trained)
        self.frozen_layers = frozen_layers
        card = card_of(backbone.model, backbone.revision)
        self.lora, self.pooling, self.max_length = lora, pooling or card.pooling, max_length or card.max_length
        settled = {"attention": backbone.attention or card.attention, "keep_sink": keeps_sink(backbone, card)}
        self.backbone_config = replace(backbone, **settled)  # type: ignore[arg-type]
        self.optimizer_factory, self.schedule = optimizer, schedule
        self.chunk_tokens, self.recompute, self.seed = chunk_tokens, recompute, seed
        self.kept_tokens = math.inf if recompute is False else 0.0  # whose activations are kept; auto: see `settle`
        self._normed = 0  # the last step whose gradient norm was logged
        self._losses: tuple[int, list[Tensor]] = (-1, [])  # of the batches of a step
        self.tokenizer = load_tokenizer(backbone.model, backbone.revision, backbone.start_token)
        inherited = card.pool_start is not False  # format 1 had no such setting
        self.pool_start = inherited if pool_start is None else pool_start
        self.rescaled = (card.rescaled or self.rescales) if rescaled is None else rescaled
        self.departures = departures(
            card,
            attention=self.backbone_config.attention,
            pooling=self.pooling,
            pool_start=card.pool_start if pool_start is None else pool_start,
            start_token=card.start_token if backbone.start_token == AUTO else backbone.start_token,
            keep_sink=self.backbone_config.keep_sink,
            rescaled=card.rescaled if rescaled is None else rescaled,
            max_length=self.max_length,
        )
        self.encoder: Encoder = None  # type: ignore[assignment]  # built in configure_model, where strategies shard
        self.strict_loading = False  # checkpoints hold trainable weights only; on_load_checkpoint is strict about those

    @override
    def setup(self, stage: str) -> None:
        if self.trainer.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision must be {' or '.join(PRECISIONS)}, as others round what is trained; got "
                f"{self.trainer.precision}. Leave it out: the backbone computes in model.backbone.dtype."
            )
        seconds = self.trainer._val_check_time_interval  # type: ignore[attr-defined]
        if seconds is not None and self.trainer.world_size > 1:  # each would look at its own clock
            raise ValueError(
                "trainer.val_check_interval must be a number of batches with several ranks, or some validate while "
                f"others train; got a time of {seconds:g} s. Set it to about as many steps."
            )

    @override
    def configure_model(self) -> None:
        if self.encoder is None:
            self._fetch()
            torch.manual_seed(self.seed)  # the adapter's start
            with saying(f"loading {self.backbone_config.model}"):
                backbone = Backbone.load(self.backbone_config, self.trained, self._shard, start_id(self.tokenizer))
            check_length("model.max_length must be", self.max_length, backbone.lm.config, "Lower model.max_length.")
            earlier = card_of(self.backbone_config.model, self.backbone_config.revision).history
            settings = (self.pooling, self.max_length, self.pool_start, earlier)
            self.encoder = Encoder(backbone, self.tokenizer, *settings)
            distributed.meet(LOADING)

    def _fetch(self) -> None:
        """Bring the base to every node before ranks wait for each other in a collective, whose time-out may be torch's
        own (DeepSpeed's groups). One rank of a node does, the others find it.
        """
        if self.local_rank == 0:
            model = self.backbone_config.model
            loading.fetch(card_of(model, self.backbone_config.revision).lineage, model)
        distributed.meet(LOADING)

    @property
    def _shard(self) -> Shard | None:
        """How the strategy shares weights between ranks; None where each holds all."""
        strategy = self._trainer and self._trainer.strategy
        return strategy.shard if getattr(strategy, "shards_weights", False) else None  # type: ignore[union-attr]

    @override
    def on_fit_start(self) -> None:
        if self.backbone_config.dtype == "float16":
            raise ValueError(
                "backbone.dtype must be bfloat16 or float32 to train; got float16, in which small gradients become 0. "
                "Set bfloat16; an encoder may still be used in float16."
            )
        self._tell()
        settle(self)
        self._check_start()

    def _tell(self) -> None:
        """What is trained in full, and what is inherited, or not, that no setting shows."""
        if isinstance(self.trained, Full):
            distributed.say(self._trained_in_full())
        if idle := self.schedule.idle(self._steps):
            distributed.say(f"note: {idle}")
        if self.departures:
            distributed.say(f"other than {self.backbone_config.model}: {self.departures}")
        start = start_name(self.tokenizer)
        pooled = "pooled" if self.pool_start else "not pooled"
        sink = "kept" if self.encoder.backbone.sink else "not found" if self.backbone_config.keep_sink else "not kept"
        said = f"start token: {f'{start}, {pooled}; its sink: {sink}' if start else 'none'}"
        distributed.say(f"{said}{'; vectors rescaled' if self.rescaled else ''}")

    def _trained_in_full(self) -> str:
        counts = [(whole_shape(p).numel(), p.requires_grad) for p in self.encoder.backbone.lm.parameters()]
        total, trained = (sum(n for n, is_trained in counts if is_trained or both) for both in (True, False))
        return f"full fine-tuning: {trained:,} of {total:,} weights are trained, in float32"

    def _check_start(self) -> None:
        """Does the model compute what was asked for, here, and are its texts short enough for it?"""
        longest = getattr(self.trainer.datamodule, "max_length", 0)  # type: ignore[attr-defined]
        check_length("data.max_length must be", longest, self.encoder.backbone.lm.config, "Lower data.max_length.")
        self._prepare()

    def _prepare(self) -> None:
        """What needs the model where it will run."""
        with saying("testing attention on this machine"):
            self.encoder.backbone.self_test()
        if self.rescaled and self.encoder.factors is None:
            start = self.backbone_config
            with saying("measuring how far dimensions spread"), self.encoder.backbone.without_adapters():  # as it began
                self.encoder.rescale(start.model, card_of(start.model, start.revision))

    @override
    def on_test_start(self) -> None:
        self._prepare()

    on_predict_start = on_test_start

    @override
    def on_validation_start(self) -> None:
        if not self.trainer.fit_loop.epoch_loop.batch_progress.total.ready:  # `lightning validate`, not inside a fit
            self._check_start()

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer_factory([p for p in self.parameters() if p.requires_grad])
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._steps = int(self.trainer.estimated_stepping_batches)  # asked of all ranks together
        scheduler = self.schedule.build(optimizer, self._steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """This rank's loss; its mean over ranks is the global batch's loss."""

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Whatever needs a look at numbers is done here, while they are on the CPU."""
        if self.trainer.testing:
            return batch  # without content
        if self.trainer.predicting:
            return batch.cut(tokens_at_once(self.device))
        return self.cut(batch)

    def cut(self, batch: Any) -> Any:
        """The batch in chunks of `chunk_tokens`; as it is if that was done."""
        return batch.cut(self.chunk_tokens, self.views, self.encoder.backbone.pads(self.device))

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """See `devices.moved`."""
        return batch if self.trainer.testing else batch.to(device)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seed_step(batch.step)
        loss, step = self.loss(batch), self.trainer.global_step + 1
        if self.logs(step):
            earlier = self._losses[1] if self._losses[0] == step else []  # where gradients are accumulated
            self._losses = (step, [*earlier, loss.detach()])
            mean = distributed.mean(torch.stack(self._losses[1]).mean())
            self.show("train/loss", self.finite("train/loss", mean.cpu()))
            self.show("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def finite(self, name: str, value: Tensor) -> Tensor:
        """A number of the step that is under way, the same for all ranks.

        Raises:
            ValueError: it is not a number, or infinite.
        """
        if not value.isfinite():
            raise ValueError(f"{name} must be finite; got {value:g} in step {self.trainer.global_step + 1}. {SMALLER}")
        return value

    def logs(self, step: int) -> bool:
        """Whether numbers of this optimizer step are looked at. A GPU is not asked for others: the host would wait.
        `trainer.log_every_n_steps: 0` is none, as Lightning has it.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (step % every == 0 or step == self.trainer.max_steps)

    def show(self, name: str, value: Tensor | float, bar: bool = True) -> None:
        """Log a number, from the CPU: a GPU's would be asked for again at every later step."""
        self.log(name, torch.as_tensor(value, dtype=torch.float32).cpu(), prog_bar=bar)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log_validation(self.loss(batch), batch)

    @override
    def predict_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        return self.embed(batch.chunks)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: the callback `MTEB` evaluates."""

    def _log_validation(self, loss: Tensor, batch: Any) -> None:
        """Weighted by the texts of all ranks, as a rank's loss is its part of the global batch's already."""
        texts = sum(distributed.counts(len(batch.texts), self.device))
        self.log("val/loss", loss, batch_size=texts, sync_dist=True, on_epoch=True, prog_bar=True)

    def embed(self, texts: Chunks) -> Tensor:
        """(N, D) vectors of this rank's texts."""
        return torch.cat(self.in_chunks(texts.parts, texts.parts, self.encoder))[texts.places]

    def in_chunks(self, texts: Sequence[Packed], chunks: Sequence[Item], run: Callable[[Item], Tensor]) -> list[Tensor]:
        """`run` of each chunk, given with its texts; where not all activations are kept, some run again in backward.

        Where weights are sharded all ranks run the model equally often, or they would wait for each other for ever:
        who has fewer chunks repeats the last, without effect on the result.
        """
        repeats = distributed.most(len(chunks), self.device) - len(chunks) if self._shard else 0
        todo = [*zip(texts, chunks, strict=True), *[(texts[-1], chunks[-1])] * repeats]
        trained = None if self._shard else [p for p in self.parameters() if p.requires_grad]
        again = self._again([len(part.input_ids) for part, _ in todo])
        done = [
            recomputed(run, chunk, self.device, trained) if twice else run(chunk)
            for (_, chunk), twice in zip(todo, again, strict=True)
        ]
        for repeated in done[len(chunks) :]:
            done[0] = done[0] + 0 * repeated.sum()
        return done[: len(chunks)]

    def _again(self, tokens: list[int]) -> list[bool]:
        """Which chunks, of so many tokens, are computed again. One of them at a time has its activations, too."""
        if len(tokens) == 1 or sum(tokens) <= self.kept_tokens or not torch.is_grad_enabled():
            return [False] * len(tokens)
        room = self.kept_tokens - max(tokens)
        return [sum(tokens[: i + 1]) > room for i in range(len(tokens))]

    def seed_step(self, step: int) -> None:
        """Dropout is a function of (seed, step, rank), so that a resumed run draws what the uninterrupted one would."""
        digest = hashlib.sha256(f"{self.seed}/{step}/{self.global_rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients and self.logs(self.trainer.global_step + 1):
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.show("grad_norm", self.finite("gradients", norm.cpu()), bar=False)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        norm = getattr(self.trainer.strategy, "grad_norm", None)  # ZeRO keeps gradients to itself
        step = self.trainer.global_step
        if norm is not None and step > self._normed and self.logs(step):
            self.show("grad_norm", norm, bar=False)
            self._normed = step

    def trainable(self) -> set[str]:
        """Names of the weights that training changes, as in `state_dict`."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self.trainable()
        weights = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
        broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
        found = f"{len(broken)} of {len(weights)} tensors are not, such as {broken[0]}" if broken else ""
        if found := distributed.from_first(found):  # which may be the only one that has weights here
            raise ValueError(f"weights must be finite to be kept; {found}. {SMALLER}")
        checkpoint["state_dict"] = weights
        checkpoint[ENCODER] = self.save_encoder  # for FolderCheckpointIO, which calls it where it writes
        checkpoint[FACTORS] = self.encoder.factors

    def save_encoder(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the encoder that the module has with these weights, named as in `state_dict`."""
        inside = {
            name.removeprefix("encoder.backbone.lm."): weights[name] for name in weights.keys() & self.trainable()
        }
        data, loss = getattr(self.trainer, "datamodule", None), getattr(self, "info_nce", None)
        own = history.of(self.stage, self.trainer.global_step, data, loss)
        self.encoder.save(folder, self.stage, own.steps, inside, own)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        expected = {name: list(whole_shape(p)) for name, p in self.named_parameters() if p.requires_grad}
        found = {name: list(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        if changed := [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]:
            first = changed[0]
            raise ValueError(
                f"the checkpoint must hold this run's {len(expected)} trainable tensors; {len(changed)} differ, such "
                f"as {first}: {found.get(first, 'missing')} instead of {expected.get(first, 'none')}. Was model.lora "
                "or model.frozen_layers changed? Set it back, or start in a new trainer.default_root_dir."
            )
        # Of the model as the stage began, which is no longer there where its own weights are trained
        if (factors := checkpoint.get(FACTORS)) is not None:
            self.encoder.factors = factors.to(self.device)  # where sharded weights are already when they are restored

    @override
    def on_train_start(self) -> None:
        for config in self.trainer.lr_scheduler_configs:
            set_rates(config.scheduler, self._rates)  # type: ignore[arg-type]  # `Schedule` makes no other
