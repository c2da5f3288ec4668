"""A model's shape, and how many weights follow from it; nothing is loaded but its `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from otherside import weights
from otherside.lineage import BASE
from otherside.llama import FUSED, PROJECTIONS, fused, positions

CONFIG = "config.json"
# Whose layers keep what Llama's do
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "granite")
TIED = ("smollm3",)  # unless their config.json says otherwise
REMEDY = "Name a folder that holds the base model's config.json (lightning size: --model FOLDER)."


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama or a relative, named as in its `config.json`.

    Args:
        hidden: width of the residual stream.
        inner: width of the MLP.
        layers: their number.
        heads: of queries.
        groups: of keys and values.
        head_size: width of one head.
        vocabulary: number of tokens.
        tied: whether input and output embeddings are one.
        attention_bias: of the four projections of attention.
        mlp_bias: of the three projections of the MLP.
        others: weights of a layer that a Llama has not: norms of queries and keys, Qwen2's biases.
        fused: whether one projection makes queries, keys and values, and one gate and up.
        positions: most tokens of a text; None: no limit.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    others: int = 0
    fused: bool = False
    positions: int | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> Shape:
        """From what a `config.json` says; what it leaves out is transformers' default.

        Raises:
            ValueError: a size is missing; it is of a family that is not counted.
        """
        if (kind := config.get("model_type", "llama")) not in KNOWN:
            raise ValueError(
                f"{where} must be of a family whose memory is known ({', '.join(KNOWN)}); got {kind}. Run a few steps "
                "of the stage instead."
            )
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        lost = [name for name in names if not isinstance(config.get(name), int) or config[name] < 1]
        if lost:
            raise ValueError(f"{where} must describe a Llama; it has no {', '.join(lost)}. {REMEDY}")
        hidden, inner, layers, heads, vocabulary = (config[name] for name in names)
        groups, head_size = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
        others = {
            "qwen2": (heads + 2 * groups) * head_size,
            "qwen3": 2 * head_size,
            "olmo2": (heads + groups) * head_size,
        }
        return cls(
            hidden=hidden,
            inner=inner,
            layers=layers,
            heads=heads,
            groups=groups,
            head_size=head_size,
            vocabulary=vocabulary,
            tied=bool(config.get("tie_word_embeddings", kind in TIED)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            others=others.get(kind, 0),
            fused=kind == "phi3",
            positions=_positions(config),
        )

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.groups * self.head_size

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear layers."""
        plain = {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }
        if not self.fused:
            return plain
        joined = {name: (self.hidden, sum(plain.pop(part)[1] for part in parts)) for name, parts in FUSED.items()}
        return joined | plain

    @property
    def matrices(self) -> int:
        """Weights of all layers' projections: those that every token is multiplied with."""
        return self.layers * sum(n * m for n, m in self.projections.values())

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        biases = self.attention_bias * (self.queries + 2 * self.keys + self.hidden)
        biases += self.mlp_bias * (2 * self.inner + self.hidden)
        return self.matrices // self.layers + biases + self.others + 2 * self.hidden

    @property
    def embeddings(self) -> int:
        """Weights of the input embeddings; those of the output are as many."""
        return self.vocabulary * self.hidden

    @property
    def base(self) -> int:
        """All weights of the base model, which is frozen."""
        return self.layers * self.layer + self.embeddings * (1 if self.tied else 2) + self.hidden


def _positions(config: dict[str, Any]) -> int | None:
    """Most tokens of a text, by a config.json of whichever version of transformers."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.get("type"))
    rope.setdefault("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    limit = positions(SimpleNamespace(**{"architectures": None, **config, "rope_parameters": rope}))
    return limit[0] if limit else None


@dataclass(frozen=True)
class Adapter:
    """The LoRA adapter that is trained; defaults are those of `otherside.adapters.Lora`.

    Args:
        r: rank.
        dropout: on its input.
        targets: names of projections, with wildcards.
        dora: weight-decomposed, with one more weight an output.
        share_dropout: one dropped input for the projections that read the same tensor.
    """

    r: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = PROJECTIONS
    dora: bool = False
    share_dropout: bool = True

    @classmethod
    def read(cls, lora: Mapping[str, Any]) -> Adapter:
        """From settings of `Lora`, of which it takes what it knows."""
        known = {name: value for name, value in lora.items() if name in cls.__annotations__}
        return cls(**known | {"targets": tuple(known.get("targets", PROJECTIONS))})

    def of(self, shape: Shape) -> list[str]:
        """The projections that have an adapter.

        Raises:
            ValueError: a target matches none.
        """
        names = list(shape.projections)
        targets = fused(self.targets, names)
        lost = [target for target in targets if not any(fnmatch(name, target) for name in names)]
        if lost or not targets:
            raise ValueError(
                f"every name in lora.targets must match a projection of the model ({', '.join(names)}); "
                f"{', '.join(lost) or 'an empty list'} matches none."
            )
        return [name for name in names if any(fnmatch(name, target) for target in targets)]

    def tensors(self, shape: Shape) -> list[int]:
        """Sizes of one layer's trained tensors."""
        sizes = []
        for name in self.of(shape):
            inputs, outputs = shape.projections[name]
            sizes += [self.r * inputs, self.r * outputs, *([outputs] if self.dora else [])]
        return sizes

    def weights(self, shape: Shape) -> int:
        """All trained weights."""
        return shape.layers * sum(self.tensors(shape))

    def of_base(self, shape: Shape) -> int:
        """Those that are the base's own."""
        return 0

    def layers(self, shape: Shape) -> int:
        """The layers that backward goes through."""
        return shape.layers


@dataclass(frozen=True)
class Full(Adapter):
    """No adapter: the base's own weights are trained, in float32 (`otherside.full.Full`).

    Args:
        frozen_layers: None: no layer is frozen, nor are the embeddings; k: they and the k lowest layers are.
    """

    r: int = 0
    dropout: float = 0.0
    frozen_layers: int | None = None

    def of(self, shape: Shape) -> list[str]:
        """All projections.

        Raises:
            ValueError: no layer is left to train.
        """
        if self.frozen_layers is not None and not 0 <= self.frozen_layers < shape.layers:
            raise ValueError(
                f"model.frozen_layers must leave one of the model's {shape.layers} layers to train; got "
                f"{self.frozen_layers}"
            )
        return list(shape.projections)

    def tensors(self, shape: Shape) -> list[int]:
        """Sizes of a layer's tensors; biases are taken to be one."""
        matrices = [n * m for n, m in shape.projections.values()]
        return [*matrices, shape.hidden, shape.hidden, shape.layer - sum(matrices) - 2 * shape.hidden]

    def weights(self, shape: Shape) -> int:
        """All trained weights: layers, the last norm, embeddings; never a head of its own."""
        embeddings = shape.embeddings if self.frozen_layers is None else 0
        return self.layers(shape) * shape.layer + shape.hidden + embeddings

    def of_base(self, shape: Shape) -> int:
        """All of them."""
        return self.weights(shape)

    def layers(self, shape: Shape) -> int:
        """Those that are trained."""
        return shape.layers - (self.frozen_layers or 0)


def read_shape(model: str, revision: str | None = None) -> Shape:
    """The shape of what `backbone.model` names: of an encoder folder, its base model's.

    Raises:
        FileNotFoundError: its `config.json` is neither here nor on the hub.
        ValueError: it is no Llama's.
    """
    place, card = weights.locate(model, revision), weights.card_of(model, revision)
    if card.stage != BASE:
        return read_shape(card.lineage.base, card.lineage.revision)
    if isinstance(place, Path) and place.suffix == ".gguf":
        if not (folder := weights.converted(place)).exists():
            return Shape.from_config(_from_gguf(place), str(place))
        place = folder
    path = place / CONFIG if isinstance(place, Path) else _from_hub(place, revision)
    try:
        return Shape.from_config(json.loads(path.read_text()), str(path))
    except OSError as error:
        raise FileNotFoundError(
            f"backbone.model must be a folder with a {CONFIG}; {place} has none. {REMEDY}"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON; {error}. {REMEDY}") from error


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, CONFIG, revision=revision))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"the {CONFIG} of {model} could not be read from the hub. {REMEDY}") from error


def _from_gguf(file: Path) -> dict[str, Any]:
    """What its header says, without its tensors; takes half a minute, as transformers reads the tokenizer too."""
    from transformers import AutoConfig

    config: dict[str, Any] = AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict()
    return config
