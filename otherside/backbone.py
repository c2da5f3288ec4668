"""A decoder-only Llama whose attention can be turned, with the adapters of its lineage.

Shapes: T tokens of packed texts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from otherside import adapters, sharding, weights
from otherside.adapters import Lora
from otherside.attention import ATTENTION, HALF, Borders, Kernel, check_kernel
from otherside.batching import Packed, rounded
from otherside.lineage import CARD, Card, Lineage
from otherside.sharding import Shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Attention = Literal["bidirectional", "causal"]
DTypes = Literal["float32", "bfloat16", "float16"]


class MaskError(RuntimeError):
    """The kernel in use does not compute the attention that was asked for."""


@dataclass
class BackboneConfig:
    """Which Llama, and how its attention runs.

    Args:
        model: hub id, folder, .gguf file, pkg://PACKAGE/FILE, or the encoder folder of an earlier stage, whose
            adapters are merged first.
        revision: of a hub id.
        attention: bidirectional or causal.
        dtype: of the frozen weights. Adapters are always float32.
        kernel: auto takes torch's variable-length kernel on CUDA in half precision without dropout, else SDPA.
        attention_dropout: on attention probabilities, in training. Llama has none; SimCSE needs some.
        activation_checkpointing: recompute each layer in backward: less memory, about a third more time.
    """

    model: str
    revision: str | None = None
    attention: Attention = "bidirectional"
    dtype: DTypes = "bfloat16"
    kernel: Kernel = "auto"
    attention_dropout: float = 0.0
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        if self.attention not in get_args(Attention):
            raise ValueError(f"backbone.attention must be bidirectional or causal; got {self.attention!r}")
        if self.dtype not in get_args(DTypes):
            raise ValueError(f"backbone.dtype must be one of {', '.join(get_args(DTypes))}; got {self.dtype!r}")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"backbone.attention_dropout must lie in [0, 1); got {self.attention_dropout}")
        if self.kernel == "varlen" and self.attention_dropout:
            raise ValueError(
                f"backbone.kernel: varlen has no dropout; got attention_dropout={self.attention_dropout}. "
                "Use kernel: auto."
            )


class Backbone(nn.Module):
    """The model behind every stage.

    Args:
        lm: a causal language model of transformers.
        lineage: where its weights come from.
        attention: bidirectional or causal; the attribute may be set at any time.
        kernel: see `BackboneConfig`.
    """

    def __init__(
        self, lm: PreTrainedModel, lineage: Lineage, attention: Attention = "bidirectional", kernel: Kernel = "auto"
    ) -> None:
        super().__init__()
        self.lm = lm
        self.lineage = lineage
        self.attention: Attention = attention
        self.kernel: Kernel = kernel
        lm.set_attn_implementation(ATTENTION)

    @classmethod
    def load(cls, config: BackboneConfig, lora: Lora | None = None, shard: Shard | None = None) -> Backbone:
        """Load the base, merge its lineage's adapters in order, attach a new adapter.

        Run `self_test` once the model is where it will run: the kernel depends on the device.

        Args:
            config: which model.
            lora: a new adapter; None: none.
            shard: how weights are shared between ranks, all of which must call this; None: each holds all.

        Raises:
            FileNotFoundError: there is no such model or adapter.
            ValueError: an adapter was changed or does not fit; a LoRA target matches nothing; the model knows no
                dropout of attention, and some is asked for.
        """
        lineage = lineage_of(config.model, config.revision)
        if shard is not None:
            lm, found = sharding.load(lineage, getattr(torch, config.dtype), lora, shard)
            check_fingerprint(found, lineage, config.model)
        else:
            lm = load_lm(lineage, config)
            found = adapters.fingerprint(lm)
            check_fingerprint(found, lineage, config.model)
            for adapter in lineage.adapters:
                adapters.merge(lm, adapter)
            if lora is not None:
                adapters.attach(lm, lora)
        lineage = replace(lineage, fingerprint=found or lineage.fingerprint)
        set_attention_dropout(lm, config.attention_dropout)
        backbone = cls(lm, lineage, config.attention, config.kernel)
        if config.activation_checkpointing:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        return backbone

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.lm.config.hidden_size

    @property
    def layers(self) -> int:
        """Number of layers; hidden states 0 … layers, 0 being the embeddings."""
        return self.lm.config.num_hidden_layers

    def logits(self, states_MD: Tensor) -> Tensor:
        """(M, V) of hidden states; through the head's own module, whose weights may be sharded."""
        return self.lm.get_output_embeddings()(states_MD)

    def forward(self, texts: Packed) -> Tensor:
        """Last hidden states (T, D) of packed texts; no text sees another."""
        return self._run(texts).last_hidden_state[0, : len(texts.input_ids)]

    def hidden_states(self, texts: Packed) -> list[Tensor]:
        """Hidden states of all layers, embeddings first: layers + 1 tensors (T, D)."""
        return [
            states[0, : len(texts.input_ids)] for states in self._run(texts, output_hidden_states=True).hidden_states
        ]

    def _run(self, texts: Packed, **options: Any) -> Any:
        device, longest, filler = texts.input_ids.device, int(texts.lengths.max()), 0
        if device.type == "cpu" and self.lm.dtype in HALF:  # oneDNN compiles, and keeps, kernels for each new size
            longest, filler = rounded(longest), rounded(len(texts.input_ids)) - len(texts.input_ids)
        with self._base_type(device):
            return self.lm.base_model(
                input_ids=F.pad(texts.input_ids, (0, filler))[None],
                position_ids=F.pad(texts.positions, (0, filler))[None].to(device, non_blocking=True),
                use_cache=False,
                borders=Borders.of(texts, longest, filler),
                causal=self.attention == "causal",
                kernel=self.kernel,
                **options,
            )

    def _base_type(self, device: torch.device) -> AbstractContextManager[Any]:
        """float32 adapters compute in the base's type; in float32 the caller's own autocast, if any, stays in force."""
        return torch.autocast(device.type, self.lm.dtype) if self.lm.dtype in HALF else nullcontext()

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """transformers' `generate`, in the base model's own attention code.

        With adapters off (`without_adapters`) and causal attention it equals the base model's bit for bit.

        Raises:
            ValueError: attention is bidirectional; a model that sees the future cannot generate.
        """
        if self.attention != "causal":
            raise ValueError("generate needs causal attention; got bidirectional. Set backbone.attention = 'causal'.")
        self.lm.set_attn_implementation("sdpa")
        try:
            with self._base_type(self.lm.device) if adapters.are_on(self.lm) else nullcontext():
                return self.lm.generate(*args, **kwargs)  # type: ignore[operator]
        finally:
            self.lm.set_attn_implementation(ATTENTION)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Adapters off inside the block; behind it, as they were before."""
        were_on = adapters.are_on(self.lm)
        adapters.switch(self.lm, on=False)
        try:
            yield
        finally:
            adapters.switch(self.lm, on=were_on)

    @torch.no_grad()
    def self_test(self) -> None:
        """Change a late token and look at an early hidden state: it must move if and only if attention is
        bidirectional; another text in the same pack must not move at all. For the very kernel in use.

        Raises:
            MaskError: it does not hold. Silently causal attention is the commonest bug of such encoders.
        """
        training, kernel = self.training, self.kernel
        on_cpu = self.lm.get_input_embeddings().weight.device.type == "cpu"
        if on_cpu and kernel in ("varlen", "flash_attention_2"):
            raise ValueError(f"backbone.kernel: {kernel} must run on a CUDA device; this is a CPU. Use kernel: auto.")
        kernels: tuple[Kernel, ...] = ("eager", "sdpa") if kernel == "auto" and on_cpu else (kernel,)
        has_dropout = any(getattr(module, "attention_dropout", 0) for module in self.lm.modules())
        try:
            for mode in (False, True) if has_dropout else (False,):  # with dropout, training may take another kernel
                self.train(mode)
                for self.kernel in kernels:
                    self._test_mask()
        finally:
            self.train(training)
            self.kernel = kernel

    def _test_mask(self) -> None:
        device: Any = self.lm.get_input_embeddings().weight.device
        vocabulary = self.lm.config.vocab_size
        ids = torch.tensor([5, 6, 7, 8, 9, 10, 11, 12], device=device) % vocabulary
        texts = Packed(ids, lengths=torch.tensor([5, 3]), skip=torch.tensor([0, 0]))
        changed = ids.clone()
        changed[4] = 13 % vocabulary
        states = []
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for tokens in (ids, changed):
                torch.manual_seed(0)  # the same dropout in both
                states.append(self(replace(texts, input_ids=tokens)).float())
        before, after = states
        moved = (before - after).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)
        early, late, neighbour = moved[:4].max().item(), moved[4].item(), moved[5:].max().item()
        sees_future = early > 1e-6
        where = f"kernel {self.kernel}, {device.type}, {self.lm.dtype}"
        remedy = "Use another backbone.kernel (sdpa, eager) or the tested versions of transformers and torch."
        if not torch.isfinite(moved).all():
            raise MaskError(f"hidden states must be finite; some are not ({where}). {remedy}")
        if late == 0:
            raise MaskError(f"the model must react to its input; changing a token changed nothing ({where})")
        if sees_future != (self.attention == "bidirectional"):
            seen = "sees" if sees_future else "does not see"
            raise MaskError(
                f"attention must be {self.attention}, but an early token {seen} later ones ({where}). {remedy}"
            )
        if neighbour > 1e-6:
            raise MaskError(f"packed texts must not see each other, but they do ({where}). {remedy}")


def load_lm(lineage: Lineage, config: BackboneConfig) -> PreTrainedModel:
    """The base model of a lineage, frozen: safetensors only, no code from the checkpoint.

    Raises:
        FileNotFoundError: it is neither here nor on the hub, or cannot be read.
    """
    try:
        place = weights.resolve(lineage.base)
    except FileNotFoundError as error:
        if not lineage.adapters:
            raise
        raise FileNotFoundError(
            f"the base model of {config.model} must be where it was in training; nothing is at {lineage.base}. Put it "
            f"back, or write its new place into {Path(weights.locate(config.model)) / CARD}, as lineage.base."
        ) from error
    if isinstance(place, Path) and not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"backbone.model must be a folder with a model or an encoder; {place} has no config.json or encoder.json"
        )
    try:
        lm = AutoModelForCausalLM.from_pretrained(
            place, revision=lineage.revision, dtype=getattr(torch, config.dtype), use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise FileNotFoundError(
            f"backbone.model must be a folder here or a model on the hub, with safetensors weights; {lineage.base} "
            f"could not be loaded: {error}"
        ) from error
    return lm.requires_grad_(False)


def check_fingerprint(found: str | None, lineage: Lineage, model: str) -> None:
    """Raise a ValueError unless the base is the one that the lineage's adapters were trained on."""
    if lineage.fingerprint and found and found != lineage.fingerprint:
        raise ValueError(
            f"the adapters of {model} were trained on a base with fingerprint {lineage.fingerprint[:12]}…; "
            f"{lineage.base} has {found[:12]}…. The base's weights have changed: name the revision that was used."
        )


def set_attention_dropout(lm: PreTrainedModel, share: float) -> None:
    """In all layers of `lm`; it is in force in training only.

    Raises:
        ValueError: no layer would heed it.
    """
    layers: list[Any] = [module for module in lm.modules() if hasattr(module, "attention_dropout")]
    if share and not layers:
        raise ValueError(
            f"backbone.attention_dropout must be 0 for a {type(lm).__name__}, whose layers have no such setting; got "
            f"{share}. Use lora.dropout."
        )
    for layer in layers:
        layer.attention_dropout = share


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model or of an encoder folder.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
    """
    place = weights.locate(model)
    if isinstance(place, Path) and Card.is_at(place):
        return AutoTokenizer.from_pretrained(place)
    place = weights.resolve(model)
    if isinstance(place, Path) and not any(place.glob("tokenizer*")):
        raise FileNotFoundError(f"backbone.model must be a folder with a model and its tokenizer; {place} has none")
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"backbone.model must be a folder here or a model on the hub, with a tokenizer; that of {model} "
            f"could not be loaded: {error}"
        ) from error


def lineage_of(model: str, revision: str | None = None) -> Lineage:
    """The lineage that `model` stands for: an encoder folder's, or the base model alone.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: an encoder folder's description is broken.
    """
    place = weights.locate(model)
    if isinstance(place, Path) and Card.is_at(place):
        return Card.read(place).lineage
    base = model if isinstance(place, str) or model.startswith(weights.PACKAGE) else str(place.resolve())
    return Lineage(base, revision)
