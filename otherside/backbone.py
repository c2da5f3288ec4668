"""A decoder whose attention can be turned, with the adapters of its lineage: a Llama or a relative (docs/models.md).

Shapes: T tokens of packed texts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otherside import adapters, distributed, full, loading, norms, quantized, sharding, weights
from otherside.adapters import Lora
from otherside.attention import ATTENTION, HALF, Borders, Kernel, best_kernel
from otherside.batching import Packed, rounded
from otherside.full import Full
from otherside.lineage import AUTO, Card, Lineage
from otherside.llama import check_length
from otherside.loading import check_fingerprint
from otherside.quantized import Quantized
from otherside.self_test import MaskError as MaskError
from otherside.self_test import self_test
from otherside.sharding import Shard
from otherside.sink import Sink, sink_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attention = Literal["bidirectional", "causal"]
DTypes = Literal["float32", "bfloat16", "float16"]
AnyDType = Literal["auto", "float32", "bfloat16", "float16"]


def fast_dtype(device: str | torch.device = "cuda") -> DTypes:
    """What `dtype: auto` means on a device: by default on a GPU, where there is one. Without instructions for it, a CPU
    takes ten times longer in bfloat16.
    """
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    known: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if any(there for name, there in known.items() if "bf16" in name) else "float32"


@dataclass
class BackboneConfig:
    """Which model, and how its attention runs.

    Args:
        model: hub id, folder, .gguf file, pkg://PACKAGE/FILE, or the encoder folder of an earlier stage, whose
            lineage is merged first; or one of LLM2Vec's (`otherside.llm2vec`).
        revision: of a hub id.
        attention: bidirectional or causal. None: as the encoder folder; bidirectional on a base model.
        dtype: of the frozen weights, and that all compute in. Weights that are trained are always float32. auto:
            bfloat16 where this machine multiplies in it fast, else float32.
        kernel: auto takes torch's variable-length kernel on CUDA in half precision without dropout, else SDPA.
        attention_dropout: on attention probabilities, in training. Llama has none; SimCSE needs some.
        activation_checkpointing: compute each layer again in backward: less memory, about a third more time. auto: if
            training does not fit into the free memory without, nor with `recompute` alone.
        start_token: the first token of every text, on which attention rests. auto: that of an encoder folder; of a
            base model, what its tokenizer puts first, else its document boundary. A token by name; null: none.
        keep_sink: in bidirectional attention, let the start token enter with the state that attention rests on, which
            would not form there (`otherside.sink`). null: as the encoder folder; true on a base model.
        quantized: nf4: train an adapter on a base whose layers' matrices are rounded to four bits a weight (QLoRA;
            `otherside.quantized`). Its encoder opens in the usual types.
    """

    model: str
    revision: str | None = None
    attention: Attention | None = None
    dtype: AnyDType = "auto"
    kernel: Kernel = "auto"
    attention_dropout: float = 0.0
    activation_checkpointing: bool | Literal["auto"] = "auto"
    start_token: str | None = AUTO
    keep_sink: bool | None = None
    quantized: Quantized | None = None

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise ValueError(f"backbone.kernel must be one of {', '.join(get_args(Kernel))}; got {self.kernel!r}")
        if self.attention not in (None, *get_args(Attention)):
            raise ValueError(f"backbone.attention must be bidirectional or causal; got {self.attention!r}")
        if self.dtype not in get_args(AnyDType):
            raise ValueError(f"backbone.dtype must be one of {', '.join(get_args(AnyDType))}; got {self.dtype!r}")
        if self.quantized not in (None, *get_args(Quantized)):
            raise ValueError(f"backbone.quantized must be nf4 or null; got {self.quantized!r}")
        self.dtype = fast_dtype() if self.dtype == "auto" else self.dtype
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"backbone.attention_dropout must lie in [0, 1); got {self.attention_dropout}")
        if self.keep_sink and self.start_token is None:
            raise ValueError("backbone.keep_sink needs a start token to keep it of; got start_token: null. Use auto.")
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
        sink: what the start token enters with in bidirectional attention; None: its embedding, as in causal attention.
        dtype: that it computes in, where its own weights are trained, in float32; None: theirs.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        lineage: Lineage,
        attention: Attention = "bidirectional",
        kernel: Kernel = "auto",
        sink: Sink | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.lineage = lineage
        self.attention: Attention = attention
        self.kernel: Kernel = kernel
        self.sink = sink
        self._dtype = dtype
        self.is_base = False  # inside `as_base`
        self.sink_state: Tensor | None
        self.register_buffer("sink_state", sink.state.to(lm.device) if sink else None, persistent=False)
        lm.get_input_embeddings().register_forward_hook(self._keep_sink)
        lm.set_attn_implementation(ATTENTION)
        norms.fuse(lm)

    @classmethod
    def load(
        cls,
        config: BackboneConfig,
        new: Lora | Full | None = None,
        shard: Shard | None = None,
        start: int | None = None,
        merge: bool = True,
    ) -> Backbone:
        """Load the base, merge its lineage in order, attach a new adapter or let its own weights be trained.

        Run `self_test` once the model is where it will run: the kernel depends on the device.

        Args:
            config: which model.
            new: what is to be trained: a new adapter, or the base's own weights; None: nothing.
            shard: how weights are shared between ranks, all of which must call this; None: each holds all.
            start: id of the start token, whose sink is kept if `config` says so; None: there is none.
            merge: False leaves the base's weights as they are, so that `as_base` has them; not with `new` or `shard`.

        Raises:
            FileNotFoundError: there is no such model or adapter.
            ValueError: a stage's file was changed or does not fit; a LoRA target matches nothing; no layer is left to
                train; the model knows no dropout of attention, and some is asked for; with merge=False, there is no
                base inside; it cannot be rounded to four bits.
        """
        if not merge and (new is not None or shard is not None or config.quantized):
            raise ValueError("merge=False is for encoders in use; what is trained, shards and nf4 need merge=True")
        if config.quantized:
            quantized.check(new, shard is not None)
        card = weights.card_of(config.model, config.revision)
        lineage, attention = card.lineage, config.attention or card.attention
        dtype = getattr(torch, config.dtype)
        if not merge and lineage.trained_whole:
            raise ValueError(
                f"merge=False needs stages that are adapters; {', '.join(lineage.trained_whole)} of {config.model} is "
                f"full fine-tuning, with no base inside. Open the base beside it: {lineage.base}."
            )
        if shard is not None or config.quantized:
            lm, found = sharding.load(lineage, dtype, new, shard)
            check_fingerprint(found, lineage, config.model)
        else:
            lm, found = loading.load(lineage, dtype, new, config.model, merge)
        lineage = replace(lineage, fingerprint=found or lineage.fingerprint)
        set_attention_dropout(lm, config.attention_dropout)
        sink = None
        if start is not None and keeps_sink(config, card):
            reads = distributed.rank() == 0
            sink = distributed.from_first(sink_of(config.model, card, start) if reads else None)
        is_full = isinstance(new, Full)
        backbone = cls(lm, lineage, attention, config.kernel, sink, dtype if is_full else None)  # type: ignore[arg-type]  # as the card was checked to have it
        if is_full and dtype in HALF:
            full.compute_in(lm, dtype)
        if config.activation_checkpointing is True:
            backbone.compute_layers_again()
        return backbone

    def compute_layers_again(self) -> None:
        """Activation checkpointing: backward computes each layer once more from its input."""
        self.lm.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._dtype or self.lm.dtype

    @property
    def trains_whole(self) -> bool:
        """Whether the base's own weights are trained."""
        return self._dtype is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight: Any = self.lm.get_input_embeddings().weight
        return weight.device

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.lm.config.hidden_size

    @property
    def layers(self) -> int:
        """Number of layers; hidden states 0 … layers, 0 being the embeddings."""
        return self.lm.config.num_hidden_layers

    def logits(self, states_MD: Tensor) -> Tensor:
        """(M, V) of hidden states, as the model's own forward makes them.

        Through the head's own module, whose weights may be sharded; then what some families do behind it: Cohere
        multiplies, Granite divides, Gemma caps.
        """
        config = self.lm.config
        with self.base_type(states_MD.device):
            logits = self.lm.get_output_embeddings()(states_MD)
        if (factor := getattr(config, "logit_scale", None)) is not None:
            logits = logits * factor
        if divisor := getattr(config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def check_head(self, what: str) -> None:
        """Raise a ValueError where the checkpoint has no head, and `loading` made one of zeros."""
        if getattr(self.lm.get_output_embeddings(), "is_made_up", False):
            raise ValueError(
                f"{what} needs a language model with its head; {self.lineage.base} has no lm_head.weight. Use the one "
                "that it was made from, or a contrastive stage, which needs no head."
            )

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
        check_length("a text must have", longest, self.lm.config)
        if device.type == "cpu" and self.dtype in HALF:  # oneDNN compiles, and keeps, kernels for each new size
            longest, filler = rounded(longest), rounded(len(texts.input_ids)) - len(texts.input_ids)
        with self.base_type(device):
            return self.lm.base_model(
                input_ids=F.pad(texts.input_ids, (0, filler))[None],
                position_ids=F.pad(texts.positions, (0, filler))[None],
                use_cache=False,
                borders=Borders.of(texts, longest, filler),
                causal=self.attention == "causal",
                kernel=self.kernel,
                **options,
            )

    def _keep_sink(self, module: nn.Module, inputs: tuple[Tensor], embedded: Tensor) -> Tensor:
        """What comes out of the embeddings, with the start token's state in its place."""
        if self.sink is None or self.sink_state is None or self.attention == "causal":
            return embedded
        is_start = (inputs[0] == self.sink.token).unsqueeze(-1)
        return torch.where(is_start, self.sink_state.to(embedded.dtype), embedded)

    def base_type(self, device: torch.device) -> AbstractContextManager[Any]:
        """What is trained, in float32, computes in the base's type; in float32 the caller's own autocast, if any, stays
        in force. No rounded weight is kept for later: each is used once.
        """
        return torch.autocast(device.type, self.dtype, cache_enabled=False) if self.dtype in HALF else nullcontext()

    def pads(self, device: torch.device) -> bool:
        """Whether attention pads texts to the longest that they are run with; all else of a layer never does."""
        if self.kernel != "auto":
            return self.kernel != "varlen"
        if getattr(self.lm.config, "attn_logit_softcapping", None) is not None:
            return True
        layer: Any = next((module for module in self.lm.modules() if hasattr(module, "attention_dropout")), None)
        dropout = layer.attention_dropout if layer is not None else 0.0
        return best_kernel(device, self.dtype, 0, dropout, self.training) != "varlen"

    @property
    def own_kernel(self) -> Literal["eager", "sdpa"]:
        """What transformers runs `lm` with where nothing else is asked for; its SDPA has no soft caps."""
        return "sdpa" if self.lm._supports_sdpa else "eager"

    @contextmanager
    def own_attention(self, kind: Literal["eager", "sdpa"]) -> Iterator[None]:
        """Inside the block `lm` runs transformers' attention instead of ours."""
        self.lm.set_attn_implementation(kind)
        try:
            yield
        finally:
            self.lm.set_attn_implementation(ATTENTION)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """transformers' `generate`, in the base model's own attention code.

        Inside `as_base` it equals the base model's bit for bit.

        Raises:
            ValueError: attention is bidirectional; a model that sees the future cannot generate. Or it has no head.
        """
        self.check_head("generate")
        if self.attention != "causal":
            raise ValueError(
                "generate needs causal attention; got bidirectional. Generate inside `with backbone.as_base():`, or "
                "set backbone.attention = 'causal' to keep the adapters on."
            )
        is_mixed = adapters.are_on(self.lm) or self.trains_whole
        with self.own_attention(self.own_kernel), self.base_type(self.lm.device) if is_mixed else nullcontext():
            return self.lm.generate(*args, **kwargs)  # type: ignore[operator]

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Inside the block the base model as it was: attention causal, all adapters off; it can `generate`.

        Raises:
            ValueError: adapters are merged into its weights, or they were trained, or rounded.
        """
        if quantized.is_quantized(self.lm):
            raise ValueError(
                "as_base needs the base's own weights; backbone.quantized rounded them. Open it beside this one: "
                f"{self.lineage.base}."
            )
        if self.trains_whole or self.lineage.trained_whole:
            raise ValueError(
                "as_base needs the base's own weights; full fine-tuning changed them, and there is no base inside. "
                f"Open it beside this one: {self.lineage.base}."
            )
        lineage = enumerate(self.lineage.adapters)
        merged = [a.name for i, a in lineage if not adapters.is_attached(self.lm, adapters.beside(i))]
        if merged:
            raise ValueError(
                f"as_base needs the base's own weights; {', '.join(merged)} is merged into them. Open it by "
                "Encoder.load(..., merge=False)."
            )
        attention, self.attention, self.is_base = self.attention, "causal", True
        try:
            with self.without_adapters():
                yield
        finally:
            self.attention, self.is_base = attention, False

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Adapters off inside the block; behind it, as they were before."""
        were_on = adapters.are_on(self.lm)
        adapters.switch(self.lm, on=False)
        try:
            yield
        finally:
            adapters.switch(self.lm, on=were_on)

    def self_test(self) -> None:
        """Is this the attention asked for, and are these the model's own numbers? For the very kernel in use.

        Changing a late token must move an early hidden state if and only if attention is bidirectional, and another
        text in the same pack not at all; causal states and logits must be those of transformers' own forward.

        Raises:
            MaskError: it does not hold. Silently causal attention is the commonest bug of such encoders.
            ValueError: the model's attention asks for what ours does not compute; the kernel needs another device.
        """
        self_test(self)


def keeps_sink(config: BackboneConfig, card: Card) -> bool:
    """Whether `config` asks for it; if it leaves that open, what the encoder folder or base model has."""
    inherited = card.keep_sink and config.start_token is not None
    return inherited if config.keep_sink is None else config.keep_sink


def set_attention_dropout(lm: PreTrainedModel, share: float) -> None:
    """In all layers of `lm`; it is in force in training only.

    Raises:
        ValueError: no layer would heed it.
    """
    layers: list[Any] = [module for module in lm.modules() if hasattr(module, "attention_dropout")]
    if share and not layers:
        raise ValueError(
            f"backbone.attention_dropout must be 0 for a {type(lm).__name__}, whose layers have no such setting; got "
            f"{share}. Use another backbone.model for the stage simcse."
        )
    for layer in layers:
        layer.attention_dropout = share
