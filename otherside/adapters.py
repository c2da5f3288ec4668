"""LoRA adapters through PEFT: attach, switch, merge, save."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from otherside.adapted import fuse
from otherside.dropout import SharedDropout
from otherside.lineage import ADAPTER_WEIGHTS, Merged
from otherside.llama import PROJECTIONS, READERS, fused

CONFIG = "adapter_config.json"
NAME = "default"  # PEFT's name for a model's one adapter
PREFIX = "base_model.model."  # of keys in PEFT's files, which are named as in `PeftModel`
BODY = "model."  # of a causal language model; LLM2Vec adapted that alone, and its keys lack it


@dataclass
class Lora:
    """Settings of a new adapter.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r (with rslora: alpha / sqrt(r)).
        dropout: on the adapter's input. Projections that read the same tensor share one dropped input.
        targets: names of linear layers; `*` and `?` may be used. A name that matches no layer is an error. A layer that
            does the work of several, as a Phi-3's qkv_proj, also goes by all their names together.
        rslora: rank-stabilised scaling (Kalajdzievski, 2023).
        dora: weight-decomposed adaptation (Liu et al., 2024); slower.
        share_dropout: False draws one mask per projection, as PEFT does.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.05
    targets: list[str] = field(default_factory=lambda: list(PROJECTIONS))
    rslora: bool = False
    dora: bool = False
    share_dropout: bool = True

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora.r must be at least 1; got {self.r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must lie in [0, 1); got {self.dropout}")


def attach(lm: nn.Module, settings: Lora) -> None:
    """Put a new adapter into `lm` in place and freeze everything else.

    The adapter's weights are float32 whatever the base's type: they are what the optimizer updates. The backbone runs
    them in the base's type under autocast, so PEFT's own cast of every input to float32 is switched off. Layers compute
    as `otherside.adapted` says.
    B starts at zero, so the model's output does not change.

    Raises:
        ValueError: a target matches no linear layer.
    """
    attach_to_piece(lm, settings, peft_config(lm, settings))


def attach_to_piece(piece: nn.Module, settings: Lora, config: LoraConfig) -> None:
    """`attach` for one part of a model; nothing where it has no target."""
    targets = config.target_modules or ()
    if not any(name.rpartition(".")[2] in targets for name, _ in piece.named_modules()):
        return
    _inject(piece, config)
    groups = READERS if settings.share_dropout else tuple((name,) for name in targets)
    if settings.dropout and not settings.dora:
        share_dropout(piece, groups)
    fuse(piece, groups, NAME)


def peft_config(lm: nn.Module, settings: Lora) -> LoraConfig:
    """PEFT's form of the settings.

    Raises:
        ValueError: a target matches no linear layer of `lm`.
    """
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT takes fractions too
        lora_dropout=settings.dropout,
        target_modules=matching_layers(lm, settings.targets),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
    )


def matching_layers(lm: nn.Module, targets: list[str]) -> list[str]:
    """Last parts of the names of linear layers that `targets` match; every target must match one."""
    head = lm.get_output_embeddings()  # type: ignore[operator]  # an adapter there would never be read
    linear = (name for name, module in lm.named_modules() if isinstance(module, nn.Linear) and module is not head)
    names = sorted({name.rpartition(".")[2] for name in linear})
    targets = fused(targets, names)
    lost = [target for target in targets if not any(fnmatch(name, target) for name in names)]
    if lost or not targets:
        raise ValueError(
            f"every name in lora.targets must match a linear layer of the model; {', '.join(lost) or 'an empty list'} "
            f"matches none. Its linear layers are: {', '.join(names)}."
        )
    return [name for name in names if any(fnmatch(name, target) for target in targets)]


def _inject(lm: nn.Module, config: LoraConfig, name: str = NAME) -> None:
    lm.requires_grad_(False)
    with torch.device("cpu"):  # the same start on every device; it follows its layer there
        inject_adapter_in_model(config, lm, adapter_name=name)
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    for layer in adapter_layers(lm):
        layer.cast_input_dtype_enabled = False


def adapter_layers(lm: nn.Module) -> Iterator[LoraLayer]:
    """Layers of `lm` that have an adapter."""
    return (module for module in lm.modules() if isinstance(module, LoraLayer))


def is_attached(lm: nn.Module, name: str = NAME) -> bool:
    """Whether a layer of `lm` has an adapter of this name; by default, the new one."""
    return any(name in layer.lora_A for layer in adapter_layers(lm))


def are_on(lm: nn.Module) -> bool:
    """Whether `lm` has an adapter that is not switched off."""
    return any(not layer.disable_adapters for layer in adapter_layers(lm))


def switch(lm: nn.Module, on: bool) -> None:
    """Adapters on or off; off, the model computes what its frozen weights alone say. Keeps `requires_grad`."""
    for layer in adapter_layers(lm):
        layer._disable_adapters = not on


def share_dropout(lm: nn.Module, groups: Sequence[Sequence[str]]) -> None:
    """Let the projections of each group, which are of one block and read the same tensor, share one dropped input."""
    for block in list(lm.modules()):
        for group in groups:
            layers = [layer for name in group if isinstance(layer := getattr(block, name, None), LoraLayer)]
            if layers and isinstance(first := layers[0].lora_dropout[NAME], nn.Dropout):
                shared = SharedDropout(first.p, users=len(layers))
                for layer in layers:
                    layer.lora_dropout[NAME] = shared


def state_dict(lm: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's weights, or those given by their names in `lm`, under the names that PEFT's own files use."""
    named = get_peft_model_state_dict(lm, state_dict=weights, adapter_name=NAME)
    return {PREFIX + key: value for key, value in named.items()}


def save(lm: nn.Module, folder: Path, base: str, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter as PEFT does: `PeftModel.from_pretrained(base, folder)` opens it."""
    write(state_dict(lm, weights), lm.peft_config[NAME], folder, base)  # type: ignore[index,arg-type]


def write(weights: Mapping[str, Tensor], config: LoraConfig, folder: Path, base: str) -> None:
    """Write an adapter's folder; its tensors are named as in PEFT's files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(found, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings: dict[str, Any] = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    (folder / CONFIG).write_text(json.dumps(ordered, indent=2, sort_keys=True, default=str) + "\n")


def put_beside(lm: nn.Module, saved: Sequence[SavedAdapter]) -> None:
    """Attach saved adapters, frozen and all at work, without touching the weights of `lm`: together they compute what
    the merged model does, and `switch` turns them off.

    Raises:
        ValueError: an adapter's tensors do not fit the model; several, of which one is DoRA, which is defined on the
            weights that those before it left behind.
    """
    if len(saved) > 1 and any(adapter.config.use_dora for adapter in saved):
        raise ValueError("merge=False needs adapters without dora, or one alone; got several. Use merge=True.")
    names = [beside(i) for i in range(len(saved))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        for name, adapter in zip(names, saved, strict=True):
            adapter.attach(lm, name)
    for layer in adapter_layers(lm):
        layer.set_adapter([name for name in names if name in layer.lora_A])
    lm.requires_grad_(False)


def beside(number: int) -> str:
    """Name of a lineage's adapter that is attached and not merged."""
    return f"stage{number}"


class SavedAdapter:
    """An adapter read from its folder, to be attached or merged into a model as a whole or part by part.

    Raises:
        FileNotFoundError: no such adapter.
        ValueError: its SHA-256 is another than recorded.
    """

    def __init__(self, adapter: Merged) -> None:
        adapter.check()
        self.adapter = adapter
        self.config = LoraConfig.from_pretrained(str(adapter.folder))
        saved = load_file(adapter.path)
        named = {key.removeprefix(PREFIX): value for key, value in saved.items()}
        self.weights = {f"{BODY}{key}" if key.startswith("layers.") else key: value for key, value in named.items()}

    def merge(self, piece: nn.Module, prefix: str = "") -> None:
        """Add it to the weights of a model, or of the part of a model whose names begin with `prefix`; in place.

        Raises:
            ValueError: its tensors do not fit.
        """
        if self.attach(piece, NAME, prefix):
            _fold(piece)

    def attach(self, piece: nn.Module, name: str, prefix: str = "") -> bool:
        """Attach it under a name; whether there was anything to attach. Otherwise as `merge`."""
        weights = {k.removeprefix(prefix): value for k, value in self.weights.items() if k.startswith(prefix)}
        if prefix and not weights:
            return False
        try:
            with torch.random.fork_rng([]):  # a later adapter's start is the same however the model is loaded
                _inject(piece, self.config, name)
            outcome: Any = set_peft_model_state_dict(piece, weights, adapter_name=name)
            lost = [key for key in outcome.missing_keys if "lora_" in key and f".{name}" in key]
            if lost or outcome.unexpected_keys:
                raise ValueError(f"missing {lost[:3]}, unexpected {outcome.unexpected_keys[:3]}")
        except (RuntimeError, ValueError, TypeError) as error:
            first = " ".join(str(error).split("\n\t")[:2])  # torch names every tensor that does not fit
            raise ValueError(
                f"adapter {self.adapter.name!r} in {self.adapter.folder} must fit the base model, and does not: "
                f"{first}. Use the base model it was trained on."
            ) from error
        return True


@torch.no_grad()
def _fold(lm: nn.Module) -> None:
    """Merge the attached adapter and put the plain layers back."""
    for parent in list(lm.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                layer.merge(safe_merge=True)
                setattr(parent, name, layer.get_base_layer())
    del lm.peft_config
    lm.requires_grad_(False)


def fingerprint(lm: nn.Module) -> str | None:
    """A digest of the first 64 values of each parameter, rounded to bfloat16 so that the loading type does not matter.

    None where weights were loaded as float16, whose range is too small to tell.
    """
    return digest({name: first_values(parameter) for name, parameter in lm.named_parameters()})


def first_values(parameter: Tensor) -> Tensor:
    """What `fingerprint` looks at."""
    return parameter.detach().flatten()[:64].cpu().clone()


def digest(values: dict[str, Tensor]) -> str | None:
    """`fingerprint` of parameters' first values by name."""
    if any(value.dtype == torch.float16 for value in values.values()):
        return None
    found = hashlib.sha256()
    for name, value in sorted(values.items()):
        found.update(name.encode() + value.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return found.hexdigest()
